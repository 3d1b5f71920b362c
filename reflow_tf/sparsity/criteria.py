"""Criteria: how much each weight matters.

Every criterion is a function `(kernel, statistics) -> scores` of the kernel's shape and dtype, finite and not negative;
higher = keep, and 0 is for weights that are zero already. Kernels are in canonical layout (output, *spatial, input).
`statistics` are plain arrays from a calibration pass, those that `NEEDS` names; a criterion raises `InputError` where
one is missing or does not fit.

Scores are meant to be ranked within a layer. Those of different layers compare only as far as their quadratics do: the
Fisher is about the network's output, the Gram about the layer's own.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from reflow_tf.sparsity import quadratic
from reflow_tf.sparsity.elimination import eliminate_with_updates, eliminate_without_updates
from reflow_tf.sparsity.quadratic import read_statistic

Statistics = Mapping[str, np.ndarray]
Criterion = Callable[[np.ndarray, Statistics], np.ndarray]

SELECTION_DAMPING = 10.0
"""What `fisher` and `cbs`, which move no weight, add to the Fisher's diagonal, as a share of the layer's mean.

Without it, weights that few samples speak of go first, however large. ResNet-20 at 50, 70, 80 and 90 %, blocks of 128,
the Fisher from 300 training images, top-1 on 500 others (dense 99.8; magnitude 97.2, 75.4, 45.2 and 12.6):

    share     cbs                       fisher
    0         97.2, 75.2, 38.4, 16.0    68.4, 14.6, 11.0, 11.0
    0.1       98.2, 79.4, 44.8, 17.6    91.8, 17.8, 11.0, 11.0
    1         98.2, 84.6, 43.2, 21.2    96.0, 68.2, 15.2, 12.2
    10        98.0, 83.0, 51.4, 17.6    97.2 at 50 %, 73.0 at 70, 42.4 at 80

