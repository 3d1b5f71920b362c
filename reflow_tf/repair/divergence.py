"""How far a network's outputs, as they are read, are from the dense network's, without labels."""

import numpy as np

from reflow_tf.models.moments import PartialMoments
from reflow_tf.models.outputs import are_probabilities
from reflow_tf.task import Task

_LEAST_PROBABILITY = 1e-9


def measure_divergence(outputs: np.ndarray, dense: np.ndarray, task: Task = Task.CLASSIFICATION) -> float:
    """Mean Kullback-Leibler divergence of the predictions from the dense network's, in nats.

    Numbers, and a single output, have no classes: their squared error is taken, as a share of what the dense network's
    vary by from input to input.

    Args:
        outputs: (n, ..., classes), probabilities or logits, whichever `dense` are; or numbers, (n, numbers).
        dense: of the same shape.
        task: what they are.
    """
    divergence = Divergence(are_probabilities(dense), task)
    divergence.add(outputs, dense)
    return divergence.value


class Divergence:
    """`measure_divergence` of batches, of which float64 sums are kept.

    Args:
        probabilities: whether outputs are, or logits.
        task: what they are.
    """

    def __init__(self, probabilities: bool, task: Task = Task.CLASSIFICATION):
        self._probabilities, self._task = probabilities, task
        self._num_rows, self._sum = 0, 0.0
        self._numbers: PartialMoments | None = None  # of dense outputs, each number a channel

    def add(self, outputs: np.ndarray, dense: np.ndarray) -> None:
        """Takes in a batch, arrays as `measure_divergence` takes them."""
        if self._task is not Task.FIDELITY and outputs.shape[-1] > 1:
            found, reference = (_log_probabilities(values, self._probabilities) for values in (outputs, dense))
            rows = np.sum(np.exp(reference) * (reference - found), axis=-1)
            self._sum, self._num_rows = self._sum + float(rows.sum()), self._num_rows + rows.size
            return
        outputs, dense = outputs.astype(np.float64), dense.astype(np.float64)
        mean = dense.mean(axis=0)
        moments = PartialMoments(len(dense), mean, np.square(dense - mean).sum(axis=0))
        self._numbers = moments if self._numbers is None else self._numbers + moments
        self._sum += float(np.square(outputs - dense).sum())

    @property
    def value(self) -> float:
        """Of all that was added."""
        if self._numbers is None:
            return self._sum / self._num_rows
        variance, mean = self._numbers.variance, self._numbers.mean
        varies, size = float(np.mean(variance)), float(np.mean(variance + np.square(mean)))
        return self._sum / (self._numbers.count * mean.size) / (varies or max(size, _LEAST_PROBABILITY))


def _log_probabilities(outputs: np.ndarray, probabilities: bool) -> np.ndarray:
    logits = np.log(np.maximum(outputs, _LEAST_PROBABILITY)) if probabilities else outputs
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
