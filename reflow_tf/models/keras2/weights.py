"""Weights that Keras 2 saved, read from its file layer by layer into the model that was built of its configuration.

An HDF5 file of Keras 2 keeps, for each layer of the model, a flat list: what training moves first, then the rest,
models inside models included, in the order of the configuration. What a `.keras` archive keeps, `archive` says.
Sources: tf_keras.src.saving.legacy.hdf5_format, tf_keras.src.saving.saving_lib.
"""

import pathlib
import re
from collections.abc import Sequence

import h5py
import keras
import numpy as np

from reflow_tf.models.keras2.archive import read_archive
from reflow_tf.models.keras2.hdf5 import read_layers
from reflow_tf.models.keras2.pruning_wrappers import find_masks, mask, mask_named
from reflow_tf.models.keras2.refusal import Untranslatable
from reflow_tf.models.keras2.saved_model import SavedModel, Weights
from reflow_tf.models.keras2.translation import SavedLayer

# The weights that training does not move, in layers that Keras 2 and 3 share: moments of BatchNormalization and of
# Normalization.
_UNTRAINED = frozenset({"moving_mean", "moving_variance", "mean", "variance", "count"})
# Weights of one layer that shapes alone do not tell apart.
_ALIKE = _UNTRAINED | {"gamma", "beta"}


def load_weights(model: keras.Model, saved: SavedLayer, path: pathlib.Path) -> None:
    """Fills the model.

    Args:
        model: built of the file's configuration.
        saved: the same model as the file knows it.
        path: the file.

    Raises:
        Untranslatable: a layer whose weights are missing, too many, of another shape or in another order.
        OSError, KeyError, ValueError, zipfile.BadZipFile: damaged file.
    """
    if path.is_dir():
        _load_saved_model(model, saved, SavedModel(path).open_weights())
    elif path.suffix == ".keras":
        for part in read_archive(model, saved, path):
            _assign(part.name, part.variables, part.arrays, [])
    else:
        _load_hdf5(model, saved, path)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _load_hdf5(model: keras.Model, saved: SavedLayer, path: pathlib.Path) -> None:
    with h5py.File(path, "r") as file:
        stored = {name: [(item.name, np.asarray(item)) for item in items] for name, items in read_layers(file)}
    for child in saved.layers:
        trained, untrained = _order(model.get_layer(child.name), child)
        items = mask_named(stored.pop(child.wrapper or child.saved_name, []))
        _assign(child.saved_name, trained + untrained, [array for _, array in items], [name for name, _ in items])
    for name, items in stored.items():
        if items:
            raise Untranslatable(name, "has weights in the file, and no place in its configuration")


def _load_saved_model(model: keras.Model, saved: SavedLayer, weights: Weights, number: int = 0) -> None:
    """As an HDF5 file, but models inside models have layers of their own."""
    for child in saved.layers:
        layer = model.get_layer(child.name)
        if not layer.weights:
            continue
        found = weights.find_layer(child.wrapper or child.saved_name, number)
        if child.wrapper:
            arrays = mask(weights.read(weights.find_wrapped(found)), find_masks(weights.read_own(found)), child.wrapper)
        elif child.is_model:
            _load_saved_model(layer, child, weights, found)
            continue
        else:
            arrays = weights.read(found, [weight.name for weight in layer.weights])
        trained, untrained = _order(layer, child)
        _assign(child.saved_name, trained + untrained, arrays, [])


def _order(layer: keras.Layer, saved: SavedLayer) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """A layer's weights in the order of Keras 2: those that training moves, and the rest."""
    if saved.is_model:
        parts = [_order(layer.get_layer(child.name), child) for child in saved.layers]
    elif saved.class_name == "TimeDistributed":
        parts = [_order(layer.layer, saved.layers[0])]
    else:
        parts = [
            (
                [weight for weight in layer.weights if weight.name not in _UNTRAINED],
                [weight for weight in layer.weights if weight.name in _UNTRAINED],
            )
        ]
    trained = [weight for part, _ in parts for weight in part]
    untrained = [weight for _, part in parts for weight in part]
    if not saved.is_trainable:
        return [], trained + untrained
    return trained, untrained


def _assign(
    layer: str, variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray], names: Sequence[str]
) -> None:
    """Sets variables, one to one; `names` are those of the arrays in the file, where it has any."""
    if len(variables) != len(arrays):
        raise Untranslatable(layer, f"needs {len(variables)} weights; the file has {len(arrays)}")
    for variable, array in zip(variables, arrays, strict=True):
        if tuple(variable.shape) != array.shape:
            wanted = tuple(variable.shape)
            raise Untranslatable(layer, f"needs {variable.name} of shape {wanted}; the file has {array.shape}")
    for variable, name in zip(variables, names, strict=False):
        kind = re.sub(r"(_\d+)?(:\d+)?$", "", name.rsplit("/", 1)[-1])
        if kind in _ALIKE and variable.name in _ALIKE and kind != variable.name:
            raise Untranslatable(layer, f"needs {variable.name} where the file has {kind}")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
