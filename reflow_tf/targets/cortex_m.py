"""Cortex-M as a target: generated C that skips zeros in int8 kernels, so that they save instructions and flash.

Counted under QEMU, sparse loops beat dense ones where about two thirds of a kernel are zero; the generator
(`export.c_kernels`) stores each layer in whichever way takes fewer instructions.
"""

import dataclasses

from reflow_tf.sparsity.budget import Price
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.patterns import Pattern
from reflow_tf.targets.operators import OperatorGraph, group_by_kind, name_first
from reflow_tf.targets.target import Blocker, Tariff, Verdict

_FILTERED = frozenset({"CONV_2D", "FULLY_CONNECTED"})  # have sparse kernels
# Those that `export.c_kernels.reading` reads; a test holds the two against each other.
OPERATORS = frozenset(
    {
        *("ADD", "AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "MEAN", "PAD"),
        *("RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "SOFTMAX"),
    }
)
_INDEX_BYTES = 1  # beside each weight that is kept


@dataclasses.dataclass(frozen=True)
class CortexM:
    """Rewards zeros in the int8 kernels of convolutions and fully connected layers, with instructions and flash."""

    name: str = "cortex_m"
    description: str = (
        "Cortex-M: generated C skips zeros in int8 convolutions and fully connected layers, which saves instructions "
        "and flash."
    )
    rewrite: str = "none"
    quantize: str = "int8"
    storage: str = "dense"
    runtime: str = "litert"
    is_microcontroller: bool = True
    promises_speed: bool = False

    def obstacle(self, quantize: str) -> str | None:
        return None if quantize == "int8" else "C is generated for int8 networks, as microcontrollers compute them"

    def caution(self, pattern: Pattern) -> str | None:
        del pattern
        return None

    def objection(self, spec: LayerSpec) -> str | None:
        if spec.kind.value.startswith("depthwise"):
            return "depthwise kernels are so short that skipping their zeros gains nothing on a Cortex-M"
        return None

    def price(self, graph: OperatorGraph) -> Tariff:
        """Bytes: a weight that is kept has an index beside it, unless its whole kernel is stored dense."""
        prices = {
            operator.inputs[1]: Price(kept=1.0 + _INDEX_BYTES, most=1.0)
            for operator in graph.operators
            if operator.kind in _FILTERED and graph.values[operator.inputs[1]].stored_dtype == "int8"
        }
        return Tariff(prices)

    def judge(self, graph: OperatorGraph) -> Verdict:
        """Whether C can be generated for the file: int8 throughout, of the operators that have kernels."""
        blockers = (*_judge_types(graph), *_judge_operators(graph))
        if blockers:
            statement = "No C can be generated for this file as it is."
        else:
            statement = "C for Cortex-M can be generated from this file; zeros in its kernels are skipped."
        return Verdict(not blockers, not blockers, (), blockers, None, statement)


def _judge_types(graph: OperatorGraph) -> tuple[Blocker, ...]:
    others = [
        operator
        for operator in graph.operators
        if operator.outputs and graph.values[operator.outputs[0]].dtype != "int8" and operator.kind in OPERATORS
    ]
    if not others:
        return ()
    dtype = graph.values[others[0].outputs[0]].dtype
    remedy = "--quantize=int8, which --target=cortex_m does by itself; operators that have no int8 form need replacing"
    return (Blocker(name_first(others), others[0].kind, f"computes in {dtype}, and C is generated for int8", remedy),)


def _judge_operators(graph: OperatorGraph) -> tuple[Blocker, ...]:
    missing = group_by_kind(operator for operator in graph.operators if operator.kind not in OPERATORS)
    return tuple(
        Blocker(
            name_first(operators),
            kind,
            f"is a {kind}, for which there is no C kernel",
            f"replace the layer by one of {', '.join(sorted(OPERATORS))}, or use --target=tflm",
        )
        for kind, operators in missing.items()
    )
