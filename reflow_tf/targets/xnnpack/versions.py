"""The runtimes whose rules were read, and where those rules differ."""

import dataclasses

from reflow_tf.errors import InputError

_UNARY_2023 = frozenset(
    {"ABS", "CEIL", "DEQUANTIZE", "ELU", "FLOOR", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "NEG", "QUANTIZE", "RELU"}
    | {"RELU6", "RELU_N1_TO_1", "ROUND", "SQRT", "SQUARE", "TANH"}
)
_UNARY_2025 = _UNARY_2023 | {"COS", "EXP", "GELU", "RSQRT", "SIN"}
# The unary operators in XNNPACK's list of 2023 (`xnn_check_nchw_compatibility` at b9d4073a6, src/subgraph.c line 425).
_UNARY_CHANNELS_FIRST_2023 = _UNARY_2023 - {"DEQUANTIZE", "QUANTIZE", "SQRT", "TANH"}


@dataclasses.dataclass(frozen=True)
class Version:
    """One runtime, as far as its rules differ from another's.

    Attributes:
        name: the package and its version.
        xnnpack: the XNNPACK snapshot that its rules were read in.
        unary: TFLite operators of one input that the delegate takes.
        unary_channels_first: those of them that stay in a sparse cluster.
        any_mean: MEAN and SUM over any axes end a cluster. Before, only a MEAN over height and width did, as
            XNNPACK's global average pooling; a MEAN over other axes was not delegated at all, and SUM ended nothing.
        pointwise_is_fully_connected: a 1x1 convolution becomes a fully connected node when it is defined
            (src/subgraph/convolution-2d.c, `xnn_define_convolution_2d`), and fully connected nodes belong to clusters.
        folds_min_max: MAXIMUM and MINIMUM with a constant scalar become a clamp
            (src/subgraph.c line 2970, `optimize_common_subgraphs_min_max_to_clamp`).
        squares_products: the product of a value with itself becomes a square (line 2489), which has one input.
        counts_repeated_inputs: an operator that reads one value twice counts as two of its consumers.
        needs_equal_types: the delegate takes no convolution of which the file has the weights in float16 and the bias
            in float32, or the other way round (xnnpack_delegate.cc line 2813; later it minds only the other way).
        states_outputs: it hands out the file's outputs in the shapes that the file states, as LiteRT's CompiledModel
            does, whatever XNNPACK takes their shapes for.
        misses_negative_zeros: -0.0 in float16 is not counted as zero, for want of a cast (src/xnnpack/math.h line 614,
            `xnn_float16_is_zero`).
        breaks_in_float16: it reads sparse weights in the wrong type where a file allows float16 arithmetic, on CPUs
            that have it (src/subgraph/convolution-2d.c, `create_nchw_convolution`); before, such a file ran dense.
        max_concatenated: the delegate takes CONCATENATION of at most so many inputs.
    """

    name: str
    xnnpack: str
    unary: frozenset[str]
    unary_channels_first: frozenset[str]
    any_mean: bool
    pointwise_is_fully_connected: bool
    folds_min_max: bool
    squares_products: bool
    counts_repeated_inputs: bool
    needs_equal_types: bool
    states_outputs: bool
    misses_negative_zeros: bool
    breaks_in_float16: bool
    max_concatenated: int


NEWEST = Version(
    name="LiteRT.js 2.5.3",
    xnnpack="75db3c093 (2026-08-21)",
    unary=_UNARY_2025 | {"LOG"},
    unary_channels_first=_UNARY_2025 | {"LOG"},
    any_mean=True,
    pointwise_is_fully_connected=True,
    folds_min_max=True,
    squares_products=True,
    counts_repeated_inputs=False,
    needs_equal_types=True,
    states_outputs=True,
    misses_negative_zeros=False,
    breaks_in_float16=True,
    max_concatenated=5,
)
LITERT_1_4 = Version(
    name="ai-edge-litert 1.4.0",
    xnnpack="8b3d5687e (2025-06-15)",
    unary=_UNARY_2025,
    unary_channels_first=_UNARY_2025,
    any_mean=True,
    pointwise_is_fully_connected=True,
    folds_min_max=False,
    squares_products=False,
    counts_repeated_inputs=True,
    needs_equal_types=True,
    states_outputs=False,
    misses_negative_zeros=True,
    breaks_in_float16=True,
    max_concatenated=5,
)
TFLITE_2_14 = Version(
    name="tflite-runtime 2.14.0",
    xnnpack="b9d4073a6 (2023-04-09)",
    unary=_UNARY_2023,
    unary_channels_first=_UNARY_CHANNELS_FIRST_2023,
    any_mean=False,
    pointwise_is_fully_connected=False,
    folds_min_max=False,
    squares_products=False,
    counts_repeated_inputs=True,
    needs_equal_types=False,
    states_outputs=False,
    misses_negative_zeros=False,
    breaks_in_float16=False,
    max_concatenated=4,
)
VERSIONS = (NEWEST, LITERT_1_4, TFLITE_2_14)


def find_version(name: str) -> Version:
    """The version of that name.

    Raises:
        InputError: none has it.
    """
    for version in VERSIONS:
        if version.name == name:
            return version
    known = ", ".join(version.name for version in VERSIONS)
    raise InputError(f"The rules of XNNPACK are known for {known}. Received: {name}")