For cbs 1 and 10 cannot be told apart: with 300 other images for the Fisher 89.4, 59.2 and 13.0 at 70, 80 and 90 % with
1, and 85.6, 57.6 and 22.0 with 10 (fisher 70.2, 36.6 and 17.0). 10 is the higher of the two in the mean, and what
fisher needs, which it makes all but magnitude.
"""

OBS_COST_LIMIT = 1 << 31
"""Most numbers of inverse Grams that `obs` updates for one kernel: rows x inputs x (width of a block)^2."""

_OBS_CHUNK = 1 << 17  # numbers of inverse Grams updated at a time: 1 MB, so that they stay in the processor's cache


def magnitude(kernel: np.ndarray, statistics: Statistics) -> np.ndarray:
    """|w| (Han et al., "Learning both Weights and Connections", arXiv 1506.02626)."""
    del statistics
    return np.abs(kernel)


def activation(kernel: np.ndarray, statistics: Statistics) -> np.ndarray:
    """|w_ij| times the root mean square of input j (Sun et al., "Wanda", arXiv 2306.11695, eq. 1).

    Wanda takes the l2 norm, which is the same up to one factor a layer, and ranks within each output; here the pattern
    and the allocation say among which weights the scores are ranked.
    """
    gram = read_statistic(statistics, "input_gram")
    rows = np.abs(quadratic.split_groups(kernel, gram))
    return _as_scores(rows * np.sqrt(np.einsum("gii->gi", gram))[:, None, :], kernel)


def fisher(kernel: np.ndarray, statistics: Statistics) -> np.ndarray:
    """w^2 F_ii / 2: what a weight costs alone, none of the others moving (Theis et al., arXiv 1801.05787).

    The diagonal is damped by SELECTION_DAMPING.
    """
    blocks = read_statistic(statistics, "fisher_blocks")
    rows = quadratic.split_blocks(kernel, blocks).astype(np.float64)
    damping = quadratic.find_damping("fisher_blocks", blocks, SELECTION_DAMPING)
    return _as_scores(np.square(rows) * (np.einsum("bii->bi", blocks) + damping) / 2, kernel)


def woodfisher(kernel: np.ndarray, statistics: Statistics) -> np.ndarray:
    """w^2 / (2 [F^-1]_ii): what it costs alone once the others of its block have moved to make up for it.

    Singh & Alistarh, "WoodFisher", arXiv 2004.14340. The blocks are damped as `quadratic` says and inverted
    as they are: the Woodbury recursion of the paper gives the same inverse.
    """
    blocks = read_statistic(statistics, "fisher_blocks")
    rows = quadratic.split_blocks(kernel, blocks).astype(np.float64)
    damping = quadratic.find_damping("fisher_blocks", blocks)
    for part in quadratic.cut(len(blocks), blocks[0].size):
        inverses = np.linalg.inv(quadratic.damp(blocks[part], damping))
        rows[part] = np.square(rows[part]) / (2 * np.einsum("bii->bi", inverses))
    return _as_scores(rows, kernel)


def cbs(kernel: np.ndarray, statistics: Statistics) -> np.ndarray:
    """What a weight adds to 1/2 w_P^T F w_P over the weights P that left its block before it, the least first.

    The selection problem of Yu et al., "The Combinatorial Brain Surgeon", arXiv 2203.04466: how the losses of
    pairs add up or cancel counts, and no weight moves. The blocks are damped by SELECTION_DAMPING. The limits: pairs
    count within the blocks of the Fisher only, and the order is greedy, without the paper's local search, which needs
    to know the sparsity.
    """
    blocks = read_statistic(statistics, "fisher_blocks")
    rows = quadratic.split_blocks(kernel, blocks).astype(np.float64)
    damping = quadratic.find_damping("fisher_blocks", blocks, SELECTION_DAMPING)
    scores = np.empty(rows.shape, np.float32)
    for part in quadratic.cut(len(blocks), blocks[0].size):
        scores[part] = eliminate_without_updates(rows[part], quadratic.damp(blocks[part], damping))
    return _as_scores(scores, kernel)


def obs(kernel: np.ndarray, statistics: Statistics) -> np.ndarray:
    """What the layer's squared output error rises by when a weight leaves, the others of its row making up for it.

    Row-wise exact elimination: Frantar & Alistarh, "Optimal Brain Compression", arXiv 2208.11580, section 4.

    The limit: eliminating all d weights of a row updates its inverse Gram d times, d^3 numbers. Where that passes
    OBS_COST_LIMIT for the kernel, the row is cut into blocks of neighbouring inputs, as even and as wide as the limit
    allows; each is eliminated exactly with its own part of the Gram, as if the row's other weights stayed put. 256
    rows of 200 inputs are still whole; 1280 x 1280 has blocks of 36.
    """
    gram = read_statistic(statistics, "input_gram")
    rows = quadratic.split_groups(kernel, gram)
    num_blocks = math.ceil(rows.shape[2] / find_obs_width(kernel.size, rows.shape[2]))
    damping = quadratic.find_damping("input_gram", gram)
    scores = np.empty(rows.shape, np.float32)
    for inputs in np.array_split(np.arange(rows.shape[2]), num_blocks):
        inverses = np.linalg.inv(quadratic.damp(gram[:, inputs[:, None], inputs], damping))
        problems = rows[:, :, inputs].reshape(-1, inputs.size)
        found = np.empty(problems.shape, np.float32)
        step = max(1, _OBS_CHUNK // inverses[0].size)
        for start in range(0, len(problems), step):
            part = slice(start, start + step)
            groups = np.arange(len(problems))[part] // rows.shape[1]
            found[part] = eliminate_with_updates(problems[part].astype(np.float64), inverses[groups])
        scores[:, :, inputs] = found.reshape(rows.shape[0], rows.shape[1], inputs.size)
    return _as_scores(scores, kernel)


def find_obs_width(num_weights: int, inputs: int) -> int:
    """The most inputs that `obs` eliminates together in a kernel of so many weights, `inputs` a row."""
    return max(1, min(inputs, math.isqrt(OBS_COST_LIMIT // num_weights)))


CRITERIA: Mapping[str, Criterion] = {
    "magnitude": magnitude,
    "activation": activation,
    "fisher": fisher,
    "woodfisher": woodfisher,
    "cbs": cbs,
    "obs": obs,
}

NEEDS: Mapping[str, frozenset[str]] = {
    "magnitude": frozenset(),
    "activation": frozenset({"input_gram"}),
    "fisher": frozenset({"fisher_blocks"}),
    "woodfisher": frozenset({"fisher_blocks"}),
    "cbs": frozenset({"fisher_blocks"}),
    "obs": frozenset({"input_gram"}),
}
"""Name of a criterion -> names of the statistics that it reads."""


def _as_scores(found: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """What was found in the kernel's shape and dtype, cut off at its largest number.

    Weights that are zero alone have 0, and all others more, even those of inputs that are always zero.
    """
    limits = np.finfo(kernel.dtype)
    flat = found.ravel()[: kernel.size]
    scores = np.clip(flat, 0.0, limits.max).astype(kernel.dtype).reshape(kernel.shape)
    return np.where(kernel == 0, np.zeros_like(scores), scores + limits.tiny)
