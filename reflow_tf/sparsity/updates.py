"""Weight updates: what the kept weights become so that they make up for the masked ones.

Every update is a function `(kernel, mask, statistics) -> kernel` in canonical layout: the dense kernel in, one out that
is exactly 0 where the mask is False, of the kernel's dtype. Each is the minimum of a quadratic, damped as in
`quadratic`; `InputError` where the statistic that `NEEDS` names is missing or does not fit.
"""

from collections.abc import Callable, Mapping

import numpy as np

from reflow_tf.sparsity import quadratic
from reflow_tf.sparsity.quadratic import read_statistic

Statistics = Mapping[str, np.ndarray]
Update = Callable[[np.ndarray, np.ndarray, Statistics], np.ndarray]


def woodfisher(kernel: np.ndarray, mask: np.ndarray, statistics: Statistics) -> np.ndarray:
    """Minimizes 1/2 (w - w0)^T F (w - w0) in each block of the Fisher: the OBS update for all masked weights together.

    Singh & Alistarh, "WoodFisher", arXiv 2004.14340, where the masked weights of a block go one by one and
    what they cost together is added up; here jointly, which is the optimum (Kurtic et al., arXiv 2203.07259).
    """
    blocks = read_statistic(statistics, "fisher_blocks")
    targets = quadratic.split_blocks(kernel, blocks).astype(np.float64)
    weights = quadratic.minimize_blocks(blocks, targets, quadratic.split_blocks(mask, blocks))
    return quadratic.join_blocks(weights, kernel).astype(kernel.dtype)


def obs(kernel: np.ndarray, mask: np.ndarray, statistics: Statistics) -> np.ndarray:
    """Least squares of the layer's own output: argmin of ||(w - w0) X||^2 + ridge for each output's row.

    What exact OBS (Frantar & Alistarh, arXiv 2208.11580) arrives at for a given mask, in one step.
    """
    gram = read_statistic(statistics, "input_gram")
    damped = quadratic.damp(gram, quadratic.find_damping("input_gram", gram))
    groups = zip(damped, quadratic.split_groups(kernel, gram), quadratic.split_groups(mask, gram), strict=True)
    weights = np.stack([quadratic.minimize_rows(*group) for group in groups])
    return weights.reshape(kernel.shape).astype(kernel.dtype)


UPDATES: Mapping[str, Update] = {"woodfisher": woodfisher, "obs": obs}

NEEDS: Mapping[str, frozenset[str]] = {
    "woodfisher": frozenset({"fisher_blocks"}),
    "obs": frozenset({"input_gram"}),
}
"""Name of an update -> names of the statistics that it reads."""
