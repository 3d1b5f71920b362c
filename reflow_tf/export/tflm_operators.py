"""Operators that TFLM computes otherwise than TFLite does, or lacks, replaced by what both compute the same."""

import copy
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.constants import read_tensor

_OPERATOR = schema.BuiltinOperator
_MOST = 127  # of an int8


def settle_operators(content: bytes) -> bytes:
    """The same int8 network, in which TFLM, too, takes every RELU6 for what it is, and every index of an embedding.

    TFLM's RELU6 clamps in the units of its input and passes the numbers on, although its output has units of its own
    (Relu6Eval in kernels/activations.cc of tflite-micro); its RELU rescales first, as TFLite's two do. So RELU takes
    its place, and MINIMUM behind it where the output's int8 goes beyond 6. A RELU6 that is fused into a convolution is
    another matter, and right. Measured: in five networks with one of its own, 9 to 100 % of all outputs were wrong.

    Keras counts a negative index of an embedding from the table's end, by a SELECT, which TFLM lacks. The indices go
    into GATHER as they are: of those that are not negative nothing changes, and TFLM's GATHER refuses the others.

    Args:
        content: a .tflite file.

    Returns:
        The new file, or the very same bytes where nothing is to be done.

    Raises:
        InputError: `content` is not a .tflite file.
    """
    model = flatbuffer.parse(content)
    changed = False
    with flatbuffer.reading(content):
        for graph in model.subgraphs:
            operators = []
            for operator in graph.operators:
                settled = _settle(model, graph, operator)
                operators += settled
                changed |= settled != [operator]
            graph.operators = operators
            changed |= _take_indices_as_they_are(model, graph)
    return flatbuffer.serialize(model, size_hint=len(content)) if changed else content


def _settle(model: schema.ModelT, graph: schema.SubGraphT, operator: schema.OperatorT) -> list[schema.OperatorT]:
    if flatbuffer.operator_code(model, operator) != _OPERATOR.RELU6:
        return [operator]
    source, target = (graph.tensors[indices[0]] for indices in (operator.inputs, operator.outputs))
    if source.type != schema.TensorType.INT8 or _units(source) == _units(target):
        return [operator]
    relu = copy.copy(operator)
    relu.opcodeIndex = _find_code(model, _OPERATOR.RELU)
    scale, zero_point = _units(target)
    six = int(np.round(6 / scale)) + zero_point
    if six >= _MOST:
        return [relu]
    unclamped, limit = copy.copy(target), copy.copy(target)
    unclamped.name = (target.name or b"") + b"/relu"
    limit.name, limit.shape, limit.buffer = (target.name or b"") + b"/six", [1], len(model.buffers)
    model.buffers.append(schema.BufferT(data=np.array([six], np.int8).view(np.uint8)))
    graph.tensors += [unclamped, limit]
    minimum = schema.OperatorT(
        opcodeIndex=_find_code(model, _OPERATOR.MINIMUM),
        inputs=[len(graph.tensors) - 2, len(graph.tensors) - 1],
        outputs=operator.outputs,
        builtinOptionsType=schema.BuiltinOptions.MaximumMinimumOptions,
        builtinOptions=schema.MaximumMinimumOptionsT(),
    )
    relu.outputs = [len(graph.tensors) - 2]
    return [relu, minimum]


def _take_indices_as_they_are(model: schema.ModelT, graph: schema.SubGraphT) -> bool:
    """Whether any could be; what made others of them goes, where nothing else reads it."""
    makers = {int(operator.outputs[0]): operator for operator in graph.operators if len(operator.outputs)}
    steps: list[schema.OperatorT] = []
    for operator in graph.operators:
        if flatbuffer.operator_code(model, operator) != _OPERATOR.GATHER:
            continue
        found = _find_wrapping(model, graph, makers, operator)
        if found:
            operator.inputs = [operator.inputs[0], found[0].inputs[0]]
            steps += found
    for step in reversed(steps):  # the last one reads the others
        read = {int(index) for operator in graph.operators for index in operator.inputs} | set(map(int, graph.outputs))
        graph.operators = [operator for operator in graph.operators if operator is not step or step.outputs[0] in read]
    return bool(steps)


def _find_wrapping(
    model: schema.ModelT, graph: schema.SubGraphT, makers: dict[int, schema.OperatorT], gather: schema.OperatorT
) -> Sequence[schema.OperatorT]:
    """LESS, ADD and SELECT of `where(x < 0, x + rows, x)` before a GATHER along the first axis; else ()."""

    def made(index: int, *kinds: int) -> schema.OperatorT | None:
        maker = makers.get(int(index))
        return maker if maker is not None and flatbuffer.operator_code(model, maker) in kinds else None

    def constant(index: int) -> int | None:
        tensor = graph.tensors[index]
        is_constant = model.buffers[tensor.buffer].data is not None
        values = read_tensor(model, tensor) if is_constant else np.zeros(0)
        return int(values.ravel()[0]) if values.size == 1 else None

    select = made(gather.inputs[1], _OPERATOR.SELECT, _OPERATOR.SELECT_V2)
    if select is None or gather.builtinOptions is None or gather.builtinOptions.axis:
        return ()
    condition, wrapped, index = select.inputs
    less, add = made(condition, _OPERATOR.LESS), made(wrapped, _OPERATOR.ADD)
    if less is None or add is None or not less.inputs[0] == add.inputs[0] == index:
        return ()
    rows = graph.tensors[gather.inputs[0]].shape[0]
    is_wrapping = (constant(less.inputs[1]), constant(add.inputs[1])) == (0, rows)
    return (less, add, select) if is_wrapping else ()


def _units(tensor: schema.TensorT) -> tuple[float, int]:
    """Scale and zero point."""
    return float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])


def _find_code(model: schema.ModelT, builtin: int) -> int:
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            return index
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=builtin, deprecatedBuiltinCode=builtin, version=1))
    return len(model.operatorCodes) - 1
