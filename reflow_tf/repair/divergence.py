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
    if task is Task.FIDELITY or outputs.shape[-1] == 1:
        errors, variance = np.mean(np.square(outputs - dense)), float(np.mean(dense.var(axis=0)))
        return float(errors / (variance or max(float(np.mean(np.square(dense))), _LEAST_PROBABILITY)))
    probabilities = are_probabilities(dense)
    found, reference = (_log_probabilities(values, probabilities) for values in (outputs, dense))
    return float(np.mean(np.sum(np.exp(reference) * (reference - found), axis=-1)))


def _log_probabilities(outputs: np.ndarray, probabilities: bool) -> np.ndarray:
    logits = np.log(np.maximum(outputs, _LEAST_PROBABILITY)) if probabilities else outputs
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
