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

CLOSE = 2e-5
"""How far a narrower model may be from the masked one, as a share of the largest output: it sums in another order."""
MOST_MEASURED = 128
"""Inputs that say what variances batch norms have on record once streams are spread."""


def narrow_and_check(
    model: keras.Model, kept: Kept, batches: Iterable[np.ndarray], *, spread: bool = False
) -> keras.Model:
    """`models.channels.narrowing.narrow`, and proof on real inputs that it computes the same.

    Args:
        model: with the masks of these channels applied.
        kept: which channels stay.
        batches: float arrays (n, ...), of which the first few inputs are compared.
        spread: linear streams are put into a basis that int8 bears; see `rotation.spread_streams`.

    Raises:
        InputError: Keras cannot rebuild a layer with fewer channels.
    """
    narrower = narrow(model, kept)
    images = take_first(batches, MOST_MEASURED)
    if spread:
        kernels = find_kernels(narrower)
        sparse = [kernels.variables[path] for path, kernel in kernels.read().items() if is_sparse(kernel)]
        spread_streams(narrower, images, sparse)
    ((masked,), (found,)) = (list(run(each, [images[:CHUNK]])) for each in (model, narrower))
    difference, largest = float(np.abs(masked - found).max()), float(np.abs(masked).max())
    if not difference <= CLOSE * max(largest, 1.0):
        raise AssertionError(f"the narrower model differs by {difference:.3g} from the masked one, of {largest:.3g}")
    return narrower
