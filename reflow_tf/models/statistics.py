"""What calibration says about kernels, as plain arrays: the Gram of their inputs, and the blocks of their Fisher.

These are what criteria and weight updates read. Kernels are flattened in canonical layout (output, *spatial, input).
A kernel that no calibration input ran through has no entry.
"""

from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.models import fisher, gram
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.task import Task

MOST_IN_BLOCK = 128
"""Weights in a block of the Fisher, so many numbers for each weight; fewer where all would pass LIMIT_BYTES.

ResNet-20 at 70 %, damped by 0.01, 500 images to calibrate, top-1 on 1,500 other training images (dense 99.8, magnitude
75.8): magnitude+woodfisher 85.9 with 50, 89.8 with 128; magnitude+chita 88.6 and 91.6. With 500, 2 points more on 500
test images, in ten times the time. Kurtic et al. (arXiv 2203.07259) take 50.
"""
LEAST_IN_BLOCK = 16

LIMIT_BYTES = 4 << 30
"""Most memory that the statistics of one model may take."""

_SUM_BYTES = 8
"""Of a number while it is summed."""

NAMES = frozenset({"input_gram", "fisher_blocks"})

Gathered = dict[str, dict[str, np.ndarray]]
"""Path of a kernel -> name -> statistic; a kernel that no calibration input ran through has none."""


def gather(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    names: Iterable[str],
    batches: Iterable[np.ndarray],
    *,
    block_size: int | None = None,
    task: Task = Task.CLASSIFICATION,
) -> Gathered:
    """Statistics of the model as it is, at inference, in one pass over the batches for each name.

    Args:
        model: a built model with one input and one output. It is not changed.
        specs: kernels of the model, as `find_kernels` describes them.
        names: of NAMES. "input_gram": (groups, d, d) float64, see `gram`; "fisher_blocks": (blocks, B, B) float32, see
            `fisher`.
        batches: float arrays (n, ...), of any sizes.
        block_size: B, the number of weights in a block of the Fisher; None: see MOST_IN_BLOCK.
        task: what the model's outputs are taken for.

    Returns:
        Path of the spec -> name -> statistic.

    Raises:
        InputError: no batches, batches that do not fit or give numbers that are not finite; a name that is not of
            NAMES; kernels whose layers have no Gram (recurrent, EinsumDense unlike Dense, transposed and
            dilated); more than LIMIT_BYTES.
    """
    names = frozenset(names)
    if names - NAMES:
        raise InputError(f"Statistics must be of {', '.join(sorted(NAMES))}. Received: {', '.join(sorted(names))}")
    block_size = _choose_block_size(specs) if block_size is None else block_size
    _check_memory(model, specs, names, block_size)
    found: Gathered = {spec.path: {} for spec in specs}
    if "input_gram" in names:
        _add(found, "input_gram", gram.gather(model, specs, batches))
    if "fisher_blocks" in names:
        _add(found, "fisher_blocks", fisher.gather(model, specs, batches, block_size, task))
    return found


def _choose_block_size(specs: Sequence[LayerSpec]) -> int:
    fitting = LIMIT_BYTES // (_SUM_BYTES * max(1, sum(spec.num_weights for spec in specs)))
    return max(LEAST_IN_BLOCK, min(MOST_IN_BLOCK, fitting))


def _add(found: Gathered, name: str, statistics: Mapping[str, np.ndarray]) -> None:
    for path, statistic in statistics.items():
        if not np.isfinite(statistic).all():
            raise InputError(f"Activations and gradients must be finite. Received: NaN or infinity at {path}")
        found[path][name] = statistic


def _check_memory(model: keras.Model, specs: Sequence[LayerSpec], names: frozenset[str], block_size: int) -> None:
    if block_size < 1:
        raise InputError(f"The block size of the Fisher must be at least 1. Received: {block_size}")
    needed = {
        "input_gram": 8 * gram.count_numbers(model, specs),
        "fisher_blocks": _SUM_BYTES * block_size * sum(spec.num_weights for spec in specs),
    }
    for name in sorted(names):
        if needed[name] > LIMIT_BYTES:
            raise InputError(
                f"{name} of all the prunable kernels must fit into {LIMIT_BYTES / 2**30:.0f} GiB; leave kernels out "
                f"with --prunable=REGEX. Received: {len(specs)} kernels that need {needed[name] / 2**30:.1f} GiB"
            )
