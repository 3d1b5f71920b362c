"""Criteria: how much each weight matters.

Every criterion is a function `(kernel, statistics) -> scores` of the kernel's shape, finite and not negative;
higher = keep. `statistics` are plain arrays from a calibration pass; a criterion that needs none ignores them.
"""

from collections.abc import Callable, Mapping

import numpy as np

Criterion = Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]


def magnitude(kernel: np.ndarray, statistics: Mapping[str, np.ndarray]) -> np.ndarray:
    """|w| (Han et al., "Learning both Weights and Connections", arXiv 1506.02626)."""
    del statistics
    return np.abs(kernel)


CRITERIA: Mapping[str, Criterion] = {"magnitude": magnitude}
