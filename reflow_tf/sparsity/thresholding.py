"""CHITA: which weights stay, found together with what they become, by iterative hard thresholding.

Benbaki et al., "Fast as CHITA", arXiv 2302.14623: minimize 1/2 (w - w0)^T F (w - w0) + ridge over all w with so many
nonzeros. For a given mask that is a convex problem whose one solution is `updates.woodfisher`, however it is iterated;
so CHITA here is this search for a mask, and `updates.woodfisher` on it, which is the paper's back-solve.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from reflow_tf.sparsity import quadratic
from reflow_tf.sparsity.patterns import drop_lowest
from reflow_tf.sparsity.quadratic import read_statistic

Select = Callable[[np.ndarray], np.ndarray]
"""Scores -> mask, for example a pattern's `select` at the sparsity of the layer."""

MOST_STEPS = 50
"""Most steps that are tried for a kernel, each with a system a block to solve."""

LONGEST_STEP = 16.0
"""Where the search for a step that lowers the quadratic begins, in units of the step that cannot raise it."""


def chita(
    kernel: np.ndarray, mask: np.ndarray, statistics: Mapping[str, np.ndarray], select: Select | None = None
) -> np.ndarray:
    """A mask on which the quadratic is no higher than on the one given, and as a rule lower.

    A step takes z = w - c gradient / L and keeps the highest L z^2, L the absolute row sums of F + damping; then the
    weights go to the optimum on the mask found. With c = 1 the quadratic cannot rise (diag(L) is above F + damping),
    but such steps soon swap nothing; so c starts at LONGEST_STEP, and is halved whenever a step does not lower the
    quadratic, down to 1: a line search over masks. Only steps that lower it are taken.

    Left out of the paper is the gradient at w0. With classes that the model itself predicts it speaks of confidence,
    not of error, and each block would make up for the whole of it, because blocks do not know of each other.

    Args:
        kernel: w0, the dense kernel in canonical layout.
        mask: where the search starts.
        statistics: "fisher_blocks" of the kernel.
        select: None keeps any weights, as many as `mask` does.

    Returns:
        Boolean array of the shape of `mask`, True = kept.

    Raises:
        InputError: the statistic is missing or does not fit.
    """
    blocks = read_statistic(statistics, "fisher_blocks")
    select = select or functools.partial(drop_lowest, num_dropped=int(np.count_nonzero(~mask)))
    problem = _Problem(kernel, blocks)
    now = problem.solve(mask)
    length = LONGEST_STEP
    for _ in range(MOST_STEPS):
        importance = problem.bounds * np.square(now.weights - length * now.gradients / problem.bounds)
        found = select(quadratic.join_blocks(importance, mask))
        solution = problem.solve(found, now) if (found != mask).any() else now
        if solution.cost < now.cost:
            mask, now = found, solution
        elif length > 1:
            length /= 2
        else:
            break
    return mask


@dataclasses.dataclass(frozen=True)
class _Solution:
    """The best weights on a mask.

    Attributes:
        kept: the mask, (blocks, B).
        weights: (blocks, B) float64.
        gradients: of the quadratic there.
        cost: the quadratic.
    """

    kept: np.ndarray
    weights: np.ndarray
    gradients: np.ndarray
    cost: float


class _Problem:
    """The quadratic of one kernel; `bounds` are the absolute row sums of F + damping."""

    def __init__(self, kernel: np.ndarray, blocks: np.ndarray):
        self._blocks = blocks
        self._damping = quadratic.find_damping("fisher_blocks", blocks)
        self._targets = quadratic.split_blocks(kernel, blocks).astype(np.float64)
        self.bounds = np.abs(blocks).sum(axis=2, dtype=np.float64) + self._damping

    def solve(self, mask: np.ndarray, known: _Solution | None = None) -> _Solution:
        """The solution on a mask; of one that is `known` it takes over the blocks in which the masks are the same."""
        kept = quadratic.split_blocks(mask, self._blocks)
        if known is None:
            weights, gradients = np.empty(kept.shape), np.empty(kept.shape)
            new = np.arange(len(kept))
        else:
            weights, gradients = known.weights.copy(), known.gradients.copy()
            new = np.flatnonzero((kept != known.kept).any(axis=1))
        for part in quadratic.cut(len(new), self._blocks[0].size):
            rows = new[part]
            blocks, targets = self._blocks[rows], self._targets[rows]
            weights[rows] = quadratic.minimize_each(quadratic.damp(blocks, self._damping), targets, kept[rows])
            moves = weights[rows] - targets
            gradients[rows] = (blocks @ moves[..., None])[..., 0] + self._damping * moves
        cost = 0.5 * float(np.sum((weights - self._targets) * gradients))
        return _Solution(kept, weights, gradients, cost)
