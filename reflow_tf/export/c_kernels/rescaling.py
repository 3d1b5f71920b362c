"""Real scales become the integers with which kernels turn sums into int8, exactly as TFLite's reference does.

TFLite writes a scale as multiplier * 2^(shift - 31) and rounds twice: the product with the multiplier to an integer,
ties up, and that integer shifted, ties away from zero (MultiplyByQuantizedMultiplier of kernels/internal/common.cc,
without TFLITE_SINGLE_ROUNDING, as LiteRT and TFLM are built). sources/rescaling.h says how one product and one shift do
the same.
"""

import enum
import math
from dataclasses import dataclass

import numpy as np

SUM_BITS = 24
_EXTRA_SHIFT = 7  # of the high word of 2^8 times a sum


class Rounding(enum.Enum):
    """How a kernel rounds; the names are those of kernels.h."""

    EXACT = "REFLOW_EXACT"
    UP = "REFLOW_UP"
    AWAY = "REFLOW_AWAY"


@dataclass(frozen=True)
class Rescaling:
    """From sums to int8, for each channel.

    Attributes:
        multipliers: int32.
        shifts: int8; to the left for EXACT, to the right otherwise.
        rounding: which of the kernels' ways.
    """

    multipliers: np.ndarray
    shifts: np.ndarray
    rounding: Rounding


def quantize_multiplier(scale: float) -> tuple[int, int]:
    """The multiplier, from 2^30 to 2^31 - 1, and the shift to the left: multiplier * 2^(shift - 31) is next to `scale`.

    QuantizeMultiplier of kernels/internal/quantization_util.cc, with 0, 0 for what is too small.
    """
    fraction, shift = math.frexp(scale)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def plan_rescaling(
    scales: np.ndarray, sums: tuple[np.ndarray, np.ndarray], zero_point: int, limits: tuple[int, int]
) -> Rescaling:
    """Chooses the fastest rounding that is exact for every sum that can be.

    Args:
        scales: float64 (channels,).
        sums: least and greatest sum of each channel, over all int8 inputs.
        zero_point: of the output.
        limits: of the output.
    """
    pairs = [quantize_multiplier(float(scale)) for scale in scales]
    multipliers = np.array([multiplier for multiplier, _ in pairs], np.int32)
    shifts = np.array([shift for _, shift in pairs], np.int64)
    if limits == (-128, 127) and multipliers.all() and _are_fast(-shifts, sums, zero_point):
        rounding = Rounding.UP if zero_point == -128 else Rounding.AWAY
        return Rescaling(multipliers, (_EXTRA_SHIFT - shifts).astype(np.int8), rounding)
    return Rescaling(multipliers, shifts.astype(np.int8), Rounding.EXACT)


def _are_fast(shifts: np.ndarray, sums: tuple[np.ndarray, np.ndarray], zero_point: int) -> bool:
    """Whether reflow_narrow of sources/rescaling.h overflows nowhere; `shifts` are to the right."""
    if not fit_bits(sums) or shifts.min() < 1 or shifts.max() + _EXTRA_SHIFT > 31:
        return False
    # As multipliers are less than 2^31, the high word of 2^8 times a sum is less than 2^7 times the sum.
    words = np.maximum(np.abs(sums[0]), np.abs(sums[1])) << _EXTRA_SHIFT
    addends = abs(2 * zero_point + 1) << (shifts + _EXTRA_SHIFT - 1)
    return bool((words + addends + 192 < 1 << 31).all())


def rescale(sums: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """TFLite's MultiplyByQuantizedMultiplier of int64 sums, one for each scale, without overflow of 32 bits."""
    results = []
    for value, scale in zip(sums.tolist(), scales.tolist(), strict=True):
        multiplier, shift = quantize_multiplier(scale)
        product = ((value << max(shift, 0)) * multiplier + (1 << 30)) >> 31
        half = 1 << -shift >> 1 if shift < 0 else 0
        results.append((product + half - (half > 0 and product < 0)) >> max(-shift, 0))
    return np.array(results, np.int64)


def bound_sums(values: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest sum of each output over all int8 inputs.

    Args:
        values: int8 weights (outputs, ...).
        biases: (outputs,), the zero point of the input folded in.
    """
    rows = values.reshape(len(values), -1).astype(np.int64)
    ends = np.stack([-128 * rows, 127 * rows])
    return ends.min(axis=0).sum(axis=1) + biases, ends.max(axis=0).sum(axis=1) + biases


def bound_partial_sums(values: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of whatever a kernel may hold on the way to a sum, in any order of its terms."""
    most = 128 * np.abs(values.reshape(len(values), -1).astype(np.int64)).sum(axis=1) + np.abs(biases)
    return -most, most


def fit_bits(sums: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether sums have at most `SUM_BITS`, the sign among them."""
    half = 1 << (SUM_BITS - 1)
    return bool((sums[0] >= -half).all() and (sums[1] < half).all())


def fold_zero_point(values: np.ndarray, biases: np.ndarray, zero_point: int) -> np.ndarray:
    """Biases that make a sum over stored inputs what it is over inputs minus their zero point."""
    return biases - zero_point * values.reshape(len(values), -1).astype(np.int64).sum(axis=1)
