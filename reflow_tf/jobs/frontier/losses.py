"""What a file is expected to lose, without labels, against the dense network that it replaces.

Where the dense network says of an image that its classes are right with probabilities p, it is right itself with max p,
and a file that names class c with p_c. The mean difference is what accuracy falls by, as far as the dense network's
probabilities can be believed; of two files it says which loses more from far fewer images than labels would.

Where outputs are numbers and no classes, what a file loses is its relative error.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from reflow_tf.crew import ALONE
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.errors import InputError
from reflow_tf.jobs.finished import OpenedFile
from reflow_tf.jobs.scoring import Runner, compare_files
from reflow_tf.models.outputs import are_probabilities, as_probabilities
from reflow_tf.models.predictions import read_outputs
from reflow_tf.repair.contract import show_nothing
from reflow_tf.report.interval import ratio_error
from reflow_tf.report.scores import even_out
from reflow_tf.signal import rank_classes
from reflow_tf.task import Task

_HELD_OUT_EVERY = 4
"""So many calibration images for one that judges, at most."""
_LEAST_IMAGES = 16  # of a calibration set: fewer say too little


class Loss(Protocol):
    """The dense network's opinion of images that nothing is fitted to."""

    def measure(self, file: Runner) -> tuple[float, float]:
        """Percentage points that the file is expected to lose, and their standard error over images."""
        ...


def open_loss(dense: OpenedFile, images: EvaluationSet, num_classes: int | None, task: Task) -> Loss:
    """How files are judged.

    Args:
        dense: runs the dense network.
        images: held out.
        num_classes: of the network, if it names any.
        task: what its outputs are taken for.
    """
    if task is Task.FIDELITY:
        return ExpectedError(dense, images, dense.output_sizes)
    return ExpectedLoss(dense, images, num_classes or 0, task)


class ExpectedLoss:
    """Of a classifier: points of top-1.

    Args:
        dense: runs the dense network.
        images: held out.
        num_classes: of the network.
        task: what its outputs are taken for: classes, or labels.
    """

    def __init__(self, dense: Runner, images: EvaluationSet, num_classes: int, task: Task = Task.CLASSIFICATION):
        self._images, self._num_classes, self._task = images, num_classes, task
        outputs = np.concatenate([self._read(dense, batch) for batch in images])
        self._are_given = are_probabilities(outputs)  # and so they are in any file of the network
        self._probabilities = as_probabilities(outputs, self._are_given)
        self._best = rank_classes(outputs)[..., :2]

    def measure(self, file: Runner) -> tuple[float, float]:
        """Of `Loss`.

        Where few images are classed otherwise, or none, how the losses vary says nothing: the error is at least what
        one image more would lose. Classed otherwise is one whose probabilities move by half its margin, so that it
        loses no more than twice what they move by, and no more than its margin.
        """
        outputs = np.concatenate([self._read(file, batch) for batch in self._images])
        classes = rank_classes(outputs)[..., :1]
        losses = self._average(self._of(self._best[..., :1]) - self._of(classes))
        moved = np.abs(as_probabilities(outputs, self._are_given) - self._probabilities).max(axis=-1, keepdims=True)
        margins = self._of(self._best[..., :1]) - self._of(self._best[..., 1:2])
        one_more = self._average(np.minimum(margins, 2 * moved)).mean() / len(losses)
        return float(losses.mean()), float(max(losses.std(ddof=1) / np.sqrt(len(losses)), one_more))

    def _read(self, runner: Runner, batch: np.ndarray) -> np.ndarray:
        return read_outputs(runner.run(batch), self._num_classes, self._task)

    def _of(self, classes: np.ndarray) -> np.ndarray:
        return np.take_along_axis(self._probabilities, classes.astype(np.int64), axis=-1)

    def _average(self, shares: np.ndarray) -> np.ndarray:
        """Percentage points of each image, whatever positions it has."""
        return 100 * shares.reshape(len(self._best), -1).mean(axis=1)


class ExpectedError:
    """Of a network that predicts numbers: the relative error of its outputs, in %.

    Args:
        dense: runs the dense network.
        images: held out.
        sizes: numbers that each output has for an input.
    """

    def __init__(self, dense: Runner, images: EvaluationSet, sizes: Sequence[int]):
        self._dense, self._images, self._sizes = dense, images, sizes

    def measure(self, file: Runner) -> tuple[float, float]:
        """Of `Loss`; the standard error by the delta method, of a ratio of means and its root."""
        found = compare_files({"file": file}, self._dense, self._sizes, {}, self._images, show_nothing, crew=ALONE)
        errors, powers, _ = even_out(found["file"].sums).T
        share, of_share = ratio_error(errors, powers)
        if not share:
            return 0.0, 0.0
        return 100 * float(np.sqrt(share)), 100 * of_share / (2 * float(np.sqrt(share)))


def require_enough(num_calibration: int, unit: str, purpose: str) -> None:
    """Raises InputError where there are too few calibration images; `purpose` says what a search does with them."""
    if num_calibration < _LEAST_IMAGES:
        raise InputError(
            f"A search needs at least {_LEAST_IMAGES} calibration {unit}s, {purpose}. Received: {num_calibration}"
        )


def hold(calibration: CalibrationSet, judged: np.ndarray) -> EvaluationSet:
    """Those of the calibration images that judge."""
    return EvaluationSet(
        calibration.source, calibration.indices[judged], calibration.preprocessing, calibration.batch_size
    )


def describe_data(num_fitted: int, judging: EvaluationSet, evaluation: EvaluationSet, measure: str) -> dict[str, Any]:
    """The images of a search, in the words of its document; `measure` is what is scored."""
    return {
        "unit": evaluation.unit,
        "fitted": num_fitted,
        "judged": len(judging),
        "evaluation": len(evaluation),
        "measure": measure,
    }


def split(digests: Sequence[bytes], most_fitted: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to fit to, and to judge by: the first so many, and all others.

    Where these are fewer than one for _HELD_OUT_EVERY that are fitted to, one in so many of all judges: spread evenly,
    because neighbours are often of a kind.

    Args:
        digests: of each input: copies of those that judge are not fitted to.
        most_fitted: how many are to be fitted to, if enough are left.
    """
    positions = np.arange(len(digests))
    are_enough = _HELD_OUT_EVERY * (len(digests) - most_fitted) >= most_fitted
    judges = positions >= most_fitted if are_enough else positions % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    judged = positions[judges]
    seen = {digests[position] for position in judged}
    return np.array([p for p in positions[~judges] if digests[p] not in seen], np.int64), judged
