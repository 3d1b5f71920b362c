"""Functions of one int8 become tables, computed in fixed point as TFLite's reference computes each of their entries.

The arithmetic is gemmlowp's (github.com/google/gemmlowp, fixedpoint/fixedpoint.h), in whole numbers of 32 bits. A
number written Qn has n bits before the point and 31 - n behind it; sources/softmax.c has the same for Q5, in C.
"""

import math

import numpy as np

from reflow_tf.export.c_kernels.rescaling import quantize_multiplier, rescale

_ONE = 2**31 - 1
_LOGISTIC_BITS = 4
_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401)  # e^(-2^i) for i = -2, -1, ...; Q0
_OUTPUT_BITS = 8


def tabulate_logistic(scale: float, zero_point: int) -> np.ndarray:
    """1 / (1 + e^-x) of every int8 from -128 on, (256,) int8 in steps of 1/256 from -128 on.

    Logistic of kernels/internal/reference/integer_ops/logistic.h; for the radius beyond which it gives the ends, see
    CalculateInputRadius of kernels/internal/quantization_util.cc.

    Args:
        scale: of the input; over 2^-27.
        zero_point: of the input.
    """
    to_q4 = scale * 2 ** (31 - _LOGISTIC_BITS)
    _, shift = quantize_multiplier(to_q4)
    radius = math.floor((2**_LOGISTIC_BITS - 1) * 2 ** (31 - _LOGISTIC_BITS) / 2**shift)
    inputs = np.arange(-128, 128) - zero_point
    values = rescale(inputs, np.full(256, to_q4))
    found = [-128 + _divide_by_power(_logistic(value), 31 - _OUTPUT_BITS) for value in values.tolist()]
    ends = [inputs <= -radius, inputs >= radius]
    return np.select(ends, [-128, 127], np.clip(found, -128, 127)).astype(np.int8)


def _logistic(x: int) -> int:
    """Q4 to Q0."""
    if x == 0:
        return 2**30
    positive = _reciprocal(_exponential(-abs(x)))
    return positive if x > 0 else _ONE - positive


def _exponential(x: int) -> int:
    """e^x for x < 0. Q4 to Q0."""
    quarter = 1 << (31 - _LOGISTIC_BITS - 2)
    rest = (x & (quarter - 1)) - quarter
    result = _exponential_near_zero(rest << _LOGISTIC_BITS)
    for bit, power in enumerate(_POWERS):
        if (rest - x) & (quarter << bit):
            result = _multiply_high(result, power)
    return result


def _exponential_near_zero(x: int) -> int:
    """e^x for -1/4 <= x < 0: Taylor's series about -1/8. Q0."""
    t = x + (1 << 28)  # + 1/8
    square = _multiply_high(t, t)
    cube, fourth = _multiply_high(square, t), _divide_by_power(_multiply_high(square, square), 2)
    third, base = 715827883, 1895147668  # 1/3 and e^(-1/8)
    higher = _divide_by_power(_multiply_high(fourth + cube, third) + square, 1)
    return base + _multiply_high(base, t + higher)


def _reciprocal(x: int) -> int:
    """1 / (1 + x) for 0 <= x <= 1, by three steps of Newton's. Q0."""
    half = (x + _ONE + 1) // 2  # (1 + x) / 2
    result = 1515870810 + _multiply_high(half, -1010580540)  # 48/17 - 32/17 half; Q2
    for _ in range(3):
        error = (1 << 29) - _multiply_high(half, result)
        result += _saturate(4 * _multiply_high(result, error))
    return _saturate(2 * result)


def _multiply_high(x: int, y: int) -> int:
    """The product over 2^31, ties up."""
    return (x * y + (1 << 30)) >> 31


def _divide_by_power(x: int, shift: int) -> int:
    """Ties away from zero."""
    mask = (1 << shift) - 1
    return (x >> shift) + ((x & mask) > (mask >> 1) + (x < 0))


def _saturate(x: int) -> int:
    return min(max(x, -(2**31)), _ONE)
