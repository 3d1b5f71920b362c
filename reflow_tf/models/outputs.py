"""What the numbers that a network gives are."""

import numpy as np


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether the last axis, of two or more, looks like a softmax: not negative, and its sum is 1."""
    wide = np.asarray(outputs, np.float64)
    return wide.shape[-1] > 1 and bool(wide.min() >= 0) and np.allclose(wide.sum(-1), 1, atol=1e-2)
