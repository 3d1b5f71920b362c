"""Which kernels a Keras model has, and what each of them computes."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import keras
import numpy as np
from keras import layers

from reflow_tf.models.maps import MapGraph, find_heads, find_on_maps
from reflow_tf.models.precision import read_wide
from reflow_tf.models.walking import PlacedLayer, walk
from reflow_tf.sparsity.layers import Kind, LayerSpec, Skipped

_ELEMENTWISE = (
    *(layers.PReLU, layers.LayerNormalization, layers.GroupNormalization, layers.RMSNormalization),
    layers.BatchNormalization,
)


@dataclasses.dataclass(frozen=True)
class KernelMap:
    """The kernels of one model.

    Attributes:
        specs: one for each kernel, in the order of the walk.
        variables: path of the spec -> the Keras variable that holds the kernel.
        skipped: weight matrices for which there is no rule.
    """

    specs: tuple[LayerSpec, ...]
    variables: Mapping[str, keras.Variable]
    skipped: tuple[Skipped, ...]

    @functools.cached_property
    def by_variable(self) -> Mapping[int, LayerSpec]:
        """Id of a kernel's variable -> the spec."""
        return {id(self.variables[spec.path]): spec for spec in self.specs}

    def read(self) -> dict[str, np.ndarray]:
        """Path -> a copy of the kernel in canonical layout, float32 or float64."""
        return {s.path: s.to_canonical(read_wide(self.variables[s.path])) for s in self.specs}


def find_kernels(model: keras.Model) -> KernelMap:
    """Describes every kernel below the model; a kernel that two layers share counts once.

    Raises:
        InputError: the model was never built.
    """
    specs, variables, skipped = [], {}, []
    seen: set[int] = set()
    graph = MapGraph(model)
    on_maps, heads = find_on_maps(graph), find_heads(graph)
    for placed in walk(model):
        rules = {id(rule[0]): rule for rule in _kernel_rules(placed.layer)}
        for variable in placed.layer._trainable_variables:
            if id(variable) in seen or len(variable.shape) < 2:
                continue
            seen.add(id(variable))
            path = f"{placed.path}/{variable.name}"
            if id(variable) not in rules and _is_no_kernel(placed.layer, variable, bool(rules)):
                continue
            if reason := _no_rule(placed, variable, id(variable) in rules):
                skipped.append(Skipped(path, reason))
                continue
            _, kind, output_axes, input_axes = rules[id(variable)]
            if id(placed.layer) in on_maps:
                kind = Kind.MAP_DENSE
            elif kind is Kind.POINTWISE_CONV and id(placed.layer) in heads:
                kind = Kind.HEAD_CONV
            specs.append(LayerSpec(path, kind, tuple(variable.shape), output_axes, input_axes))
            variables[path] = variable
    return KernelMap(tuple(specs), variables, tuple(skipped))


def _is_no_kernel(layer: keras.Layer, variable: keras.Variable, has_kernels: bool) -> bool:
    """Whether a weight of two axes or more is added, or scales element by element: a bias of a gate or head, a slope.

    Args:
        layer: owns the variable.
        variable: no rule calls it a kernel.
        has_kernels: the layer has others that are; what it keeps beside them are biases, but for LoRA's factors.
    """
    if has_kernels:
        return not variable.name.startswith("lora_")
    return isinstance(layer, _ELEMENTWISE) or "bias" in variable.name.split("_")


def _no_rule(placed: PlacedLayer, variable: keras.Variable, known: bool) -> str | None:
    if isinstance(placed.layer, layers.Embedding):
        return "an embedding is a lookup table: its zeros save no arithmetic"
    if not known:
        return f"no rule says which axes of a weight of {type(placed.layer).__name__} are outputs and which are inputs"
    if not keras.backend.is_float_dtype(variable.dtype):
        return f"quantized to {variable.dtype}: prune before quantizing"
    return None


def _kernel_rules(layer: keras.Layer) -> Iterator[tuple[keras.Variable, Kind, tuple[int, ...], tuple[int, ...]]]:
    """Yields (variable, kind, output axes, input axes) for each kernel that the layer itself owns."""
    match layer:
        case layers.SeparableConv1D() | layers.SeparableConv2D():
            rank = layer.rank
            yield layer.depthwise_kernel, Kind.DEPTHWISE_CONV, (rank, rank + 1), ()
            # The layer's stride belongs to its depthwise half; the 1x1 half always has stride 1.
            kind = Kind.POINTWISE_CONV if rank == 2 else Kind.CONV
            yield layer.pointwise_kernel, kind, (rank + 1,), (rank,)
        case layers.DepthwiseConv1D() | layers.DepthwiseConv2D():
            yield layer.kernel, Kind.DEPTHWISE_CONV, (layer.rank, layer.rank + 1), ()
        case layers.Conv1DTranspose() | layers.Conv2DTranspose() | layers.Conv3DTranspose():
            yield layer.kernel, Kind.TRANSPOSED_CONV, (layer.rank,), (layer.rank + 1,)
        case layers.Conv1D() | layers.Conv2D() | layers.Conv3D():
            yield layer._kernel, _conv_kind(layer), (layer.rank + 1,), (layer.rank,)
        case layers.Dense():
            yield layer._kernel, Kind.DENSE, (1,), (0,)
        case layers.EinsumDense():
            yield (layer._kernel, Kind.DENSE, *_einsum_axes(layer.equation, len(layer._kernel.shape)))
        case layers.LSTMCell() | layers.GRUCell() | layers.SimpleRNNCell():
            yield layer.kernel, Kind.RECURRENT, (1,), (0,)
            yield layer.recurrent_kernel, Kind.RECURRENT, (1,), (0,)
        case _ if type(layer).__name__ == "ConvLSTMCell" and hasattr(layer, "recurrent_kernel"):
            rank = len(layer.kernel.shape) - 2
            yield layer.kernel, Kind.RECURRENT, (rank + 1,), (rank,)
            yield layer.recurrent_kernel, Kind.RECURRENT, (rank + 1,), (rank,)


def _conv_kind(layer: keras.Layer) -> Kind:
    if layer.groups > 1:
        return Kind.GROUPED_CONV
    if layer.rank == 2 and set(layer.kernel_size) == set(layer.strides) == {1}:
        return Kind.POINTWISE_CONV
    return Kind.CONV


def _einsum_axes(equation: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel axes that appear in the result number the outputs; the others are summed over."""
    operands, result = equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1][-rank:]
    outputs = tuple(axis for axis, letter in enumerate(kernel) if letter in result)
    return outputs, tuple(axis for axis in range(rank) if axis not in outputs)
