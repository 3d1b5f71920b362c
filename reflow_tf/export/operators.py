"""A .tflite file's bytes become the graph of operators that targets judge."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import bitmap_format, flatbuffer
from reflow_tf.export.constants import read_tensor
from reflow_tf.export.half_precision import is_allowed
from reflow_tf.targets.operators import Operator, OperatorGraph, Value, find_blocks

_OPERATOR = schema.BuiltinOperator
_TYPES = {code: kind.lower() for kind, code in vars(schema.TensorType).items() if isinstance(code, int)}
_PADDINGS = {code: kind for kind, code in vars(schema.Padding).items() if isinstance(code, int)}
_ACTIVATIONS = {code: kind for kind, code in vars(schema.ActivationFunctionType).items() if isinstance(code, int)}

# The part of a tensor's name that says which layer the weights of a fused operator came from.
_LAYER_OPS = {"CONV_2D": r"[Cc]onv", "DEPTHWISE_CONV_2D": r"depthwise", "FULLY_CONNECTED": r"MatMul"}
_REQUIRED = {
    "CONV_2D": ("padding", "strides", "dilations"),
    "DEPTHWISE_CONV_2D": ("padding", "strides", "dilations", "depth_multiplier"),
    "MAX_POOL_2D": ("padding", "strides", "window"),
    "AVERAGE_POOL_2D": ("padding", "strides", "window"),
    "CONCATENATION": ("axis",),
}
# Which input of an operator is a map, (n, height, width, channels); of a transposed one the first is a shape.
_OF_MAPS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 0, "MAX_POOL_2D": 0, "AVERAGE_POOL_2D": 0, "TRANSPOSE_CONV": 2}
# What may stand between the last function and the output without changing a number.
_PASSING = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST"})
# What Keras and the converter call a tensor that no layer names.
_NAMELESS = re.compile(r"(Identity|(Stateful)?PartitionedCall)[_:\d]*|arith\..*|")


def read_operators(content: bytes) -> OperatorGraph:
    """Reads the main graph of a .tflite file; the bodies of loops and branches are not looked into.

    Raises:
        InputError: `content` is not a whole .tflite file.
    """
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    with flatbuffer.reading(content):
        values = [_read_value(model, index, tensor) for index, tensor in enumerate(graph.tensors)]
        operators: list[Operator] = []
        naming = _Naming([_decode(tensor.name) for tensor in graph.tensors])
        for operator in graph.operators:
            if not _unpacks(model, operator, values):
                operators.append(_read_operator(model, len(operators), operator, naming))
        ends = _indices(graph.inputs), _indices(graph.outputs)
        return OperatorGraph(tuple(operators), tuple(values), *ends, allows_float16=is_allowed(model))


def find_last_kind(graph: OperatorGraph) -> str | None:
    """The kind of operator that computes the first output of a file, such as 'SOFTMAX'; None where nothing does."""
    made_by = {value: operator for operator in graph.operators for value in operator.outputs}
    last = made_by.get(graph.outputs[0])
    while last is not None and last.kind in _PASSING:
        last = made_by.get(last.inputs[0])
    return None if last is None else last.kind


def _read_value(model: schema.ModelT, index: int, tensor: schema.TensorT) -> Value:
    data = model.buffers[tensor.buffer].data
    constant = data is not None and len(data) > 0 and not tensor.isVariable
    dtype = flatbuffer.NUMPY_TYPES.get(tensor.type)
    num_zeros = num_negative_zeros = 0
    shape = _indices(tensor.shape)
    if constant and dtype is not None:
        stored = np.frombuffer(data, dtype)
        # A sparse tensor holds its non-zeros, and perhaps some zeros: blocks, or the one value that it must have.
        num_zeros = int(np.prod(shape, dtype=np.int64)) - int(np.count_nonzero(stored != _zero_point(tensor)))
        if dtype.kind == "f":
            num_negative_zeros = int(np.count_nonzero(np.signbit(stored) & (stored == 0)))
    value = Value(
        index=index,
        name=_decode(tensor.name),
        shape=shape,
        dtype=_TYPES.get(tensor.type, str(tensor.type)),
        constant=constant,
        storage="" if not constant else "dense" if tensor.sparsity is None else "sparse",
        num_zeros=num_zeros,
        num_negative_zeros=num_negative_zeros,
        stored_dtype=_TYPES.get(tensor.type, str(tensor.type)) if constant else "",
    )
    if constant and value.has_blocks:
        return replace(value, blocks=find_blocks(read_tensor(model, tensor) != 0))
    return value


def _zero_point(tensor: schema.TensorT) -> int:
    """The stored integer that stands for 0; filters that are quantized per channel always have 0."""
    points = None if tensor.quantization is None else tensor.quantization.zeroPoint
    return int(points[0]) if points is not None and len(points) == 1 else 0


def _unpacks(model: schema.ModelT, operator: schema.OperatorT, values: list[Value]) -> bool:
    """Whether an operator only unpacks a constant; if so, its output becomes that constant in `values`."""
    if flatbuffer.custom_name(model, operator) == bitmap_format.OPERATOR:
        return _expands(model, operator, values)
    if flatbuffer.operator_code(model, operator) not in (_OPERATOR.DENSIFY, _OPERATOR.DEQUANTIZE):
        return False
    source, target = values[operator.inputs[0]], values[operator.outputs[0]]
    if not source.constant:
        return False
    values[target.index] = Value(
        index=target.index,
        name=target.name or source.name,
        shape=target.shape,
        dtype=target.dtype,
        constant=True,
        storage=source.storage,
        num_zeros=source.num_zeros,
        num_negative_zeros=source.num_negative_zeros,
        stored_dtype=source.stored_dtype,
        blocks=source.blocks,
    )
    return True


def _expands(model: schema.ModelT, operator: schema.OperatorT, values: list[Value]) -> bool:
    """Makes constants of what a DECODE expands; always True."""
    for bits, index in zip(operator.inputs[::2], operator.outputs, strict=True):
        stored = model.buffers[model.subgraphs[0].tensors[bits].buffer].data
        target = values[index]
        values[index] = replace(
            target,
            constant=True,
            num_zeros=target.num_elements - int(np.bitwise_count(np.asarray(stored, np.uint8)).sum()),
            stored_dtype=target.dtype,
            storage="bitmap",
        )
    return True


def _read_operator(model: schema.ModelT, index: int, operator: schema.OperatorT, naming: "_Naming") -> Operator:
    kind = flatbuffer.operator_kind(model, operator)
    inputs, outputs = _indices(operator.inputs), _indices(operator.outputs)
    if kind in _OF_MAPS:
        ends = (model.subgraphs[0].tensors[index] for index in (inputs[_OF_MAPS[kind]], outputs[0]))
        if any(len(_indices(tensor.shape)) != 4 for tensor in ends):
            raise ValueError(f"{kind} of no maps")
    return Operator(
        index=index,
        kind=kind,
        name=naming.name(outputs[0], kind) if outputs else kind.lower(),
        inputs=inputs,
        outputs=outputs,
        attributes=_read_attributes(model, kind, operator),
    )


def _read_attributes(model: schema.ModelT, kind: str, operator: schema.OperatorT) -> dict[str, Any]:
    options = operator.builtinOptions
    fields = {} if options is None else vars(options)
    attributes: dict[str, Any] = {}
    if "padding" in fields:
        attributes["padding"] = _PADDINGS[fields["padding"]]
    if "fusedActivationFunction" in fields:
        attributes["activation"] = _ACTIVATIONS[fields["fusedActivationFunction"]]
    for name, height, width in (
        ("strides", "strideH", "strideW"),
        ("dilations", "dilationHFactor", "dilationWFactor"),
        ("window", "filterHeight", "filterWidth"),
    ):
        if height in fields:
            attributes[name] = (int(fields[height]), int(fields[width]))
    for name, field in (
        ("depth_multiplier", "depthMultiplier"),
        ("keep_dims", "keepDims"),
        ("keep_num_dims", "keepNumDims"),
        ("axis", "axis"),
        ("weights_format", "weightsFormat"),
        ("align_corners", "alignCorners"),
        ("half_pixel_centers", "halfPixelCenters"),
        ("block_size", "blockSize"),
        ("alpha", "alpha"),
    ):
        if field in fields:
            attributes[name] = fields[field]
    missing = [name for name in _REQUIRED.get(kind, ()) if name not in attributes]
    if missing:
        raise ValueError(f"{kind} without {', '.join(missing)}")
    return attributes | _read_arguments(model, kind, operator)


def _read_arguments(model: schema.ModelT, kind: str, operator: schema.OperatorT) -> dict[str, Any]:
    """What the kind takes as a constant second input and is an attribute all the same."""
    name = {
        "MEAN": "axes",
        "SUM": "axes",
        "REDUCE_MAX": "axes",
        "REDUCE_MIN": "axes",
        "PAD": "paddings",
        "PADV2": "paddings",
        "MIRROR_PAD": "paddings",
        "TRANSPOSE": "perm",
        "RESHAPE": "new_shape",
        "REVERSE_V2": "axes",
        "RESIZE_BILINEAR": "size",
    }.get(kind)
    inputs = _indices(operator.inputs)
    if name is None or len(inputs) < 2 or inputs[1] < 0:
        return {}
    graph = model.subgraphs[0]
    tensor = graph.tensors[inputs[1]]
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0 or tensor.type not in flatbuffer.NUMPY_TYPES:
        return {}
    values = np.frombuffer(data, flatbuffer.NUMPY_TYPES[tensor.type]).reshape(_indices(tensor.shape))
    if name == "paddings":
        return {name: tuple((int(before), int(after)) for before, after in values)}
    numbers = tuple(int(value) for value in values.reshape(-1))
    if name == "axes":
        rank = len(_indices(graph.tensors[inputs[0]].shape))
        numbers = tuple(sorted(number % rank if rank else number for number in numbers))
    return {name: numbers}


class _Naming:
    """From the name of an operator's output to the layer that a person recognises.

    The converter joins the names of all that it fused with ';'. Keras 3 traces a model once more for the export, which
    gives every layer's scope a number ('conv1' -> 'conv1_1'): where nearly all scopes have one, it is taken off.
    """

    def __init__(self, names: list[str]):
        self._names = names
        scopes = [part.split("/")[:-1] for name in names for part in name.split(";") if "/" in part]
        self._numbered = sum(any(map(_is_numbered, scope)) for scope in scopes) > 0.8 * len(scopes)
        outermost = {scope[0] for scope in scopes}
        self._model = outermost.pop() if len(outermost) == 1 else None

    def name(self, index: int, kind: str) -> str:
        parts = self._names[index].split(";")
        mark = _LAYER_OPS.get(kind)
        chosen = next((part for part in parts if mark and re.search(mark, part.rsplit("/", 1)[-1])), parts[0])
        *scopes, last = chosen.split("/")
        if not scopes:
            return kind.lower() if _NAMELESS.fullmatch(last) else last
        if scopes == [self._model]:
            return f"{self._unnumbered(scopes[0])}/{last}"  # an operation between layers
        if self._numbered:
            return self._unnumbered(next((scope for scope in reversed(scopes) if _is_numbered(scope)), scopes[-1]))
        return scopes[-1]

    def _unnumbered(self, scope: str) -> str:
        return re.sub(r"_\d+$", "", scope) if self._numbered else scope


def _is_numbered(scope: str) -> bool:
    return re.search(r"_\d+$", scope) is not None


def _decode(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace")


def _indices(numbers: Any) -> tuple[int, ...]:
    return () if numbers is None else tuple(int(number) for number in numbers)
