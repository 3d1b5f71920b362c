"""How far a network's outputs, as they are read, are from the dense network's, without labels."""

import numpy as np

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
        self._num_rows = self._num_numbers = 0
        self._sum = self._squares = 0.0
        self._center: np.ndarray | None = None
        self._moments: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, outputs: np.ndarray, dense: np.ndarray) -> None:
        """Takes in a batch, arrays as `measure_divergence` takes them."""
        if self._task is not Task.FIDELITY and outputs.shape[-1] > 1:
            found, reference = (_log_probabilities(values, self._probabilities) for values in (outputs, dense))
            rows = np.sum(np.exp(reference) * (reference - found), axis=-1)
            self._sum, self._num_rows = self._sum + float(rows.sum()), self._num_rows + rows.size
            return
        outputs, dense = outputs.astype(np.float64), dense.astype(np.float64)
        if self._center is None:  # about which squares are small: a variance is a difference of large sums otherwise
            self._center = dense.mean(axis=0)
            self._moments = np.zeros_like(self._center), np.zeros_like(self._center)
        assert self._moments is not None
        off = dense - self._center
        self._moments = self._moments[0] + off.sum(axis=0), self._moments[1] + np.square(off).sum(axis=0)
        self._sum += float(np.square(outputs - dense).sum())
        self._squares += float(np.square(dense).sum())
        self._num_rows, self._num_numbers = self._num_rows + len(dense), self._num_numbers + dense.size

    @property
    def value(self) -> float:
        """Of all that was added."""
        if self._moments is None:
            return self._sum / self._num_rows
        sums, squares = (moment / self._num_rows for moment in self._moments)
        variance = float(np.mean(np.maximum(squares - np.square(sums), 0.0)))
        mean_square = self._squares / self._num_numbers
        return self._sum / self._num_numbers / (variance or max(mean_square, _LEAST_PROBABILITY))


def _log_probabilities(outputs: np.ndarray, probabilities: bool) -> np.ndarray:
    logits = np.log(np.maximum(outputs, _LEAST_PROBABILITY)) if probabilities else outputs
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
