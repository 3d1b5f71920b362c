"""How far a network's outputs are from the dense network's, without labels."""

import numpy as np

from reflow_tf.models.outputs import are_probabilities

_LEAST_PROBABILITY = 1e-9


def measure_divergence(outputs: np.ndarray, dense: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the predictions from the dense network's, in nats.

    Args:
        outputs: (n, ..., classes), probabilities or logits, whichever `dense` are. A single output has no classes: its
            squared error is taken, as a share of the dense outputs' variance.
        dense: of the same shape.
    """
    if outputs.shape[-1] == 1:
        return float(np.mean(np.square(outputs - dense)) / max(float(dense.var()), _LEAST_PROBABILITY))
    probabilities = are_probabilities(dense)
    found, reference = (_log_probabilities(values, probabilities) for values in (outputs, dense))
    return float(np.mean(np.sum(np.exp(reference) * (reference - found), axis=-1)))


def _log_probabilities(outputs: np.ndarray, probabilities: bool) -> np.ndarray:
    logits = np.log(np.maximum(outputs, _LEAST_PROBABILITY)) if probabilities else outputs
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
