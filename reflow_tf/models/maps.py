"""Which layers work on maps: on each pixel of one, or on averages that a map is multiplied with again.

Exact rewriting (export/rewriting/dimensions.py) makes 1x1 convolutions of Dense layers that do: those of
squeeze-and-excitation, and not the head of a classifier, from which nothing comes back to a map. A head that is written
as a 1x1 convolution is told apart in the same way. Read from the shapes in the graph of functional models: a *map* has
four axes and more than one pixel, a *pixel* one value for each channel of an image.
"""

from collections import defaultdict
from typing import Any

import keras
from keras import layers

from reflow_tf.models.calls import Call, CallGraph

_FLATTENING = ("Flatten", "Reshape", "Squeeze")  # layers, and operations of keras.ops
_NOTHING = (
    layers.Dropout, layers.SpatialDropout2D, layers.GaussianNoise, layers.GaussianDropout, layers.AlphaDropout,
    layers.Identity, layers.ActivityRegularization,
)  # fmt: skip
"""Layers that do nothing at inference, and are not in the file."""


def find_on_maps(graph: "MapGraph") -> frozenset[int]:
    """The Dense layers that work on maps wherever they are used, each by its `id`.

    A layer of one's own is taken for such a use if it makes maps of maps: the Dense layers in it, whatever it does with
    them. In a subclassed model none are found.
    """
    found: dict[int, bool] = {}
    for call in graph.calls:
        if isinstance(call.operation, layers.Dense):
            found[id(call.operation)] = found.get(id(call.operation), True) and graph.works_on_maps(call)
        elif isinstance(call.operation, keras.Layer):
            inner = [layer for layer in call.operation._flatten_layers() if isinstance(layer, layers.Dense)]
            for layer in inner:
                found[id(layer)] = found.get(id(layer), True) and graph.makes_maps_of_maps(call)
    return frozenset(layer for layer, on_maps in found.items() if on_maps)


def find_heads(graph: "MapGraph") -> frozenset[int]:
    """The 1x1 convolutions that are Dense layers in the file, each by its `id`; in a subclassed model none are found.

    Exact rewriting (export/rewriting/head.py) makes fully connected operators of those whose input is an average and
    whose output becomes a vector, such as the last of keras.applications' MobileNet and MobileNetV3. Between the two
    may be what an operator takes along, a batch norm and a ReLU, and a softmax. Where a Dense layer reads the vector,
    the converter leaves the vector out, and the convolution stays one.
    """
    found: dict[int, bool] = {}
    for call in graph.calls:
        found[id(call.operation)] = found.get(id(call.operation), True) and graph.is_head(call)
    return frozenset(layer for layer, is_head in found.items() if is_head)


