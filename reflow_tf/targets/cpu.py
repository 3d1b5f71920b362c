"""Any CPU that runs LiteRT, with the dense kernels that all of them have: what counts is work, in small numbers."""

import dataclasses
from collections.abc import Iterator

from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.targets.operators import Operator, OperatorGraph, group_by_kind, name_first, output_dtype
from reflow_tf.targets.target import Blocker, HardwareTarget, Tariff, Verdict

_FLOATS = frozenset({"float32", "float16"})
_ENDS = frozenset({"QUANTIZE", "DEQUANTIZE"})
_STATEMENTS = {
    "int8": "CPUs run this file in int8, with dense kernels.",
    "mixed": "CPUs run part of this file in int8 and part of it in float32.",
    "hybrid": "CPUs run this file in float32 or with weights in int8 alone; int8 throughout is faster.",
    "float16": "CPUs that have float16 arithmetic (ARMv8.2 and newer) run this file in float16, others in float32.",
    "float32": "CPUs run this file in float32; int8 and, on ARMv8.2 and newer, float16 are faster on most of them.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CPU(HardwareTarget):
    """Rewards fewer channels and int8, on phones, boards and in browsers alike; zeros gain nothing."""

    name: str = "cpu"
    description: str = (
        "LiteRT's dense kernels on any CPU: int8, and channels that are removed (--pattern=channel --max_macs=SHARE), "
        "make a file faster there; zeros do not."
    )
    quantize: str = "int8"
    io: str = "float"

    def objection(self, spec: LayerSpec) -> str | None:
        del spec
        return "dense kernels multiply by zero as by any other number; removed channels (--max_macs) gain something"

    def price(self, graph: OperatorGraph) -> Tariff:
        """No zero saves anything."""
        del graph
        return Tariff({})

    def judge(self, graph: OperatorGraph) -> Verdict:
        """Says in which numbers the file computes, and in an int8 file, what does not in int8."""
        numbers = _find_numbers(graph)
        blockers = tuple(_refuse_floats(graph)) if numbers == "mixed" else ()
        return Verdict(not blockers, True, (), blockers, _STATEMENTS[numbers])


def _find_numbers(graph: OperatorGraph) -> str:
    """A key of `_STATEMENTS`."""
    dtypes = {output_dtype(operator, graph) for operator in _inner(graph)}
    if "int8" in dtypes:
        return "mixed" if dtypes & _FLOATS else "int8"
    if graph.allows_float16:
        return "float16"
    return "hybrid" if any(value.stored_dtype == "int8" for value in graph.values) else "float32"


def _inner(graph: OperatorGraph) -> list[Operator]:
    """All but those that convert between numbers."""
    return [operator for operator in graph.operators if operator.kind not in _ENDS]


def _refuse_floats(graph: OperatorGraph) -> Iterator[Blocker]:
    floats = (operator for operator in _inner(graph) if output_dtype(operator, graph) in _FLOATS)
    for kind, found in group_by_kind(floats).items():
        yield Blocker(
            operator=name_first(found),
            kind=kind,
            reason="has no int8 form in TFLite and computes in float32, with conversions before and after it",
            remedy="replace it by what has one, such as ReLU6 or hard swish for other activations",
        )
