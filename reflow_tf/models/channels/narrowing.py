"""A narrower model: the same layers on fewer channels, a plain Keras model that anybody can load and train.

A channel may go from everywhere it is numbered once every kernel that reads it multiplies it by zero. Then the network
computes what it did, whatever the channel held: `find_masks` are the masks that see to it.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.models.calls import functional_of
from reflow_tf.models.channels.groups import ChannelGroup, ChannelReading, collect_groups, read_channels
from reflow_tf.models.graph import KernelMap
from reflow_tf.models.precision import built_with
from reflow_tf.models.surgery import own_classes

_WITH_FILTERS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.SeparableConv1D, layers.SeparableConv2D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
)
_REMEDY = "mask channels instead, with --pattern=channel and --sparsity"

Kept = Mapping[int, np.ndarray]
"""Position of a group in `find_channel_groups` -> which of its channels stay, ascending; of others all stay."""


def find_masks(kernels: KernelMap, groups: tuple[ChannelGroup, ...], kept: Kept) -> dict[str, np.ndarray]:
    """The masks, in canonical layout, with which the channels that leave are neither computed nor read.

    Args:
        kernels: of the model.
        groups: all of the model's.
        kept: none of them frozen.
    """
    masks: dict[str, np.ndarray] = {}
    for position, channels in kept.items():
        gone = np.setdiff1d(np.arange(groups[position].size), channels)
        for span in groups[position].spans:
            spec = kernels.by_variable.get(id(span.variable))
            if spec is not None and gone.size:
                mask = masks.setdefault(spec.path, np.ones(spec.shape, bool))
                np.moveaxis(mask, span.axis, 0)[span.start + gone] = False
    return {spec.path: spec.to_canonical(masks[spec.path]) for spec in kernels.specs if spec.path in masks}


def narrow(model: keras.Model, kept: Kept) -> keras.Model:
    """A model without the channels that leave; layers keep their names, and weights that stay their bits.

    Args:
        model: functional or sequential, built; it stays as it is.
        kept: at least one channel of each group, of groups that are not frozen.

    Returns:
        A model that computes what the given one does, if that has `find_masks` applied, but for the order of sums.

    Raises:
        InputError: Keras cannot rebuild a layer with fewer channels.
    """
    reading = read_channels(model)
    roots = list(collect_groups(reading.numberings).items())
    widths = {roots[position][0]: len(channels) for position, channels in kept.items()}
    rebuild = _Rebuilding(reading, widths)
    try:
        # Where layers are in layers, Keras looks for the user's by name.
        with keras.saving.custom_object_scope(own_classes(model)), built_with(model.dtype_policy):
            narrower = keras.models.clone_model(model, clone_function=rebuild)
    except InputError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise _refuse(f"{model.name} ({say_why(error)})") from error
    gone = _find_gone({position: roots[position][1] for position in kept}, kept)
    for before, after in rebuild.pairs.values():
        _carry_over(before, after, gone)
    return narrower


def require_rebuildable(model: keras.Model) -> None:
    """Tries, without removing anything, whether the model can be built anew: to be known before the long work.

    Args:
        model: functional or sequential, built.

    Raises:
        InputError: it cannot.
    """
    if any(kind.__module__.partition(".")[0] != "reflow_tf" for kind in own_classes(model).values()):
        narrow(model, {})  # of the user's layers all may differ: what they are built with, and their variables
        return
    reading = read_channels(model)
    rebuild = _Rebuilding(reading, {})
    for operation in (call.operation for call in reading.graph.calls):
        if operation is not None:
            rebuild(operation)


def _refuse(received: str) -> InputError:
    return InputError(f"Every layer must be rebuildable with fewer channels; {_REMEDY}. Received: {received}")


class _Rebuilding:
    """Makes each operation anew, once, with as many channels as stay.

    Attributes:
        pairs: id of an operation -> it, and what it has become.
    """

    def __init__(self, reading: ChannelReading, widths: Mapping[int, int]):
        self.pairs: dict[int, tuple[keras.Operation, keras.Operation]] = {}
        self._reading, self._widths = reading, widths
        self._outputs = {id(call.operation): call.outputs[0] for call in reading.graph.calls if call.outputs}

    def __call__(self, operation: keras.Operation) -> keras.Operation:
        if id(operation) not in self.pairs:
            try:
                self.pairs[id(operation)] = operation, self._rebuild(operation)
            except InputError:  # of a layer in a nested model
                raise
            except Exception as error:  # whatever the user's code raises
                raise _refuse(f"{operation.name} ({type(operation).__name__}): {say_why(error)}") from error
        return self.pairs[id(operation)][1]

    def _rebuild(self, operation: keras.Operation) -> keras.Operation:
        if isinstance(operation, keras.Model) and (nested := functional_of(operation)):
            inputs = keras.tree.map_structure(self._rebuild_input, nested.input)
            return keras.models.clone_model(operation, input_tensors=inputs, clone_function=self)
        width = self._find_width(self._outputs.get(id(operation)))
        if not isinstance(operation, keras.Layer):  # it has no weights, and no sizes of its own but for one kind
            is_sized = type(operation).__name__ == "Reshape" and width is not None
            return type(operation)((*operation.newshape[:-1], width)) if is_sized else operation
        if type(operation) is layers.Lambda:  # nor has this; Keras rebuilds no code that it is not told to trust
            return operation
        config: dict[str, Any] = operation.get_config()
        if width is not None:
            if type(operation) in _WITH_FILTERS and width != config["filters"]:
                # In groups only where it is depthwise by another name: others are not known, and stay.
                config |= {"filters": width} | ({"groups": width} if config.get("groups", 1) > 1 else {})
            elif type(operation) is layers.Dense:
                config["units"] = width
            elif type(operation) is layers.EinsumDense:
                config["output_shape"] = (*np.atleast_1d(config["output_shape"])[:-1], width)
            elif type(operation) is layers.Reshape:
                config["target_shape"] = (*config["target_shape"][:-1], width)
        return type(operation).from_config(config)

    def _rebuild_input(self, tensor: keras.KerasTensor) -> keras.KerasTensor:
        width = self._find_width(id(tensor))
        shape = tensor.shape if width is None else (*tensor.shape[:-1], width)
        return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)

    def _find_width(self, tensor: int | None) -> int | None:
        """How many channels a tensor has from now on; None where they are not known, and stay."""
        layout = None if tensor is None else self._reading.roots(tensor)
        if not layout:
            return None
        size = self._reading.numberings.size
        return sum(self._widths.get(numbering, size((numbering,))) for numbering in layout)


def _find_gone(groups: Mapping[int, ChannelGroup], kept: Kept) -> dict[int, dict[int, np.ndarray]]:
    """Id of a variable -> axis -> which places along it leave."""
    found: dict[int, dict[int, list[np.ndarray]]] = {}
    for position, group in groups.items():
        gone = np.setdiff1d(np.arange(group.size), kept[position])
        for span in group.spans:
            found.setdefault(id(span.variable), {}).setdefault(span.axis, []).append(span.start + gone)
    return {of: {axis: np.concatenate(parts) for axis, parts in axes.items()} for of, axes in found.items()}


def _carry_over(before: keras.Operation, after: keras.Operation, gone: Mapping[int, Mapping[int, np.ndarray]]) -> None:
    """Gives a rebuilt layer what stays of the weights of the one that it stands for."""
    if not isinstance(before, keras.Layer):
        return
    if len(before.variables) != len(after.variables):
        counts = f"{len(after.variables)} variables and not {len(before.variables)}"
        raise _refuse(f"{before.name} ({type(before).__name__}), which Keras builds with {counts}")
    for old, new in zip(before.variables, after.variables, strict=True):
        value = keras.ops.convert_to_numpy(old)
        for axis, places in gone.get(id(old), {}).items():
            value = np.delete(value, places, axis)
        if value.shape != tuple(new.shape):
            shapes = f"the shape {tuple(new.shape)} and not {value.shape}"
            raise _refuse(f"{old.path}, which Keras builds with {shapes}")
        new.assign(value)
