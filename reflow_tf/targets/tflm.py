"""TensorFlow Lite for Microcontrollers as a target: flash is what zeros save there, in int8 and as bitmaps.

TFLM has no sparse kernels, so nothing gets faster. Its operator DECODE expands a tensor that is stored as a bit for
each weight and the weights that are not zero (see `export.bitmap_format`).
"""

import dataclasses

from reflow_tf.sparsity.budget import Price
from reflow_tf.targets.microcontroller import Microcontroller, refuse_kinds
from reflow_tf.targets.operators import OperatorGraph, output_dtype
from reflow_tf.targets.target import Blocker, Verdict

_FILTERED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})  # read bitmaps: export.bitmap_storage
_FLOATS = ("float32", "float16")
_BIT = 1 / 8
# What MicroMutableOpResolver can register: tensorflow/lite/micro/micro_mutable_op_resolver.h of tflite-micro 90b983c2b.
_NAMES = """
ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS
BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED
GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG
NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE
RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND
SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE
TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
"""
OPERATORS = frozenset(_NAMES.split())
_WEIGHT = Price(kept=1.0, most=1.0 - _BIT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFLM(Microcontroller):
    """Rewards zeros in the int8 filters of convolutions and fully connected layers, with flash.

    A price is in bytes beyond the bit that every weight of a bitmap costs, zero or not.
    """

    name: str = "tflm"
    description: str = (
        "TensorFlow Lite for Microcontrollers: int8 filters are stored as bitmaps, so that zeros save flash; nothing "
        "gets faster."
    )
    storage: str = "bitmap"
    channel_multiple: int = 4
    runtime: str = "tflm"
    why_int8: str = "microcontrollers compute in int8, and TFLM has neither float16 nor dynamic-range kernels"
    filtered: frozenset[str] = _FILTERED
    weight: Price = _WEIGHT

    def judge(self, graph: OperatorGraph) -> Verdict:
        """Whether TFLM runs the file and stores zeros small: int8 throughout, its operators, dense or bitmaps."""
        blockers = (*self._judge_types(graph), *_judge_storage(graph), *_judge_operators(graph))
        if blockers:
            statement = "TFLM cannot run this file as it is, or saves nothing by its zeros."
        else:
            statement = "TFLM runs this file; zeros in its filters save flash, and no time."
        return Verdict(not blockers, not blockers, (), blockers, statement)

    def _judge_types(self, graph: OperatorGraph) -> tuple[Blocker, ...]:
        floats = [operator for operator in graph.operators if output_dtype(operator, graph) in _FLOATS]
        computes = output_dtype(floats[0], graph) if floats else ""
        return self.refuse_types(floats, f"computes in {computes}, and a microcontroller file must be int8 throughout")


def _judge_storage(graph: OperatorGraph) -> tuple[Blocker, ...]:
    if not any(value.storage == "sparse" for value in graph.values):
        return ()
    return (
        Blocker(
            "", "DENSIFY", "stores weights as sparse tensors, and TFLM has no DENSIFY", "--target=tflm stores bitmaps"
        ),
    )


def _judge_operators(graph: OperatorGraph) -> tuple[Blocker, ...]:
    return refuse_kinds(
        graph.operators,
        OPERATORS,
        lambda kind: f"is a {kind}, which TFLM does not have",
        "replace the layer by one whose operators TFLM has, or register a kernel of your own",
    )
