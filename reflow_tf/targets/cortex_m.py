"""Cortex-M as a target: generated C that skips zeros in int8 kernels, so that they save instructions and flash.

Counted under QEMU, sparse loops beat dense ones where about two thirds of a kernel are zero; the generator
(`export.c_kernels`) stores each layer in whichever way takes fewer instructions.
"""

import dataclasses

from reflow_tf.sparsity.budget import Price
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.targets.microcontroller import Microcontroller, refuse_kinds
from reflow_tf.targets.operators import OperatorGraph, output_dtype
from reflow_tf.targets.target import Blocker, Verdict

_FILTERED = frozenset({"CONV_2D", "FULLY_CONNECTED"})  # have sparse kernels
# Those that `export.c_kernels.reading` reads; a test holds the two against each other.
OPERATORS = frozenset(
    {
        *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LOGISTIC"),
        *("MAX_POOL_2D", "MEAN", "PAD", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "SOFTMAX"),
    }
)
_INDEX_BYTES = 1  # beside each weight that is kept
_WEIGHT = Price(kept=1.0 + _INDEX_BYTES, most=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CortexM(Microcontroller):
    """Rewards zeros in the int8 kernels of convolutions and fully connected layers, with instructions and flash.

    A price is in bytes: a weight that is kept has an index beside it, unless its whole kernel is stored dense.
    """

    name: str = "cortex_m"
    description: str = (
        "Cortex-M: generated C skips zeros in int8 convolutions and fully connected layers, which saves instructions "
        "and flash."
    )
    channel_multiple: int = 4
    why_int8: str = "C is generated for int8 networks, as microcontrollers compute them"
    filtered: frozenset[str] = _FILTERED
    weight: Price = _WEIGHT

    def objection(self, spec: LayerSpec) -> str | None:
        if spec.kind.value.startswith("depthwise"):
            return "depthwise kernels are so short that skipping their zeros gains nothing on a Cortex-M"
        return None

    def judge(self, graph: OperatorGraph) -> Verdict:
        """Whether C can be generated for the file: int8 throughout, of the operators that have kernels."""
        blockers = (*self._judge_types(graph), *_judge_operators(graph))
        if blockers:
            statement = "No C can be generated for this file as it is."
        else:
            statement = "C for Cortex-M can be generated from this file; zeros in its kernels are skipped."
        return Verdict(not blockers, not blockers, (), blockers, statement)

    def _judge_types(self, graph: OperatorGraph) -> tuple[Blocker, ...]:
        others = [
            operator
            for operator in graph.operators
            if operator.kind in OPERATORS and output_dtype(operator, graph) not in ("int8", "")
        ]
        computes = output_dtype(others[0], graph) if others else ""
        return self.refuse_types(others, f"computes in {computes}, and C is generated for int8")


def _judge_operators(graph: OperatorGraph) -> tuple[Blocker, ...]:
    return refuse_kinds(
        graph.operators,
        OPERATORS,
        lambda kind: f"is a {kind}, for which there is no C kernel",
        f"replace the layer by one of {', '.join(sorted(OPERATORS))}, or use --target=tflm",
    )
