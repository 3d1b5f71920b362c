from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.report.interval import mean_interval, ratio_interval, student_quantile, wilson_interval

Z = NormalDist().inv_cdf(0.975)


@pytest.mark.parametrize("n", [1, 7, 500, 10_000])
def test_none_right(n):
    assert wilson_interval(0, n) == (0.0, pytest.approx(Z**2 / (n + Z**2)))


@pytest.mark.parametrize("n", [1, 7, 500, 10_000])
def test_all_right(n):
    assert wilson_interval(n, n) == (pytest.approx(n / (n + Z**2)), 1.0)


@pytest.mark.parametrize("n", [2, 50, 10_000])
def test_half_right(n):
    half = Z / (2 * sqrt(n + Z**2))
    assert wilson_interval(n // 2, n) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_ends_solve_the_equation_they_come_from():
    # Wilson's interval is where |p - q| = z sqrt(q (1 - q) / n), the test of a hypothesised fraction q.
    for q in wilson_interval(37, 120, confidence=0.9):
        z = NormalDist().inv_cdf(0.95)
        assert abs(37 / 120 - q) == pytest.approx(z * sqrt(q * (1 - q) / 120))


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_holds_the_estimate_and_stays_in_range(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == (pytest.approx(1 - high, abs=1e-12), pytest.approx(1 - low, abs=1e-12))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_rejects_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"successes={successes}, n={n}"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_rejects_impossible_confidence(confidence):
    with pytest.raises(ValueError, match=f"Received: {confidence}"):
        wilson_interval(1, 2, confidence)


# Student's table, 97.5 %, as printed in textbooks.
@pytest.mark.parametrize(
    "freedom, quantile", [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (29, 2.045), (1000, 1.962)]
)
def test_student_quantiles_of_the_table(freedom, quantile):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-4)


def test_mean_interval_by_hand():
    # Mean 0.5, standard deviation 0.1: 0.5 ± 4.3027 * 0.1 / √3.
    assert mean_interval(np.array([0.4, 0.5, 0.6])) == (
        pytest.approx(0.25159, abs=1e-5),
        pytest.approx(0.74841, abs=1e-5),
    )


def test_mean_interval_stays_in_range():
    assert mean_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    assert mean_interval(np.array([1.0, 1.0])) == (1.0, 1.0)


def test_one_image_has_no_interval():
    assert mean_interval(np.array([0.5])) is None


def test_mean_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    bounds = [mean_interval(np.clip(rng.normal(0.5, 0.1, 8), 0, 1)) for _ in range(1000)]
    assert 0.93 < np.mean([low <= 0.5 <= high for low, high in bounds]) < 0.97


def test_ratio_interval_by_hand():
    # Ratio 6 / 12; parts - wholes / 2 are -1, 0, 1, of standard deviation 1; 4.303 is Student's for 2 degrees.
    low, high = ratio_interval(np.array([1.0, 2.0, 3.0]), np.array([4.0, 4.0, 4.0]))
    half = 4.302653 / (np.sqrt(3) * 4)
    assert (low, high) == pytest.approx((max(0, 0.5 - half), 0.5 + half), rel=1e-6)


def test_a_ratio_that_is_the_same_everywhere_is_certain():
    wholes = np.array([1.0, 5.0, 2.0, 9.0])
    assert ratio_interval(wholes / 4, wholes) == pytest.approx((0.25, 0.25))
    assert ratio_interval(wholes[:1], wholes[:1]) is None


def test_ratio_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        wholes = rng.gamma(4.0, size=50)
        low, high = ratio_interval(wholes * rng.uniform(0.1, 0.5, 50), wholes)
        hits += low <= 0.3 <= high
    assert hits / 400 == pytest.approx(0.95, abs=0.03)
