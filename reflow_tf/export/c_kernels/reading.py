"""The bytes of a full-int8 .tflite file become the network that C is generated from."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer
from reflow_tf.export.c_kernels.memory import find_owners
from reflow_tf.export.c_kernels.network import (
    Addition,
    Convolution,
    Dense,
    DepthwiseConvolution,
    Layer,
    Logistic,
    Mean,
    Network,
    Operation,
    Padding,
    Placing,
    Pooling,
    Relu,
    Reshape,
    Softmax,
    Tensor,
    Weights,
    Window,
)
from reflow_tf.export.c_kernels.padding import absorb_padding
from reflow_tf.export.constants import read_tensor
from reflow_tf.export.operators import read_operators
from reflow_tf.targets.operators import Operator, OperatorGraph

_INT8 = schema.TensorType.INT8
_WHOLE = ("int32", "int64", "uint8")
_ACTIVATIONS = {"NONE": (None, None), "RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
_MOST_RATIO = 2.0**30
_MOST_SIZE = 32767  # these kernels' structures hold sizes in 16 bits
_OF_SMALL_SIZES = ("CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD")


def read_network(content: bytes) -> Network:
    """Reads a .tflite file whose inputs, outputs and activations are int8, with a batch of 1.

    Raises:
        InputError: not such a file, or it has an operator that no kernel here computes; the message names it.
    """
    with flatbuffer.reading(content):
        return _read_network(_Reader(content))


def _read_network(reader: "_Reader") -> Network:
    graph = reader.graph
    inputs, outputs = (
        tuple(
            reader.activation(index, name if len(ends) == 1 else f"{name} {place}") for place, index in enumerate(ends)
        )
        for name, ends in (("the input", graph.inputs), ("the output", graph.outputs))
    )
    layers = tuple(layer for operator in graph.operators for layer in reader.layers(operator))
    network = absorb_padding(Network(layers, inputs, outputs))
    _require_own_memory(network)
    return network


def _require_own_memory(network: Network) -> None:
    """Ends are the caller's memory: none may be another one under a new name, which is all that a reshape gives."""
    owners = find_owners(network)
    inputs = {tensor.index for tensor in network.inputs}
    taken = set(inputs)
    for output in network.outputs:
        owner = owners[output.index]
        if owner in taken:
            what = "an input" if owner in inputs else "another output"
            raise InputError(
                f"C is generated for models whose outputs are each computed by a layer. Received: one that is {what}"
            )
        taken.add(owner)


@dataclass(frozen=True)
class _Place:
    """An operator, where its message would say that it stands."""

    operator: Operator

    def __str__(self) -> str:
        return f"{self.operator.kind} '{self.operator.name}'"

    def demand(self, met: bool, requirement: str, received: object) -> None:
        if not met:
            raise InputError(
                f"C is generated for {self.operator.kind} only with {requirement}: change layer "
                f"'{self.operator.name}'. Received: {received}"
            )


