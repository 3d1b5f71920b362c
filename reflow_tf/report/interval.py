"""How far a fraction measured on n images may lie from the true one."""

from math import atan, inf, pi, sqrt
from statistics import NormalDist

import numpy as np


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a fraction.

    With p = successes / n and z the two-sided normal quantile,

        (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)

    Unlike p ± z √(p(1 - p)/n) it stays inside [0, 1] and has a width at p = 0 and p = 1, which is where collapsed
    and nearly perfect models are.

    Args:
        successes: Images counted as right, 0 to n.
        n: Images looked at, at least 1.
        confidence: Probability that the interval is meant to cover, between 0 and 1.

    Returns:
        (low, high), fractions with 0 <= low <= successes / n <= high <= 1.

    Raises:
        ValueError: The counts or the confidence are out of range.

    Source:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"0 <= successes <= n and n >= 1 are required. Received: successes={successes}, n={n}")
    if not 0 < confidence < 1:
        raise ValueError(f"A confidence between 0 and 1 is required. Received: {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    # At the ends the formula gives exactly 0 and 1; rounding must not leave the interval outside of what it is.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mean_interval(shares: np.ndarray, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of shares, one of each image: pixels of one image are not independent of another.

    With m their mean and s their standard deviation, m ± t s / √n, cut to [0, 1].

    Args:
        shares: (n,) in [0, 1], one an image.
        confidence: Probability that the interval is meant to cover, between 0 and 1.

    Returns:
        (low, high), fractions; None for one image, which says nothing of how far others are from it.
    """
    if len(shares) < 2:
        return None
    mean = float(np.mean(shares))
    half = student_quantile((1 + confidence) / 2, len(shares) - 1) * float(np.std(shares, ddof=1)) / sqrt(len(shares))
    return max(0.0, mean - half), min(1.0, mean + half)


def ratio_interval(parts: np.ndarray, wholes: np.ndarray, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of sum(parts) / sum(wholes), one pair of each image, by the delta method.

    With r the ratio and s the standard deviation of parts - r * wholes, r ± t s / (√n mean(wholes)), at least 0.

    Args:
        parts: (n,), none negative.
        wholes: (n,), none negative and some positive.
        confidence: Probability that the interval is meant to cover, between 0 and 1.

    Returns:
        (low, high); None for one image.

    Source:
        W. G. Cochran, Sampling Techniques, chapter 6, Ratio estimators.
    """
    if len(parts) < 2:
        return None
    ratio, error = ratio_error(parts, wholes)
    half = student_quantile((1 + confidence) / 2, len(parts) - 1) * error
    return max(0.0, ratio - half), ratio + half


def ratio_error(parts: np.ndarray, wholes: np.ndarray) -> tuple[float, float]:
    """Of `ratio_interval`, for two pairs or more: the ratio, and its standard error."""
    mean = float(np.mean(wholes))
    ratio = float(np.mean(parts)) / mean
    return ratio, float(np.std(parts - ratio * wholes, ddof=1)) / (sqrt(len(parts)) * mean)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, by bisection of its distribution function.

    Args:
        probability: 0.5 to 1, both excluded.
        freedom: Degrees of freedom, at least 1.

    Source:
        Abramowitz & Stegun, 26.7.3 and 26.7.4: P(|T| <= t) as a finite sum.
    """
    low, high = 0.0, 1.0
    while _central_probability(high, freedom) < 2 * probability - 1:
        low, high = high, 2 * high
    middle, previous = high, inf
    while middle != previous:
        previous, middle = middle, (low + high) / 2
        if _central_probability(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return middle


def _central_probability(t: float, freedom: int) -> float:
    """P(|T| <= t): with tan a = t / √freedom, a sum over powers of cos a."""
    angle = atan(t / sqrt(freedom))
    sine, cosine = np.sin(angle), np.cos(angle)
    is_odd = freedom % 2
    if freedom == 1:
        return 2 * angle / pi
    # 1, 2/3, 2*4 / (3*5), ... times cos a, cos^3 a, ... for odd, 1, 1/2, 1*3 / (2*4), ... times 1, cos^2 a, ... else.
    steps = np.arange(1 + is_odd, freedom - 2, 2)
    terms = np.cumprod(np.concatenate([[1.0], steps / (steps + 1) * cosine**2]))
    if is_odd:
        return float(2 / pi * (angle + sine * cosine * terms.sum()))
    return float(sine * terms.sum())
