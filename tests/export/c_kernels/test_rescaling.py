"""Integers for real scales: TFLite's, and the fast way that gives the same."""

import fractions

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.export.c_kernels.rescaling import (
    Rounding,
    bound_sums,
    fold_zero_point,
    plan_rescaling,
    quantize_multiplier,
    rescale,
)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (0.5, (1 << 30, 0)),
        (1.0, (1 << 30, 1)),
        (0.75, (3 << 29, 0)),
        (2.0**-40, (0, 0)),
        (1 - 2.0**-40, (1 << 30, 1)),  # the fraction rounds up to 1
    ],
)
def test_multipliers_by_hand(scale, expected):
    assert quantize_multiplier(scale) == expected


@given(st.floats(2.0**-30, 2.0**20))
def test_a_multiplier_is_as_near_as_31_bits_come(scale):
    multiplier, shift = quantize_multiplier(scale)
    assert 1 << 30 <= multiplier < 1 << 31
    error = fractions.Fraction(multiplier) * fractions.Fraction(2) ** (shift - 31) / fractions.Fraction(scale) - 1
    assert abs(error) <= fractions.Fraction(1, 1 << 31)


@pytest.mark.parametrize(
    ("value", "scale", "expected"),
    [(3, 0.5, 2), (-3, 0.5, -1), (5, 0.25, 2), (4, 0.25, 1), (-6, 0.25, -2), (9535, 2.0**-7, 75), (7, 4.0, 28)],
)
def test_rounding_twice_by_hand(value, scale, expected):
    """A product of 1/2 rounds up, a shift's half away from zero; 5 / 4 becomes 2 by way of 3 / 2."""
    assert rescale(np.array([value]), np.array([scale])).tolist() == [expected]


def narrow(value, multiplier, shift, zero_point, rounding):
    """reflow_narrow of sources/rescaling.h, fast ways."""
    addend = 64 + ((2 * zero_point + 1) << (shift - 1))
    word = ((value << 8) * multiplier >> 32) + addend
    if rounding is Rounding.AWAY and value < 0:
        word -= 128
    assert -(1 << 31) <= word < 1 << 31
    return min(max(word >> shift, -128), 127)


@given(
    st.integers(-(1 << 23), (1 << 23) - 1) | st.integers(-5000, 5000),
    st.floats(2.0**-24, 0.9) | st.integers(2, 20).map(lambda power: 2.0**-power),
    st.sampled_from([-128, 0, 127]) | st.integers(-128, 127),
)
def test_the_fast_way_rounds_as_twice(value, scale, zero_point):
    sums = np.array([value])
    rescaling = plan_rescaling(np.array([scale]), (sums, sums), zero_point, (-128, 127))
    if rescaling.rounding is Rounding.EXACT:
        return
    expected = np.clip(rescale(sums, np.array([scale])) + zero_point, -128, 127)
    found = narrow(value, int(rescaling.multipliers[0]), int(rescaling.shifts[0]), zero_point, rescaling.rounding)
    assert found == expected[0]


@pytest.mark.parametrize(
    ("scale", "limits", "zero_point", "rounding"),
    [
        (0.01, (-128, 127), -128, Rounding.UP),
        (0.01, (-128, 127), 0, Rounding.AWAY),
        (0.01, (-128, 127), -127, Rounding.AWAY),
        (0.01, (-128, 100), -128, Rounding.EXACT),
        (0.6, (-128, 127), -128, Rounding.EXACT),
        (3.0, (-128, 127), -128, Rounding.EXACT),
        (2.0**-30, (-128, 127), -128, Rounding.EXACT),
    ],
)
def test_when_the_fast_way_is_taken(scale, limits, zero_point, rounding):
    sums = np.array([-5000]), np.array([5000])
    assert plan_rescaling(np.array([scale]), sums, zero_point, limits).rounding is rounding


def test_bounds_are_reached():
    values = np.array([[3, -2, 0], [0, 0, 0]], np.int8)
    biases = np.array([10, -7])
    least, greatest = bound_sums(values, biases)
    assert least.tolist() == [3 * -128 - 2 * 127 + 10, -7]
    assert greatest.tolist() == [3 * 127 + 2 * 128 + 10, -7]


def test_the_zero_point_moves_into_the_bias():
    rng = np.random.default_rng(0)
    values, inputs = rng.integers(-127, 128, (4, 9)), rng.integers(-128, 128, 9)
    biases = np.arange(4)
    folded = fold_zero_point(values, biases, -17)
    np.testing.assert_array_equal(values @ inputs + folded, values @ (inputs + 17) + biases)
