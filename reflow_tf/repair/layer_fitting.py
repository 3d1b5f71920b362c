"""One layer's kernel, fitted to a target: the mask and the weights on it, from normal equations.

What is minimized is in `sparsity.reconstruction`; how equations come from activations, in `repair.layer_sums`.
"""

import dataclasses

import numpy as np

from reflow_tf.sparsity.plan import PlannedLayer
from reflow_tf.sparsity.reconstruction import NormalEquations, choose_mask, solve_together


@dataclasses.dataclass(frozen=True)
class Fit:
    """What became of one kernel.

    Attributes:
        kernel: canonical layout.
        mask: canonical layout.
        error: what is left, as a share of the target's variance, outputs weighted by their gains.
    """

    kernel: np.ndarray
    mask: np.ndarray
    error: float


@dataclasses.dataclass(frozen=True)
class Problem:
    """One layer's normal equations as gathered, and as they are solved."""

    equations: NormalEquations
    regularized: NormalEquations


def fit_kernel(problem: Problem, kernel: np.ndarray, worth: np.ndarray, layer: PlannedLayer) -> Fit:
    """The best mask that the plan allows, and the best weights on it.

    Args:
        problem: of the layer; what it has found out for one sparsity, it knows for the next.
        kernel: the dense one, canonical layout, float64.
        worth: what errors in two outputs cost together, (outputs, outputs); see `fisher.gather_output_worth`.
        layer: pattern and sparsity.
    """
    weights = kernel.reshape(problem.equations.cross.shape)
    of_group = _by_group(worth, problem)

    def select(scores: np.ndarray) -> np.ndarray:
        return layer.pattern.select(scores.reshape(kernel.shape), layer.sparsity).reshape(scores.shape)

    return _solve(problem, kernel, choose_mask(problem.regularized, weights, of_group, select), of_group)


def fit_on_mask(problem: Problem, kernel: np.ndarray, worth: np.ndarray, mask: np.ndarray) -> Fit:
    """The best weights on a mask, canonical layout, that stays; else as `fit_kernel`."""
    kept = mask.reshape(problem.equations.cross.shape)
    of_group = _leave_out(_by_group(worth, problem), np.asarray(kept.any(axis=2)))
    return _solve(problem, kernel, kept, of_group)


def _by_group(worth: np.ndarray, problem: Problem) -> np.ndarray:
    """The worth of the outputs of each group by itself, (groups, outputs of a group, outputs of a group)."""
    _, outputs, _ = problem.equations.cross.shape
    starts = range(0, len(worth), outputs)
    return np.stack([worth[start : start + outputs, start : start + outputs] for start in starts])


def _leave_out(worth: np.ndarray, computed: np.ndarray) -> np.ndarray:
    """The worth, (groups, outputs, outputs), where nothing reads outputs that are not computed any more: no others
    have to make up for them.
    """
    together = computed[:, :, None] & computed[:, None]
    return np.where(together, worth, np.where(np.eye(worth.shape[-1], dtype=bool), 1e-9 * worth, 0.0))


def refit_kernel(problem: Problem, kernel: np.ndarray) -> Fit:
    """The best weights of a kernel that is not pruned, each output by itself; what is zero stays so."""
    groups, outputs, width = problem.equations.cross.shape
    alone = np.broadcast_to(np.eye(outputs), (groups, outputs, outputs))
    return _solve(problem, kernel, kernel.reshape(groups, outputs, width) != 0, alone)


def _solve(problem: Problem, kernel: np.ndarray, mask: np.ndarray, worth: np.ndarray) -> Fit:
    found = solve_together(problem.regularized, mask, worth)
    counts = np.einsum("goo->go", worth)
    total = float(np.sum(problem.equations.power * counts))
    error = float(np.sum(problem.equations.errors(found) * counts)) / total if total > 0 else 0.0
    return Fit(found.reshape(kernel.shape), mask.reshape(kernel.shape), error)
