"""Arm's Ethos-U as a target: its compiler, Vela, compresses the weights of int8 files, and zeros take next to nothing.

Nothing is needed for that but zeros: no pattern, and dense storage. Time is saved where reading the weights is what
takes it, which `runtimes.vela` has Vela estimate for a file; nothing is promised here.
"""

import dataclasses

from reflow_tf.sparsity.budget import Price
from reflow_tf.sparsity.patterns import NM, Pattern
from reflow_tf.targets.microcontroller import Microcontroller, refuse_kinds
from reflow_tf.targets.operators import ABSENT, Operator, OperatorGraph
from reflow_tf.targets.target import Blocker, Verdict

ACCELERATORS = (
    *("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512"),
    *("ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048"),
)
DEFAULT_ACCELERATOR = "ethos-u55-128"
_FILTERED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})  # input 1: weights
_FLOATS = ("float32", "float16")
_FLOOR, _KEPT = 0.03, 1.2  # bytes of any weight, and of one that is kept: see EthosU
# What Vela 5.2.0 can place on the NPU (`vela --supported-ops-report`); each with conditions on shapes and parameters
# that Vela alone decides.
_NAMES = """
ABS ADD ARG_MAX AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D ELU EXP EXPAND_DIMS
FULLY_CONNECTED GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG PACK PAD
PADV2 PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR
RESIZE_NEAREST_NEIGHBOR REVERSE_V2 RSQRT SLICE SOFTMAX SPLIT SPLIT_V SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM
TANH TILE TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK
"""
_NAMES_U85 = """
ASSIGN_VARIABLE CAST DIV EQUAL GATHER GREATER GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND LOGICAL_NOT LOGICAL_OR
NOT_EQUAL READ_VARIABLE REDUCE_ALL REDUCE_ANY SCATTER_ND SELECT SELECT_V2
"""
OPERATORS = frozenset(_NAMES.split())  # of the U55, the U65 and the U85
U85_OPERATORS = frozenset(_NAMES_U85.split())  # of the U85 alone
_WEIGHT = Price(kept=_KEPT, most=1.0 - _FLOOR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EthosU(Microcontroller):
    """Rewards zeros in every int8 kernel, with flash.

    `why_int8` was measured: of a float32 and of a float16 file, Vela 5.2.0 leaves every operator to the CPU.

    A price is in bytes beyond those that a weight takes even if it is zero. Vela's compressed weights, over all
    weights, come to min(0.03 + 1.2 (1 - sparsity), 1) bytes: least squares over layers with 30 % of zeros and more.
    Measured with Vela 5.2.0 (ethos-u55-128; ethos-u85-256 within 0.02 from 50 % on): layers of 64 and more input
    channels in a network with normal, Laplace and uniform weights, pruned by magnitude, at random and 2:4, and those of
    MobileNetV2 with over 20,000 weights; means of 24 to 59 layers.

        sparsity  0.01   0.25   0.50   0.65   0.80   0.90   0.95   0.99
        bytes     0.98   0.95   0.62   0.47   0.29   0.16   0.08   0.03
        form      1.00   0.93   0.63   0.45   0.27   0.15   0.09   0.04

    Layers of few channels are padded and take more, 1.2 to 1.5 bytes dense; scales and bias, 10 bytes a channel, are
    not in it.
    """

    name: str = "ethos_u"
    description: str = (
        "Arm Ethos-U: its compiler compresses zeros in every int8 kernel, which saves flash, and time where it is "
        "reading the weights that takes it."
    )
    why_int8: str = (
        "an Ethos-U computes in int8 and leaves operators in floating point to the CPU, so zeros gain nothing"
    )
    filtered: frozenset[str] = _FILTERED
    weight: Price = _WEIGHT

    def find_weights(self, graph: OperatorGraph) -> frozenset[int]:
        """The constants that Vela compresses: int8, dense, and read as weights by what computes in int8."""
        return frozenset(
            operator.inputs[1]
            for operator in graph.operators
            if operator.kind in self.filtered
            and not _touches_floats(operator, graph)
            and (value := graph.values[operator.inputs[1]]).constant
            and (value.stored_dtype, value.storage) == ("int8", "dense")
        )

    def caution(self, pattern: Pattern) -> str | None:
        """Only the U85 skips zeros, two of four input channels; Vela finds by itself which layers have them.

        Measured with Vela 5.2.0 on four convolutions at 32x32 that computing bounds, half of the weights zero:
        ethos-u85-256 1,423,178 cycles unstructured, 873,412 as 2:4; ethos-u55-128 1,871,908 and 1,872,276. MobileNetV2
        at 64x64 waits for its memory instead: ethos-u85-256 419,321 and 422,846. Depthwise kernels never run as 2:4.
        """
        if not isinstance(pattern, NM):
            return None
        if not _is_2_of_4(pattern):
            return (
                f"Vela knows 2:4 on the U85 alone, and {pattern} is not that: it is compressed as any other zeros are."
            )
        return (
            "Two zeros of four: the U85 alone skips them. Vela's estimate fell from 1.42 to 0.87 million cycles on "
            "wide convolutions, and not at all on MobileNetV2 at 64x64, which waits for memory. The U55 and the U65 "
            "only compress them, as they do any zeros."
        )

    def judge(self, graph: OperatorGraph) -> Verdict:
        """Whether the NPU runs any of the file's kernels, compressed; and what it leaves to the CPU.

        As far as types and kinds of operators tell: Vela has conditions on shapes and parameters besides, and has the
        last word.
        """
        undense = _judge_storage(graph)
        blockers = (*undense, *self._judge_types(graph), *_judge_operators(graph))
        eligible = not undense and bool(self.find_weights(graph))
        if not eligible:
            statement = "An Ethos-U compresses no weights of this file as it is."
        elif blockers:
            statement = "An Ethos-U runs this file and compresses its zeros, but not all of it."
        else:
            statement = "An Ethos-U runs this file and compresses its zeros; Vela has the last word on each operator."
        return Verdict(eligible, eligible, (), blockers, statement)

    def _judge_types(self, graph: OperatorGraph) -> tuple[Blocker, ...]:
        floats = (operator for operator in graph.operators if _touches_floats(operator, graph))
        return self.refuse_types(floats, "reads or writes floating point, which an Ethos-U leaves to the CPU")


def _is_2_of_4(pattern: NM) -> bool:
    """Whether any four neighbouring input channels hold at most two weights that are kept."""
    return (pattern.n, pattern.m) == (1, 2) or (pattern.n <= 2 and pattern.m % 4 == 0)


def _judge_storage(graph: OperatorGraph) -> tuple[Blocker, ...]:
    kinds = {"sparse": "DENSIFY", "bitmap": "TFLM_DECODE"}
    return tuple(
        Blocker("", kind, f"stores weights {storage}, and Vela compresses dense ones alone", "--target=ethos_u does so")
        for storage, kind in kinds.items()
        if any(value.storage == storage for value in graph.values)
    )


def _judge_operators(graph: OperatorGraph) -> tuple[Blocker, ...]:
    return refuse_kinds(
        (operator for operator in graph.operators if not _touches_floats(operator, graph)),
        OPERATORS,
        lambda kind: (
            f"is a {kind}, which {'the U55 and the U65 leave' if kind in U85_OPERATORS else 'Vela leaves'} to the CPU"
        ),
        "replace the layer by one that the NPU has, or accept that the CPU runs it",
    )


def _touches_floats(operator: Operator, graph: OperatorGraph) -> bool:
    values = (graph.values[index] for index in (*operator.inputs, *operator.outputs) if index != ABSENT)
    return any(value.dtype in _FLOATS for value in values)
