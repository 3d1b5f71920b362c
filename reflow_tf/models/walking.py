"""The walk over a Keras model's layers: nested models, wrappers, cells and subclassed models alike, each layer once."""

import dataclasses
from collections.abc import Iterator

import keras

from reflow_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class PlacedLayer:
    """A layer and where it hangs: the names from the model down, joined by '/', unique within the model."""

    path: str
    layer: keras.Layer


def walk(model: keras.Model) -> tuple[PlacedLayer, ...]:
    """Every layer below the model, outer before inner, a shared layer once, in the order in which Keras keeps them.

    Raises:
        InputError: the model has no variables yet because it was never built.
    """
    if not model.built:
        raise InputError(
            f"The model must be built: call it once on a batch before it is pruned. Received: {model.name}, not built"
        )
    taken: set[str] = set()
    placed = []
    for names, layer in _descend(model, (), {id(model)}):
        path = "/".join(names)
        copies = 2
        unique = path
        while unique in taken:  # subclassed models may give two layers one name
            unique = f"{path}#{copies}"
            copies += 1
        taken.add(unique)
        placed.append(PlacedLayer(unique, layer))
    return tuple(placed)


def find_batch_norms(model: keras.Model) -> tuple[PlacedLayer, ...]:
    """Every BatchNormalization below the model, frozen and synchronized ones and subclasses included."""
    return tuple(placed for placed in walk(model) if isinstance(placed.layer, keras.layers.BatchNormalization))


def _descend(
    layer: keras.Layer, names: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], keras.Layer]]:
    # `_layers` is the one list that holds sub-layers of every sort (Functional, wrappers, RNN cells, attributes and
    # lists of subclassed models); the public `layers` leaves out cells and wrapped layers.
    for inner in layer._layers:
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        inner_names = (*names, inner.name)
        yield inner_names, inner
        yield from _descend(inner, inner_names, seen)