class MapGraph:
    """Who makes and who reads each tensor of a built model."""

    def __init__(self, model: keras.Model):
        graph = CallGraph(model)
        self.calls = graph.calls
        self._shapes, self._ends = graph.shapes, graph.ends
        self._makers: defaultdict[int, list[Call]] = defaultdict(list)
        self._readers: defaultdict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            for tensor in call.outputs:
                self._makers[tensor].append(call)
            for tensor in dict.fromkeys(call.inputs):
                self._readers[tensor].append(call)

    def works_on_maps(self, call: Call) -> bool:
        """Whether one use of a Dense layer is on maps."""
        if self.makes_maps_of_maps(call):
            return True
        return self._takes_averages(call) and all(self._comes_back(tensor, set()) for tensor in call.outputs)

    def is_head(self, call: Call) -> bool:
        """Whether one use of a convolution is on averages over maps, and what it gives becomes a vector that stays."""
        if not isinstance(call.operation, layers.Conv2D | layers.SeparableConv2D) or not self._takes_averages(call):
            return False
        vector = self._find_vector(call)
        return vector is not None and not self._meets_dense(vector, set())

    def _find_vector(self, call: Call) -> int | None:
        """The vector that one pixel is made, if nothing else reads it, nor what an operator does not take along."""
        (tensor,), stage = call.outputs, _follow(0, getattr(call.operation, "activation", None))
        channels, seen = self._shapes[tensor][-1], {tensor}
        while stage is not None and tensor not in self._ends and len(self._readers[tensor]) == 1:
            (reader,) = self._readers[tensor]
            (tensor, *others), shape = reader.outputs, self._shapes[reader.outputs[0]]
            if others or tensor in seen:
                return None
            seen.add(tensor)
            if type(reader.operation).__name__ in _FLATTENING:
                if shape[1:] == (channels,):
                    return tensor
                stage = stage if set(shape[1:]) <= {1, channels} else None
            elif reader.operation is not None:
                stage = _follow(stage, reader.operation)
        return None

    def _meets_dense(self, tensor: int, seen: set[int]) -> bool:
        """Whether a Dense layer reads a vector, or one that is computed from it element by element."""
        if tensor in seen:
            return False
        seen.add(tensor)
        return any(
            isinstance(reader.operation, layers.Dense)
            or any(self._shapes[out] == self._shapes[tensor] and self._meets_dense(out, seen) for out in reader.outputs)
            for reader in self._readers[tensor]
        )

    def _takes_averages(self, call: Call) -> bool:
        return all(self._comes_from_map(tensor, set()) for tensor in call.inputs)

    def makes_maps_of_maps(self, call: Call) -> bool:
        """Whether everything that goes in and comes out is a map."""
        return all(map(self._is_map, (*call.inputs, *call.outputs)))

    def _is_map(self, tensor: int) -> bool:
        shape = self._shapes[tensor]
        return len(shape) == 4 and shape[1:3] != (1, 1)

    def _is_pixel(self, tensor: int) -> bool:
        shape = self._shapes[tensor]
        return len(shape) == 2 or (len(shape) == 4 and shape[1:3] == (1, 1))

    def _comes_from_map(self, tensor: int, seen: set[int]) -> bool:
        """Whether a pixel is computed from averages over maps, or the like, and from nothing else."""
        if tensor in seen:
            return True
        seen.add(tensor)
        makers = self._makers[tensor]
        if not self._is_pixel(tensor) or not makers:
            return False
        return all(
            self._reduces(call, tensor) or all(self._comes_from_map(source, seen) for source in call.inputs)
            for call in makers
        )

    def _reduces(self, call: Call, tensor: int) -> bool:
        """Whether a call takes a map's height and width away, and leaves its channels."""
        if call.operation is None or len(call.inputs) != 1 or not self._is_map(call.inputs[0]):
            return False
        is_weighted = isinstance(call.operation, keras.Layer) and bool(call.operation.weights)
        return not is_weighted and self._shapes[call.inputs[0]][3] == self._shapes[tensor][-1]

    def _comes_back(self, tensor: int, seen: set[int]) -> bool:
        """Whether every way that a pixel goes meets a map, which it is combined with."""
        if tensor in seen:
            return True
        seen.add(tensor)
        readers = self._readers[tensor]
        if tensor in self._ends or not self._is_pixel(tensor) or not readers:
            return False
        return all(self._brings_back(call, seen) for call in readers)

    def _brings_back(self, call: Call, seen: set[int]) -> bool:
        if len(call.inputs) > 1 and any(map(self._is_map, call.inputs)):
            return all(map(self._is_map, call.outputs))
        return all(self._comes_back(tensor, seen) for tensor in call.outputs)


def _follow(stage: int, operation: Any) -> int | None:
    """How far an operator of the file has come, taking along a layer or an activation; None if it does not take it.

    Args:
        stage: 0: linear; 1: has its ReLU; 2: a softmax is behind it.
        operation: what comes next.
    """
    activation = operation.activation if isinstance(operation, layers.Activation) else operation
    name = getattr(activation, "__name__", type(activation).__name__).lower()
    if activation is None or name == "linear" or isinstance(operation, _NOTHING):
        return stage
    if isinstance(operation, layers.BatchNormalization):
        return 0 if stage == 0 and operation.axis in (-1, 3) else None
    if isinstance(operation, layers.ReLU):
        is_fused = operation.max_value in (None, 6) and not operation.negative_slope and not operation.threshold
        return 1 if stage == 0 and is_fused else None
    if name in ("relu", "relu6"):
        return 1 if stage == 0 else None
    return 2 if name == "softmax" and stage < 2 and getattr(operation, "axis", -1) in (-1, 3) else None
