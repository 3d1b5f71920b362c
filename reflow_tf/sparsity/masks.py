"""Masks: the plan, carried out on real scores. True = kept; canonical layout (output, *spatial, input)."""

from collections.abc import Mapping

import numpy as np

from reflow_tf.sparsity.plan import PruningPlan

Masks = Mapping[str, np.ndarray]

_FEW_ZEROS = 0.01


def build_masks(plan: PruningPlan, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One boolean mask for each kernel of the plan.

    Args:
        plan: what each kernel gets.
        scores: path -> scores in canonical layout; paths that the plan does not name are ignored.
    """
    return {path: layer.pattern.select(scores[path], layer.sparsity) for path, layer in plan.layers.items()}


def count_zeros(weights: np.ndarray) -> int:
    """Number of weights that are zero."""
    return int(weights.size - np.count_nonzero(weights))


def is_sparse(weights: np.ndarray) -> bool:
    """Whether so many weights are zero that somebody must have pruned them."""
    return count_zeros(weights) > _FEW_ZEROS * weights.size


def count_masked(masks: Masks) -> int:
    """Number of weights that the masks zero."""
    return sum(map(count_zeros, masks.values()))
