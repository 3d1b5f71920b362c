"""The narrower model, and the proof that it computes what the masked one does."""

from collections.abc import Iterable

import keras
import numpy as np

from reflow_tf.data.portions import take_first
from reflow_tf.models.channels.narrowing import Kept, narrow
from reflow_tf.models.channels.rotation import spread_streams
from reflow_tf.models.execution import CHUNK
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.observation import run
from reflow_tf.sparsity.masks import is_sparse

CLOSE = 1e-5
"""How far a narrower model may be from the masked one, as a share of the largest output: it sums in another order.

Found: MobileNetV2 on Fashion-MNIST 1.0e-6, 1.3e-6 once its streams were spread; ResNet-8 3.1e-7; with fresh weights, of
which a third of the channels left, ResNet-20 4.1e-7, MobileNetV2 1.8e-7, DS-CNN 4.7e-8.
"""
MOST_COMPARED = 64
"""Inputs on which the two are compared."""
MOST_MEASURED = 128
"""Inputs that say what variances batch norms have on record once streams are spread."""


def narrow_and_check(
    model: keras.Model, kept: Kept, batches: Iterable[np.ndarray], *, spread: bool = False
) -> keras.Model:
    """`models.channels.narrowing.narrow`, and proof on real inputs that it computes the same.

    Args:
        model: with the masks of these channels applied.
        kept: which channels stay.
        batches: float arrays (n, ...), of which the first MOST_COMPARED inputs are compared.
        spread: linear streams are put into a basis that int8 bears; see `rotation.spread_streams`.

    Raises:
        InputError: Keras cannot rebuild a layer with fewer channels.
        AssertionError: the two differ by more than `CLOSE`, or in what is finite: a fault of ours.
    """
    narrower = narrow(model, kept)
    images = take_first(batches, MOST_MEASURED)
    if spread:
        kernels = find_kernels(narrower)
        sparse = [kernels.variables[path] for path, kernel in kernels.read().items() if is_sparse(kernel)]
        spread_streams(narrower, images, sparse)
    _require_close(model, narrower, images[:MOST_COMPARED])
    return narrower


def _require_close(model: keras.Model, narrower: keras.Model, images: np.ndarray) -> None:
    parts = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    differences, sizes = [], [float(np.finfo(np.float32).tiny)]  # outputs may all be zero
    for masked, found in zip(run(model, parts), run(narrower, parts), strict=True):
        differences.append(float(np.abs(masked - found).max()))
        sizes.append(float(np.abs(masked).max()))
    difference, largest = float(np.max(differences)), float(np.max(sizes))
    if not difference <= CLOSE * largest:  # written so that NaN fails
        raise AssertionError(
            "This is a fault of reflow_tf, and of neither the model nor the inputs: the narrower network must compute "
            f"what the masked one does, within {CLOSE:g} of the largest output. For {len(images)} inputs outputs "
            f"differ by {difference:.3g}, and the largest is {largest:.3g}."
        )
