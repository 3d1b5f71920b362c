"""CHITA: which weights stay, found together with what they become, by iterative hard thresholding.

Benbaki et al., "Fast as CHITA", arXiv 2302.14623: minimize 1/2 (w - w0)^T F (w - w0) + ridge over all w with so many
nonzeros. For a given mask that is a convex problem whose one solution is `updates.woodfisher`, however it is iterated;
so CHITA here is this search for a mask, and `updates.woodfisher` on it, which is the paper's back-solve.
"""

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
    damping = quadratic.find_damping(blocks)
    bounds = np.abs(blocks).sum(axis=2, dtype=np.float64) + damping
    targets = quadratic.split_blocks(kernel, blocks).astype(np.float64)

    def solve(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The best weights on the mask, the gradient there and the quadratic."""
        weights = quadratic.minimize_blocks(blocks, targets, quadratic.split_blocks(mask, blocks))
        moves = weights - targets
        gradients = (blocks @ moves[..., None])[..., 0] + damping * moves
        return weights, gradients, 0.5 * float(np.sum(moves * gradients))

    weights, gradients, cost = solve(mask)
    length = LONGEST_STEP
    for _ in range(MOST_STEPS):
        importance = bounds * np.square(weights - length * gradients / bounds)
        found = select(quadratic.join_blocks(importance, mask))
        solution = solve(found) if (found != mask).any() else (weights, gradients, cost)
        if solution[2] < cost:
            mask, (weights, gradients, cost) = found, solution
        elif length > 1:
            length /= 2
        else:
            break
    return mask
