"""Costs of one inference, measured in turns so that what else the machine does falls on every file alike."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from reflow_tf.runtimes.runtime import Runtime

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Wraps the rounds so that somebody sees how far the work has come."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """The middle of some measurements and the half of them that lies around it.

    Attributes:
        low: lower quartile.
        high: upper quartile.
    """

    median: float
    low: float
    high: float


def measure_interleaved(
    runtimes: Sequence[Runtime], rounds: int, warm_up: int = 0, progress: Progress = iter
) -> np.ndarray:
    """Measures each runtime once a round: a b c, c b a, a b c, ...

    The order turns round each time, so that none always comes after the same other one.

    Args:
        runtimes: at least one, each with its file.
        rounds: that count.
        warm_up: rounds before them that do not.
        progress: sees the rounds, warm-up included.

    Returns:
        float64 (runtimes, rounds), in each runtime's `unit`.
    """
    costs = np.empty((len(runtimes), warm_up + rounds))
    for turn in progress(range(warm_up + rounds)):
        order = range(len(runtimes))
        for which in order if turn % 2 == 0 else reversed(order):
            costs[which, turn] = runtimes[which].measure()
    return costs[:, warm_up:]


def summarize(costs: np.ndarray) -> Spread:
    """Median and quartiles; of an even number of costs, halfway between the two in the middle."""
    low, median, high = np.quantile(costs, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def compare(baseline: np.ndarray, costs: np.ndarray) -> Spread:
    """How many times cheaper: baseline / costs, round by round; the median of ratios, not the ratio of medians."""
    return summarize(baseline / costs)
