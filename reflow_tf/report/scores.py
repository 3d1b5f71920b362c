"""How often a model is right, and how closely two of its forms agree.

A model predicts one class an image, or one at each position of a map. Positions of one image are not independent of
each other, so what is counted is images, and each image's share of positions has the same weight.

A model that predicts numbers is right as far as it gives those of the dense model.
"""

import dataclasses
import math

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.report.interval import mean_interval, ratio_interval, student_quantile, wilson_interval
from reflow_tf.task import Task

# With 5 classes or fewer, the right one is always among the best 5.
_FEWEST_CLASSES_FOR_TOP5 = 6


@dataclasses.dataclass(frozen=True)
class Score:
    """Fractions in [0, 1].

    Attributes:
        top1: share of inputs whose best class is the right one; on maps, the mean of the shares of positions.
        top5: share whose five best hold the right one; None with 5 classes or fewer, and for agreement.
        n: number of inputs.
        top1_interval: 95 % interval of `top1`: Wilson's, and on maps Student's over inputs, None where there is one.
        positions: predictions an input: 1, or as many as a map has positions.
    """

    top1: float
    top5: float | None
    n: int
    top1_interval: tuple[float, float] | None
    positions: int = 1


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far the outputs of a file are from those of the Keras model it was made of.

    Attributes:
        n: number of inputs.
        max_abs: largest absolute difference over all outputs.
        mean_abs: mean absolute difference.
        top1_agreement: share of inputs (on maps: of their positions) with the same best class, in [0, 1]; None where
            outputs are numbers and no classes.
        positions: predictions an input: 1, or as many as a map has positions.
    """

    n: int
    max_abs: float
    mean_abs: float
    top1_agreement: float | None
    positions: int = 1


def score_accuracy(ranked: np.ndarray, labels: np.ndarray, num_classes: int) -> Score:
    """Accuracy of ranked classes.

    Args:
        ranked: (n, *positions, up to 5) int, best class first.
        labels: (n, *positions) int; what is negative has no class, and counts for nothing.
        num_classes: number of classes of the model.

    Raises:
        InputError: the labels are not one for each prediction.
    """
    predictions = ranked.shape[:-1]
    if [axis for axis in predictions if axis != 1] != [axis for axis in labels.shape if axis != 1]:
        raise InputError(
            "A labelled evaluation needs one label for each prediction. "
            f"Received: predictions of shape {predictions}, labels of shape {labels.shape}"
        )
    labels = labels.reshape(predictions)
    known, hits = labels >= 0, ranked == labels[..., np.newaxis]
    top5 = float(hits.any(axis=-1)[known].mean()) if num_classes >= _FEWEST_CLASSES_FOR_TOP5 else None
    if known.all():
        return _score(hits[..., 0], top5)
    parts, wholes = (each.reshape(len(each), -1).sum(axis=1).astype(np.float64) for each in (hits[..., 0], known))
    bounds = ratio_interval(parts, wholes)
    interval = None if bounds is None else (bounds[0], min(1.0, bounds[1]))
    return Score(float(parts.sum() / wholes.sum()), top5, len(hits), interval, math.prod(predictions[1:]))


def score_agreement(ranked: np.ndarray, reference: np.ndarray) -> Score:
    """Share of inputs to which both give the same best class; both (n, *positions, up to 5) int, best class first."""
    return _score(ranked[..., 0] == reference[..., 0], None)


@dataclasses.dataclass(frozen=True)
class MetricScore:
    """One number, of which more is better.

    Attributes:
        value: of all inputs together.
        interval: 95 % interval of it over inputs; None where nothing is known of how they differ.
        n: number of inputs.
    """

    value: float
    interval: tuple[float, float] | None
    n: int


def score_iou(
    ranked: np.ndarray, labels: np.ndarray, num_classes: int, task: Task = Task.CLASSIFICATION
) -> MetricScore:
    """Mean intersection over union of maps of classes, over the classes that are in the labels or predicted.

    Of a class, positions of all inputs together are counted, as PASCAL VOC and Cityscapes do. Of several labels an
    input, those that are on are counted in the place of classes: their mean Jaccard index. The interval is Student's
    with the error of the jackknife over inputs: positions of one are not independent of each other.

    Args:
        ranked: (n, *positions, up to 5) int, best class first.
        labels: (n, *positions) int; what is negative has no class, and counts for nothing.
        num_classes: number of classes of the model.
        task: what its outputs are taken for.

    Source:
        Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, IJCV 2015; the jackknife: Efron
        & Stein, The jackknife estimate of variance, Annals of Statistics 1981.
    """
    predicted = ranked[..., 0].reshape(len(ranked), -1)
    right = labels.reshape(predicted.shape)
    if task is Task.MULTI_LABEL:
        both, either = (np.asarray(found, np.float64) for found in (predicted & right, predicted | right))
    else:
        both, either = (np.zeros((len(ranked), num_classes)) for _ in range(2))
        for row, (every, true) in enumerate(zip(predicted, right, strict=True)):
            own, true = every[true >= 0], true[true >= 0]
            counts = [np.bincount(classes, minlength=num_classes) for classes in (own, true, true[own == true])]
            both[row], either[row] = counts[2], counts[0] + counts[1] - counts[2]
    value = float(_mean_ratio(both.sum(axis=0), either.sum(axis=0)))
    if len(ranked) < 2:
        return MetricScore(value, None, len(ranked))
    without = _mean_ratio(both.sum(axis=0) - both, either.sum(axis=0) - either)
    error = math.sqrt((len(ranked) - 1) / len(ranked) * float(np.square(without - without.mean()).sum()))
    half = student_quantile(0.975, len(ranked) - 1) * error
    return MetricScore(value, (max(0.0, value - half), min(1.0, value + half)), len(ranked))


def _mean_ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Of (..., classes), over the classes that there are."""
    there = wholes > 0
    ratios = np.divide(parts, wholes, out=np.zeros_like(parts), where=there)
    return np.asarray(ratios.sum(axis=-1) / np.maximum(there.sum(axis=-1), 1))


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How far outputs are from those of the dense model for the same inputs.

    Attributes:
        relative_error: root mean square of the errors over that of the dense outputs, all inputs together; of several
            outputs the root mean square of theirs.
        error_interval: 95 % interval of it, see `interval.ratio_interval`; None where there is one input.
        worst: the largest root mean square error of one input, over the same.
        cosine: of the angle between an input's outputs and the dense ones, in the mean; None where either is zero for
            all inputs.
        n: number of inputs.
    """

    relative_error: float
    error_interval: tuple[float, float] | None
    worst: float
    cosine: float | None
    n: int


def score_fidelity(sums: np.ndarray) -> Fidelity:
    """Of each input and output the sums of squared errors, of squares of the dense output, and of its own, (n, outputs,
    3) float64.
    """
    errors, powers, own = even_out(sums).T
    power = float(powers.mean())
    interval = ratio_interval(errors, powers)
    norms = np.sqrt(powers * own)
    cosines = np.clip(((powers + own - errors) / 2)[norms > 0] / norms[norms > 0], -1, 1)
    return Fidelity(
        math.sqrt(float(errors.mean()) / power),
        None if interval is None else (math.sqrt(interval[0]), math.sqrt(interval[1])),
        math.sqrt(float(errors.max()) / power),
        float(cosines.mean()) if cosines.size else None,
        len(sums),
    )


def score_closeness(sums: np.ndarray) -> Score:
    """Fidelity as a share: 1 less the relative error of `score_fidelity`, and 0 where that is more than 1."""
    found = score_fidelity(sums)
    bounds = None
    if found.error_interval is not None:
        low, high = found.error_interval
        bounds = max(0.0, 1 - high), max(0.0, 1 - low)
    return Score(max(0.0, 1 - found.relative_error), None, found.n, bounds)


def even_out(sums: np.ndarray) -> np.ndarray:
    """The same, (n, 3), of all outputs together, each of which counts alike: in units of what the dense one has.

    A dense output that is always zero is taken to be tiny: any error is large beside it.
    """
    powers = sums[:, :, 1].mean(axis=0)
    tiny = float(np.finfo(np.float32).tiny)
    powers = np.where(powers > 0, powers, tiny)
    found = (sums / powers[:, np.newaxis]).sum(axis=1)
    found[:, 1] = np.where(found[:, 1].any(), found[:, 1], 1.0)
    return found


def compare_numbers(outputs: np.ndarray, reference: np.ndarray) -> Parity:
    """Compares two outputs (n, ...) of the same inputs, which are no classes."""
    difference = np.abs(outputs.reshape(len(outputs), -1).astype(np.float64) - reference.reshape(len(reference), -1))
    return Parity(len(outputs), float(difference.max()), float(difference.mean()), None)


def compare_outputs(outputs: np.ndarray, reference: np.ndarray) -> Parity:
    """Compares two outputs (n, ..., classes) of the same inputs."""
    difference = np.abs(outputs.astype(np.float64) - reference)
    agreement = np.mean(outputs.argmax(axis=-1) == reference.argmax(axis=-1))
    positions = math.prod(outputs.shape[1:-1])
    return Parity(len(outputs), float(difference.max()), float(difference.mean()), float(agreement), positions)


def _score(hits: np.ndarray, top5: float | None) -> Score:
    """Of (n, *positions) bool."""
    positions = math.prod(hits.shape[1:])
    if positions == 1:
        interval: tuple[float, float] | None = wilson_interval(int(hits.sum()), len(hits))
    else:
        interval = mean_interval(hits.reshape(len(hits), -1).mean(axis=1))
    return Score(float(hits.mean()), top5, len(hits), interval, positions)
