"""TensorFlow Lite for Microcontrollers as a target: flash is what zeros save there, in int8 and as bitmaps.

TFLM has no sparse kernels, so nothing gets faster. Its operator DECODE expands a tensor that is stored as a bit for
each weight and the weights that are not zero (see `export.bitmap_format`).
"""

import dataclasses

from reflow_tf.sparsity.budget import Price
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.patterns import Pattern
from reflow_tf.targets.operators import Operator, OperatorGraph, group_by_kind, name_first
from reflow_tf.targets.target import Blocker, Tariff, Verdict

_FILTERED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})  # read bitmaps: export.bitmap_storage
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


@dataclasses.dataclass(frozen=True)
class TFLM:
    """Rewards zeros in the int8 filters of convolutions and fully connected layers, with flash."""

    name: str = "tflm"
    description: str = (
        "TensorFlow Lite for Microcontrollers: int8 filters are stored as bitmaps, so that zeros save flash; nothing "
        "gets faster."
    )
    rewrite: str = "none"
    quantize: str = "int8"
    storage: str = "bitmap"
    runtime: str = "tflm"
    is_microcontroller: bool = True
    promises_speed: bool = False

    def obstacle(self, quantize: str) -> str | None:
        if quantize == "int8":
            return None
        return "microcontrollers compute in int8, and TFLM has neither float16 nor dynamic-range kernels"

    def caution(self, pattern: Pattern) -> str | None:
        del pattern
        return None

    def objection(self, spec: LayerSpec) -> str | None:
        del spec
        return None

    def price(self, graph: OperatorGraph) -> Tariff:
        """Bytes beyond the bit that every weight of a bitmap costs, zero or not."""
        prices = {
            operator.inputs[1]: Price(kept=1.0, most=1.0 - _BIT)
            for operator in graph.operators
            if operator.kind in _FILTERED and graph.values[operator.inputs[1]].stored_dtype == "int8"
        }
        return Tariff(prices)

    def judge(self, graph: OperatorGraph) -> Verdict:
        """Whether TFLM runs the file and stores zeros small: int8 throughout, its operators, dense or bitmaps."""
        blockers = (*_judge_types(graph), *_judge_storage(graph), *_judge_operators(graph))
        if blockers:
            statement = "TFLM cannot run this file as it is, or saves nothing by its zeros."
        else:
            statement = "TFLM runs this file; zeros in its filters save flash, and no time."
        return Verdict(not blockers, not blockers, (), blockers, None, statement)


def _judge_types(graph: OperatorGraph) -> tuple[Blocker, ...]:
    floats = [operator for operator in graph.operators if _computes_in(operator, graph) in ("float32", "float16")]
    if not floats:
        return ()
    kinds = ", ".join(sorted({operator.kind for operator in floats}))
    return (
        Blocker(
            name_first(floats),
            kinds,
            f"computes in {_computes_in(floats[0], graph)}, and a microcontroller file must be int8 throughout",
            "--quantize=int8, which --target=tflm does by itself; operators that have no int8 form need replacing",
        ),
    )


def _judge_storage(graph: OperatorGraph) -> tuple[Blocker, ...]:
    if not any(value.storage == "sparse" for value in graph.values):
        return ()
    return (
        Blocker(
            "", "DENSIFY", "stores weights as sparse tensors, and TFLM has no DENSIFY", "--target=tflm stores bitmaps"
        ),
    )


def _judge_operators(graph: OperatorGraph) -> tuple[Blocker, ...]:
    missing = group_by_kind(operator for operator in graph.operators if operator.kind not in OPERATORS)
    return tuple(
        Blocker(
            name_first(operators),
            kind,
            f"is a {kind}, which TFLM does not have",
            "replace the layer by one whose operators TFLM has, or register a kernel of your own",
        )
        for kind, operators in missing.items()
    )


def _computes_in(operator: Operator, graph: OperatorGraph) -> str:
    return graph.values[operator.outputs[0]].dtype if operator.outputs else ""
