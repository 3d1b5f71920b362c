"""Whether pixels are scaled as the network was trained with, which needs no labels: its first batch norm remembers.

A batch norm's moving variance is that of what it took in training. In a network that is given pixels scaled otherwise,
what reaches the first one varies some other number of times as much: the square of the ratio of the scales.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.data.batches import CalibrationSet
from reflow_tf.data.preprocessing import SCALINGS, Preprocessing
from reflow_tf.errors import InputError
from reflow_tf.jobs.scoring import spread
from reflow_tf.models.inference import infer_all
from reflow_tf.models.moments import PartialMoments
from reflow_tf.models.observation import LayerCall, replaced_calls
from reflow_tf.models.precision import read_wide
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.repair.unmerging import has_no_moments
from reflow_tf.report.progress import announce

NUM_IMAGES = 32
DOUBTED, FITTING, WRONG = 2.5, 1.6, 10.0
"""Ratios of variances, or their inverses: beyond the first another scaling is looked for, within the second it fits,
and beyond the third the scaling is wrong whatever fits.

Between scalings they are 4 (`unit`, `tf`), 4.9 (`tf`, `torch`) and more, but for `tf` beside `lite` and `none` beside
`caffe`, which differ too little to tell. Photographs of another sort than those trained on make 0.7 to 1.4 of it.
"""


class _Reached(Exception):
    """The first batch norm, behind which nothing needs to be computed."""


def doubt_scaling(model: keras.Model, calibration: CalibrationSet) -> str | None:
    """What speaks against how pixels are scaled; None where nothing does, or nobody knows.

    Args:
        model: the dense network.
        calibration: images as it gets them, or inputs of another kind, of which nothing is known.
    """
    given = calibration.preprocessing
    if not isinstance(given, Preprocessing):
        return None
    few = calibration.select(spread(len(calibration), NUM_IMAGES))
    ratio = _measure_scaled(model, few, given)
    if ratio is None or _distance(ratio) <= math.log(DOUBTED):
        return None
    found = {scaling: _measure_scaled(model, few, scaled) for scaling, scaled in _list_others(given).items()}
    others = {scaling: other for scaling, other in found.items() if other is not None}
    best = min(others, key=lambda scaling: _distance(others[scaling]), default=None)
    said = (
        f"With --preprocess={given.scaling} the images reach the first batch norm with {_spell(ratio)} times the "
        "variance that it was trained with"
    )
    if best is not None and _distance(others[best]) <= math.log(FITTING):
        return f"{said}, with --preprocess={best} with {_spell(others[best])} times: is that what it was trained with?"
    if _distance(ratio) > math.log(WRONG):
        return f"{said}: check whether --preprocess is what it was trained with."
    return None


def warn_of_scaling(model: keras.Model, calibration: CalibrationSet) -> str | None:
    """`doubt_scaling`, said at once: before the long work."""
    doubt = doubt_scaling(model, calibration)
    if doubt is not None:
        announce(doubt)
    return doubt


def _spell(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _distance(ratio: float) -> float:
    return abs(math.log(ratio))


def _list_others(given: Preprocessing) -> dict[str, Preprocessing]:
    """The other scalings that the network's channels allow."""
    others = {}
    for scaling in SCALINGS:
        try:
            others[scaling] = dataclasses.replace(given, scaling=scaling)
        except InputError:  # constants of three colours
            continue
    others.pop(given.scaling, None)
    return others


def _measure_scaled(model: keras.Model, few: CalibrationSet, scaled: Preprocessing) -> float | None:
    images = CalibrationSet(few.source, few.indices, scaled, few.batch_size)
    return measure_first_norm(model, np.concatenate(list(images)))


def measure_first_norm(model: keras.Model, images: np.ndarray) -> float | None:
    """The variance of what the first batch norm takes, over its moving variance: of all channels the median.

    Args:
        model: of any kind.
        images: (n, ...), as it takes them.

    Returns:
        None where there is none, where it was never trained or came merged into its scale, or where nothing varies.
    """
    found: list[float | None] = []

    def watch(norm: keras.layers.BatchNormalization) -> LayerCall:
        def call(inputs: tf.Tensor, *args: object, **kwargs: object) -> tf.Tensor:
            found.append(_compare(norm, inputs))
            raise _Reached

        return call

    norms = find_batch_norms(model)
    if not norms:
        return None
    with replaced_calls({place.layer: watch(place.layer) for place in norms}):
        try:
            infer_all(model, tf.convert_to_tensor(images))
        except Exception:  # Keras may make another one of it
            if not found:
                raise
    return found[0] if found else None


def _compare(norm: keras.layers.BatchNormalization, inputs: tf.Tensor) -> float | None:
    if has_no_moments(norm):
        return None
    expected, variance = read_wide(norm.moving_variance), PartialMoments.of(inputs, norm.axis).variance
    alive = (expected > 0) & (variance > 0)
    return float(np.median(variance[alive] / expected[alive])) if alive.any() else None
