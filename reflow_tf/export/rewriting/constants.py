"""Constants of elementwise operators get four axes, as XNNPACK demands of both operands inside a sparse cluster.

XNNPACK src/subgraph.c, `xnn_check_nchw_compatibility`, takes ADD and MUL only, both operands with 4 axes, a constant
one with at most one axis longer than 1. It looks at the shape of the first operand for both of them, so a constant
must be the first one to pass. x - c is x + (-c), x / c is x * (1/c) where 1/c is exact: where c is a power of two.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.outcome import Applied, Refused
from reflow_tf.export.rewriting.region import find_behind_stems

_NAME = "constants"
_KINDS = frozenset({"ADD", "MUL", "SUB", "DIV"})


def widen_constants(graph: EditableGraph) -> list[Applied | Refused]:
    """Spells ADD, MUL, SUB and DIV by a number, or by one a channel, so that XNNPACK's sparse kernels take them."""
    widened: list[str] = []
    refused: list[Applied | Refused] = []
    for operator in find_behind_stems(graph):
        slot = _find_constant(graph, operator)
        if slot is None:
            continue
        reason = _find_objection(graph, operator, slot)
        if reason:
            refused.append(Refused(_NAME, graph.name(operator), reason))
        elif _widen(graph, operator, slot):
            widened.append(graph.name(operator))
    if not widened:
        return refused
    statement = f"The constants of {len(widened)} elementwise operators are stored with 4 axes, as their first operand."
    return [Applied(_NAME, tuple(dict.fromkeys(widened)), statement), *refused]


def _find_constant(graph: EditableGraph, operator: schema.OperatorT) -> int | None:
    """The slot of the constant that is combined with an image, if it is a number or a vector of channels."""
    if graph.kind(operator) not in _KINDS or len(graph.data_inputs(operator)) != 1:
        return None
    slot = 0 if graph.is_constant(operator.inputs[0]) else 1
    index, other = operator.inputs[slot], operator.inputs[1 - slot]
    shape = graph.shape(index)
    is_vector = len(shape) <= 4 and all(size == 1 for size in shape[:-1])
    is_stored = graph.constant(index) is not None and graph.is_float(index)
    return slot if is_vector and is_stored and graph.is_float(other) and len(graph.shape(other)) == 4 else None


def _find_objection(graph: EditableGraph, operator: schema.OperatorT, slot: int) -> str | None:
    kind = graph.kind(operator)
    if kind in ("SUB", "DIV") and slot == 0:
        return f"{kind} with the constant in front: XNNPACK's sparse clusters know ADD and MUL only."
    values = np.asarray(graph.constant(operator.inputs[slot]))
    if values.dtype.kind != "f":
        return f"The constant is stored as {values.dtype.name}, and quantized numbers cannot be reshaped or inverted."
    if kind == "DIV":
        mantissas, exponents = np.frexp(values)
        # Neither the reciprocal nor its rounding may leave the normal numbers of the type that stores it.
        most = -np.finfo(values.dtype).minexp - 2
        if (np.abs(mantissas) != 0.5).any() or (np.abs(exponents) > most).any():
            return "Only DIV by powers of two is a MUL exactly, and XNNPACK's sparse clusters know no DIV."
    return None


def _widen(graph: EditableGraph, operator: schema.OperatorT, slot: int) -> bool:
    kind, shape = graph.kind(operator), graph.shape(operator.inputs[slot])
    if kind in ("ADD", "MUL") and len(shape) == 4 and slot == 0:
        return False
    size = shape[-1] if shape else 1
    match kind:
        case "SUB":
            graph.change_constant(operator, slot, lambda old: (-old).reshape(1, 1, 1, size), "-x, 4 axes")
        case "DIV":
            graph.change_constant(operator, slot, lambda old: (1 / old).reshape(1, 1, 1, size), "1/x, 4 axes")
        case _:
            graph.change_constant(operator, slot, lambda old: old.reshape(1, 1, 1, size), "4 axes")
    operator.inputs = [operator.inputs[slot], operator.inputs[1 - slot]]
    activation = operator.builtinOptions.fusedActivationFunction
    if kind == "SUB":
        graph.turn_into(operator, "ADD", schema.AddOptionsT(fusedActivationFunction=activation))
    elif kind == "DIV":
        graph.turn_into(operator, "MUL", schema.MulOptionsT(fusedActivationFunction=activation))
    return True
