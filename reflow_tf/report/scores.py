"""How often a model is right, and how closely two of its forms agree."""

import dataclasses

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.report.interval import wilson_interval

# With 5 classes or fewer, the right one is always among the best 5.
_FEWEST_CLASSES_FOR_TOP5 = 6


@dataclasses.dataclass(frozen=True)
class Score:
    """Fractions in [0, 1].

    Attributes:
        top1: share of inputs whose best class is the right one.
        top5: share whose five best hold the right one; None with 5 classes or fewer, and for agreement.
        n: number of inputs.
        top1_interval: 95 % Wilson interval of `top1`.
    """

    top1: float
    top5: float | None
    n: int
    top1_interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far the outputs of a file are from those of the Keras model it was made of.

    Attributes:
        n: number of inputs.
        max_abs: largest absolute difference over all outputs.
        mean_abs: mean absolute difference.
        top1_agreement: share of inputs with the same best class, in [0, 1].
    """

    n: int
    max_abs: float
    mean_abs: float
    top1_agreement: float


def score_accuracy(ranked: np.ndarray, labels: np.ndarray, num_classes: int) -> Score:
    """Accuracy of ranked classes.

    Args:
        ranked: (n, up to 5) int, best class first.
        labels: (n,) int.
        num_classes: number of classes of the model.

    Raises:
        InputError: the model gives more or fewer predictions than there are labels.
    """
    if len(ranked) != len(labels):
        raise InputError(
            "A labelled evaluation needs one prediction for each input: outputs of shape (batch, classes). "
            f"Received: {len(ranked)} predictions for {len(labels)} labels"
        )
    hits = ranked == labels[:, None]
    top5 = float(hits.any(axis=1).mean()) if num_classes >= _FEWEST_CLASSES_FOR_TOP5 else None
    return _score(hits[:, 0], top5)


def score_agreement(ranked: np.ndarray, reference: np.ndarray) -> Score:
    """Share of inputs to which both give the same best class; both (n, up to 5) int, best class first."""
    return _score(ranked[:, 0] == reference[:, 0], None)


def compare_outputs(outputs: np.ndarray, reference: np.ndarray) -> Parity:
    """Compares two outputs (n, ..., classes) of the same inputs."""
    difference = np.abs(outputs.astype(np.float64) - reference)
    agreement = np.mean(outputs.argmax(axis=-1) == reference.argmax(axis=-1))
    return Parity(len(outputs), float(difference.max()), float(difference.mean()), float(agreement))


def _score(hits: np.ndarray, top5: float | None) -> Score:
    return Score(float(hits.mean()), top5, len(hits), wilson_interval(int(hits.sum()), len(hits)))
