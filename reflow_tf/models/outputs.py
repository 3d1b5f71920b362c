"""What the numbers that a network gives are."""

import numpy as np


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether the last axis, of two or more, looks like a softmax: not negative, and its sum is 1."""
    wide = np.asarray(outputs, np.float64)
    return wide.shape[-1] > 1 and bool(wide.min() >= 0) and np.allclose(wide.sum(-1), 1, atol=1e-2)


def as_probabilities(outputs: np.ndarray, are_given: bool | None = None) -> np.ndarray:
    """Outputs as a softmax leaves them, float64: themselves, or that of logits.

    Args:
        outputs: (..., classes).
        are_given: whether they are probabilities; None: as they look. In int8 they do not look so, for hundreds of
            classes are rounded to 0.
    """
    if are_probabilities(outputs) if are_given is None else are_given:
        return outputs.astype(np.float64)
    raised = np.exp(outputs.astype(np.float64) - outputs.max(axis=-1, keepdims=True))
    return np.asarray(raised / np.sum(raised, axis=-1, keepdims=True))
