"""How far a fraction measured on n images may lie from the true one."""

from math import sqrt
from statistics import NormalDist


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