class _Reader:
    def __init__(self, content: bytes):
        self.model = flatbuffer.parse(content)
        self.graph: OperatorGraph = read_operators(content)
        self._stored = self.model.subgraphs[0]
        packed = [value.name for value in self.graph.values if value.constant and value.storage != "dense"]
        if packed:
            raise InputError(
                f"C is generated from a file with dense storage: export with storage='dense'. "
                f"Received: {len(packed)} tensors stored otherwise, '{packed[0]}' among them"
            )

    def layers(self, operator: Operator) -> tuple[Layer, ...]:
        """What an operator becomes: one layer, of CONCATENATION one for each input."""
        place = _Place(operator)
        if operator.kind not in KINDS:
            raise InputError(
                f"C is generated for {', '.join(sorted(KINDS))}: replace or remove layer '{operator.name}', or use "
                f"--target=tflm. Received: {operator.kind}"
            )
        activations = [i for i in operator.inputs if i >= 0 and not self.graph.values[i].constant]
        inputs = tuple(self.activation(index, str(place)) for index in activations)
        output = self.activation(operator.outputs[0], str(place))
        for tensor in (*inputs, output) if operator.kind in _OF_SMALL_SIZES else ():
            place.demand(max(tensor.shape, default=1) <= _MOST_SIZE, f"sizes up to {_MOST_SIZE}", tensor.shape)
        place.demand(bool(inputs), "an input that is no constant", "constants")
        activation = operator.kind if operator.kind in _RELUS else operator.attributes.get("activation", "NONE")
        place.demand(activation in _ACTIVATIONS, f"one of {', '.join(_ACTIVATIONS)} fused", activation)
        name, limits = operator.name or operator.kind.lower(), _limits(output, activation)
        if operator.kind == _CONCATENATION:
            parts = zip(inputs, _concatenation(place, inputs, output), strict=True)
            return tuple(Layer(name, operator.kind, part, (source,), output, limits) for source, part in parts)
        operation = _OPERATIONS[operator.kind](self, place, inputs, output)
        return (Layer(name, operator.kind, operation, inputs, output, limits),)

    def activation(self, index: int, where: str) -> Tensor:
        tensor = self._stored.tensors[index]
        shape = tuple(int(size) for size in (tensor.shape if tensor.shape is not None else ()))
        kind = self.graph.values[index].dtype
        if index in self.graph.inputs and kind in _WHOLE:
            raise InputError(
                f"C is generated for inputs that are int8: --target=tflm takes whole numbers. "
                f"Received: {kind} at {where}"
            )
        if tensor.type != _INT8:
            raise InputError(
                f"C is generated for full-int8 models: export with quantize='int8'. Received: {kind} at {where}"
            )
        if tensor.quantization is None or tensor.quantization.scale is None or len(tensor.quantization.scale) != 1:
            raise InputError(f"An int8 activation must have one scale. Received: another number at {where}")
        if shape[:1] != (1,) or min(shape) < 1:
            raise InputError(
                f"C is generated for a batch of 1, an axis that every layer keeps, and fixed sizes. "
                f"Received: {shape} at {where}"
            )
        scale, zero_point = tensor.quantization.scale[0], tensor.quantization.zeroPoint[0]
        _demand_scales(tensor.quantization.scale, where)
        return Tensor(index, shape, float(np.float32(scale)), int(zero_point))

    def weights(self, place: _Place, source: Tensor, output: Tensor) -> tuple[np.ndarray, Weights]:
        """The filter as the file has it, and everything but its values as the kernels take it, channels last."""
        operator = place.operator
        tensor = self._stored.tensors[operator.inputs[1]]
        place.demand(self.graph.values[operator.inputs[1]].constant, "constant weights", "computed ones")
        place.demand(tensor.type == _INT8, "int8 weights", self.graph.values[operator.inputs[1]].dtype)
        points = np.asarray(tensor.quantization.zeroPoint)
        place.demand(not points.any(), "weights whose zero point is 0", points)
        values = read_tensor(self.model, tensor)
        num_outputs = output.shape[-1]
        biases = np.zeros(num_outputs, np.int64)
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            biases = read_tensor(self.model, self._stored.tensors[operator.inputs[2]]).astype(np.int64)
        scales = np.asarray(tensor.quantization.scale, np.float32)
        _demand_scales(scales, str(place))
        place.demand(len(biases) == num_outputs, f"{num_outputs} biases", len(biases))
        products = np.float64(source.scale) * scales.astype(np.float64)
        place.demand(
            bool((products < _MOST_RATIO * output.scale).all()),
            "a scale of the output that its operands can reach",
            output.scale,
        )
        return values, Weights(values, biases, np.broadcast_to(products / np.float64(output.scale), num_outputs))

    def option(self, operator: Operator, name: str) -> Any:
        return getattr(self._stored.operators[operator.index].builtinOptions, name)


def _demand_scales(scales: np.ndarray, where: str) -> None:
    if not (np.isfinite(scales) & (np.asarray(scales) > 0)).all():
        raise InputError(f"Scales must be finite and over 0. Received: others at {where}")


def _limits(tensor: Tensor, activation: str) -> tuple[int, int]:
    """CalculateActivationRangeQuantized of kernel_util.cc: divides as float32, rounds ties away from zero."""

    def quantize(value: float) -> int:
        steps = np.float32(value) / np.float32(tensor.scale)
        return tensor.zero_point + int(np.sign(steps) * np.floor(np.abs(np.float64(steps)) + 0.5))

    lowest, highest = _ACTIVATIONS[activation]
    return (
        -128 if lowest is None else max(-128, quantize(lowest)),
        127 if highest is None else min(127, quantize(highest)),
    )


