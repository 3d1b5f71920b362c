"""Quadratics 1/2 (w - w0)^T H (w - w0): how they lie over a kernel, their damping, their minimum on a mask.

Two kinds stand for what a change of a kernel costs: the *block Fisher*, one matrix for every B consecutive weights, and
the *Gram* of a layer's inputs, one matrix for all outputs of a group. Either is estimated from few samples and may be
singular, so each gets a share of its mean diagonal on the diagonal, as GPTQ has it (Frantar et al., arXiv
2210.17323, section 3); that also keeps weights that no sample speaks of where they were.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from reflow_tf.errors import InputError

DAMPING: Mapping[str, float] = {"input_gram": 0.01, "fisher_blocks": 0.1}
"""Name of the statistic -> that share. To a Gram an input gives a sample a position of the layer, to a Fisher one.

ResNet-20 at 70 %, blocks of 128, 500 images to calibrate, top-1 on 1,500 other training images (dense 99.8, magnitude
75.8): magnitude+woodfisher 86.1 with 0.001, 89.8 with 0.01, 92.3 with 0.1, 91.3 with 0.3.
"""
_CHUNK = 1 << 22  # numbers that one step over many small matrices holds at a time: 32 MB of float64


def read_statistic(statistics: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The statistic of one layer.

    Raises:
        InputError: it is not there: nothing gathered it, or no calibration input ran through the layer.
    """
    if name not in statistics:
        raise InputError(
            f"The statistic {name} is required: gather it on calibration inputs that run through the layer. "
            f"Received: {', '.join(statistics) or 'no statistics'}"
        )
    return statistics[name]


def split_blocks(array: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The flattened array in rows as long as a block, (blocks, B); the last row is filled up with zeros.

    Args:
        array: a kernel or a mask in canonical layout.
        blocks: "fisher_blocks" of the kernel, (blocks, B, B).

    Raises:
        InputError: the blocks are not those of such a kernel.
    """
    count, width = blocks.shape[0], blocks.shape[-1]
    if blocks.shape != (count, width, width) or not count * width - width < array.size <= count * width:
        raise InputError(
            f"fisher_blocks must be (blocks, B, B) and cover the {array.size} weights of the kernel once. "
            f"Received: {blocks.shape}"
        )
    flat = np.zeros(count * width, array.dtype)
    flat[: array.size] = array.ravel()
    return flat.reshape(count, width)


def join_blocks(rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The inverse of `split_blocks`: an array of the shape of `like`."""
    return rows.ravel()[: like.size].reshape(like.shape)


def split_groups(array: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The array as (groups, outputs of a group, d): the rows that each matrix of the Gram belongs to.

    Args:
        array: a kernel or a mask in canonical layout.
        gram: "input_gram" of the kernel, (groups, d, d).

    Raises:
        InputError: the Gram is not that of such a kernel.
    """
    groups, inputs = gram.shape[0], gram.shape[-1]
    outputs = array.shape[0]
    if gram.shape != (groups, inputs, inputs) or outputs % groups or array.size != outputs * inputs:
        raise InputError(
            f"input_gram must be (groups, d, d) with groups that divide the outputs and d weights an output. "
            f"Received: {gram.shape} for a kernel (output, *spatial, input) of {array.shape}"
        )
    return array.reshape(groups, outputs // groups, inputs)


def find_damping(name: str, matrices: np.ndarray, share: float | None = None) -> float:
    """What is added to the diagonals: a share of the mean diagonal of all the layer's matrices; 1 if that is 0.

    Args:
        name: of the statistic.
        matrices: of one layer, (n, d, d).
        share: None: that of DAMPING.
    """
    share = DAMPING[name] if share is None else share
    return share * float(np.einsum("bii->bi", matrices).mean(dtype=np.float64)) or 1.0


def damp(matrices: np.ndarray, damping: float) -> np.ndarray:
    """The matrices (n, d, d) in float64 with `damping` added to their diagonals."""
    return matrices.astype(np.float64) + damping * np.eye(matrices.shape[-1])


def cut(count: int, size: int) -> Iterator[slice]:
    """Slices of `range(count)`, each of as many things of `size` numbers as are worth holding at a time."""
    step = max(1, _CHUNK // size)
    return (slice(start, start + step) for start in range(0, count, step))


def measure(name: str, matrices: np.ndarray, moves: np.ndarray) -> float:
    """1/2 times the sum of m^T H m over matrices (n, d, d) and moves of theirs, (n, d) or (n, rows, d); damped."""
    rows = moves.reshape(len(matrices), -1, matrices.shape[-1]).astype(np.float64)
    damping = find_damping(name, matrices)
    parts = cut(len(matrices), matrices[0].size)
    return 0.5 * sum(float(np.sum((rows[part] @ damp(matrices[part], damping)) * rows[part])) for part in parts)


def minimize_each(matrices: np.ndarray, targets: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The w of least 1/2 (w - w0)^T H (w - w0) over w that are 0 where `kept` is False, for many small H at once.

    With S the kept and P the other weights, w_S = w0_S + H_SS^-1 H_SP w0_P: the OBS update for all of P together
    (Singh & Alistarh, arXiv 2004.14340, for one weight; Kurtic et al., arXiv 2203.07259, for many).

    Args:
        matrices: H, (n, d, d), positive definite.
        targets: w0, (n, d).
        kept: (n, d) boolean.

    Returns:
        (n, d) float64.
    """
    masked = np.where(kept, 0.0, targets)
    pushes = np.where(kept, (matrices @ masked[..., None])[..., 0], 0.0)
    # Rows and columns of the masked weights become those of the identity, so that all the systems have one size.
    systems = np.where(kept[:, :, None] & kept[:, None, :], matrices, np.eye(matrices.shape[-1]))
    moves = np.linalg.solve(systems, pushes[..., None])[..., 0]
    return np.where(kept, targets + moves, 0.0)


def minimize_blocks(blocks: np.ndarray, targets: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """`minimize_each` for the damped blocks of a Fisher, (blocks, B, B); takes as much memory as a part of them."""
    damping = find_damping("fisher_blocks", blocks)
    result = np.empty(targets.shape)
    for part in cut(len(blocks), blocks[0].size):
        result[part] = minimize_each(damp(blocks[part], damping), targets[part], kept[part])
    return result


def minimize_rows(
    matrix: np.ndarray, targets: np.ndarray, kept: np.ndarray, inverse: np.ndarray | None = None
) -> np.ndarray:
    """`minimize_each` for many rows of one large H: each solves for its kept or its masked weights, what is fewer.

    Args:
        matrix: H, (d, d), positive definite.
        targets: w0, (rows, d).
        kept: (rows, d) boolean.
        inverse: of H, where it is known.

    Returns:
        (rows, d) float64. Takes d^3 operations, and of the order of min(kept, masked)^3 a row.
    """
    inverse = np.linalg.inv(matrix) if inverse is None else inverse
    result = np.where(kept, targets, 0.0).astype(np.float64)
    for row, target, alive in zip(result, targets, kept, strict=True):
        inside, outside = np.flatnonzero(alive), np.flatnonzero(~alive)
        if not (inside.size and outside.size):
            continue
        if inside.size <= outside.size:
            push = matrix[np.ix_(inside, outside)] @ target[outside]
            row[inside] += np.linalg.solve(matrix[np.ix_(inside, inside)], push)
        else:
            pull = np.linalg.solve(inverse[np.ix_(outside, outside)], target[outside])
            row[inside] -= inverse[np.ix_(inside, outside)] @ pull
    return result
