"""Which images calibrate and which evaluate: never the same, and the same again for the same seed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """Indices into one source; together they are all of its images, each once.

    Attributes:
        calibration: int64, images that calibrate.
        evaluation: int64, images that evaluate.
        dropped: int64, images drawn for calibration whose content also occurs in `evaluation`; used for neither.
    """

    calibration: np.ndarray
    evaluation: np.ndarray
    dropped: np.ndarray


def draw_indices(num_images: int, samples: int, seed: int) -> np.ndarray:
    """Draws `min(samples, num_images)` different indices at random."""
    return np.random.default_rng(seed).permutation(num_images)[:samples]


def split_indices(digests: Sequence[bytes], calibration_samples: int, seed: int) -> Split:
    """Splits one source at random: at most half of its images calibrate, all others evaluate.

    Args:
        digests: content hash of each image.
        calibration_samples: images to draw for calibration.
        seed: of the random permutation.
    """
    order = np.random.default_rng(seed).permutation(len(digests))
    num_drawn = min(calibration_samples, len(digests) // 2)
    drawn, evaluation = order[:num_drawn], order[num_drawn:]
    held_out = {digests[index] for index in evaluation}
    is_shared = np.array([digests[index] in held_out for index in drawn], bool)
    return Split(drawn[~is_shared], evaluation, drawn[is_shared])


def even_batches(num_images: int, batch_size: int) -> tuple[range, ...]:
    """Cuts 0..num_images-1 into the fewest batches of at most `batch_size`, whose sizes differ by at most one.

    1000 images at 256 are 4 x 250, not 3 x 256 and a 232: batch statistics of a tiny last batch would be noise.
    """
    num_batches = -(-num_images // batch_size)
    edges = [num_images * batch // num_batches for batch in range(num_batches + 1)] if num_batches else [0]
    return tuple(range(start, end) for start, end in itertools.pairwise(edges))