def _window(place: _Place, kernel: tuple[int, int], source: Tensor, output: Tensor) -> Window:
    attributes = place.operator.attributes
    place.demand(attributes.get("dilations", (1, 1)) == (1, 1), "dilation 1", attributes.get("dilations"))
    strides, sizes, results = attributes["strides"], source.shape[1:3], output.shape[1:3]
    padding = (0, 0)
    if attributes["padding"] == "SAME":
        missing = [
            max((r - 1) * stride + k - size, 0)
            for r, stride, k, size in zip(results, strides, kernel, sizes, strict=True)
        ]
        padding = (missing[0] // 2, missing[1] // 2)
    return Window(kernel, strides, padding, (sizes[0], sizes[1]), (results[0], results[1]))


def _convolution(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    values, weights = reader.weights(place, inputs[0], output)
    place.demand(values.shape[3] == inputs[0].shape[3], "one group", f"{inputs[0].shape[3] // values.shape[3]} groups")
    window = _window(place, (values.shape[1], values.shape[2]), inputs[0], output)
    if values.shape[1:3] == window.input_size == (1, 1):
        return Dense(replace(weights, values=values.reshape(len(values), -1)))
    return Convolution(weights, window)


def _depthwise(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    values, weights = reader.weights(place, inputs[0], output)
    window = _window(place, (values.shape[1], values.shape[2]), inputs[0], output)
    return DepthwiseConvolution(replace(weights, values=np.ascontiguousarray(values[0].transpose(2, 0, 1))), window)


def _dense(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    values, weights = reader.weights(place, inputs[0], output)
    place.demand(inputs[0].size == values.shape[1], "a single vector", inputs[0].shape)
    place.demand(place.operator.attributes.get("weights_format", 0) == 0, "weights in rows", "shuffled ones")
    return Dense(weights)


def _addition(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    shapes = [tensor.shape for tensor in inputs]
    place.demand(len(inputs) == 2, "two operands that are no constants", f"{len(inputs)}")
    place.demand(shapes == [output.shape] * 2, "two tensors of one shape", ", ".join(map(str, shapes)))
    return Addition()


def _pooling(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    _demand_same_steps(place, inputs, output)
    kind = "max" if place.operator.kind == "MAX_POOL_2D" else "average"
    return Pooling(kind, _window(place, place.operator.attributes["window"], inputs[0], output))


def _mean(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    axes = place.operator.attributes.get("axes")
    between = tuple(range(1, len(inputs[0].shape) - 1))  # of a series (T, C), time
    place.demand(len(between) in (1, 2) and axes == between, "the axes height and width, or time", axes)
    return Mean()


def _relu(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    return Relu()


def _logistic(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    _demand_probabilities(place, output)
    return Logistic()


def _demand_probabilities(place: _Place, output: Tensor) -> None:
    """softmax.cc and the fixed point of logistic.h demand this of int8 outputs."""
    steps = (output.scale, output.zero_point)
    place.demand(steps == (1 / 256, -128), "an output of scale 1/256 and zero point -128", steps)


def _softmax(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    _demand_probabilities(place, output)
    return Softmax(float(np.float32(reader.option(place.operator, "beta"))))


def _padding(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    _demand_same_steps(place, inputs, output)
    paddings = place.operator.attributes.get("paddings", ())
    none = (0, 0)
    fits = len(paddings) == 4 and paddings[0] == none and (paddings[3] == none or paddings[1] == paddings[2] == none)
    place.demand(fits, "constant padding of height and width, or of channels alone", paddings)
    if paddings[3] != none:
        positions = inputs[0].shape[1] * inputs[0].shape[2]
        place.demand(positions <= _MOST_SIZE, f"padding of channels at {_MOST_SIZE} positions at most", positions)
    return Padding(*paddings[1:])


def _reshape(reader: _Reader, place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Operation:
    _demand_same_steps(place, inputs, output)
    return Reshape()


def _concatenation(place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> Iterator[Placing]:
    """Where each input goes; concatenation.cc of TFLite has no rescaling of int8 either."""
    operator = place.operator
    _demand_same_steps(place, inputs, output)
    place.demand(len(inputs) == len(operator.inputs), "inputs that are no constants", "a constant one")
    place.demand(operator.attributes.get("activation", "NONE") == "NONE", "no activation fused", "one")
    axis = int(operator.attributes["axis"]) % len(output.shape)
    (pitch, rows), start = _fold(output, axis), 0
    for tensor in inputs:
        length, _ = _fold(tensor, axis)
        yield Placing(rows, start, length, pitch)
        start += length
    place.demand(start == pitch, "inputs that fill the output", [tensor.shape for tensor in inputs])


def _fold(tensor: Tensor, axis: int) -> tuple[int, int]:
    """Elements from an axis on, and how many times there are as many."""
    length = math.prod(tensor.shape[axis:])
    return length, tensor.size // length


def _demand_same_steps(place: _Place, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    steps = sorted({(tensor.scale, tensor.zero_point) for tensor in (*inputs, output)})
    place.demand(len(steps) == 1, "inputs and output of one scale and zero point", steps)


_RELUS = ("RELU", "RELU6", "RELU_N1_TO_1")
_OPERATIONS: dict[str, Callable[[_Reader, _Place, tuple[Tensor, ...], Tensor], Operation]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "ADD": _addition,
    "MAX_POOL_2D": _pooling,
    "AVERAGE_POOL_2D": _pooling,
    "MEAN": _mean,
    "RELU": _relu,
    "RELU6": _relu,
    "RELU_N1_TO_1": _relu,
    "SOFTMAX": _softmax,
    "LOGISTIC": _logistic,
    "PAD": _padding,
    "RESHAPE": _reshape,
}
_CONCATENATION = "CONCATENATION"
KINDS = frozenset({*_OPERATIONS, _CONCATENATION})
"""TFLite's names of the operators that C is generated for."""
