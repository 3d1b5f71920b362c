"""Batch norms whose moments were merged into their scale and shift, as importers leave them, get moments again.

Such a norm has mean 0 and variance 1, and computes a x + b. To recalibrate it as it stands would be wrong: what it
would be normalized by afterwards is already in a and b, so it would be divided by twice. With the moments that the
dense network's activations really have, and scale and shift adapted, it computes what it did, and REFLOW and least
squares know what to restore.
"""

from collections.abc import Iterable

import keras
import numpy as np

from reflow_tf.crew import ALONE, Crew
from reflow_tf.errors import InputError
from reflow_tf.models.precision import read_wide
from reflow_tf.models.surgery import restored_on_error, write_values
from reflow_tf.models.walking import PlacedLayer, find_batch_norms
from reflow_tf.repair.batchnorm import Reference, observe_dense
from reflow_tf.repair.contract import Progress, show_nothing


def find_merged(model: keras.Model) -> tuple[PlacedLayer, ...]:
    """The batch norms with mean 0 and variance 1 that scale or shift all the same.

    Those that do neither are of a network that was never trained, and whatever is measured of it is as good.
    """
    return tuple(norm for norm in find_batch_norms(model) if _is_merged(norm.layer))


def _is_merged(norm: keras.layers.BatchNormalization) -> bool:
    if not (norm.scale and norm.center):
        return False
    scale, shift = map(read_wide, (norm.gamma, norm.beta))
    return has_no_moments(norm) and bool(np.any(scale != 1) or np.any(shift != 0))


def has_no_moments(norm: keras.layers.BatchNormalization) -> bool:
    """Whether it has mean 0 and variance 1: it was never trained, or its moments were merged."""
    mean, variance = map(read_wide, (norm.moving_mean, norm.moving_variance))
    # Some importers write 1 - epsilon, so that nothing at all is divided by.
    return not mean.any() and bool(np.all(np.abs(variance - 1) <= 1.01 * norm.epsilon))


def unmerge(
    model: keras.Model, batches: Iterable[np.ndarray], progress: Progress = show_nothing, crew: Crew = ALONE
) -> tuple[str, ...]:
    """Gives merged batch norms the moments of what they take at inference, in place; what the model computes stays.

    With moments m, v now and M, V measured: scale a sqrt(V + eps) / sqrt(v + eps), shift b + a (M - m) / sqrt(v + eps).

    Args:
        model: a built, dense model.
        batches: float arrays (n, ...), of any sizes.
        progress: wraps the pass.
        crew: who leads them through the network.

    Returns:
        Paths of the batch norms; where there is none, no pass was made.

    Raises:
        InputError: no batches, batches that do not fit, activations that are not finite, or moments that the variables
            cannot hold; the model is as it was.
    """
    norms = find_merged(model)
    if not norms:
        return ()
    references = observe_dense(model, batches, progress=progress, crew=crew)
    reached = [norm for norm in norms if norm.path in references]
    with restored_on_error([variable for norm in reached for variable in norm.layer.variables]):
        for norm in reached:
            _adapt(norm.layer, references[norm.path])
    return tuple(norm.path for norm in reached)


def require_unmerged(model: keras.Model) -> None:
    """Refuses a model whose batch norms are merged, where what the dense network computes cannot be known any more.

    Raises:
        InputError: with the paths of some.
    """
    if norms := find_merged(model):
        named = ", ".join(norm.path for norm in norms[:3])
        raise InputError(
            f"Batch norms must have moments of their own to be recalibrated; with mean 0 and variance 1 they are "
            f"merged into scale and shift. reflow_tf.prune measures them on the dense model first. "
            f"Received: {len(norms)} such, {named}"
        )


def _adapt(norm: keras.layers.BatchNormalization, reference: Reference) -> None:
    scale, shift = (read_wide(variable).astype(np.float64) for variable in (norm.gamma, norm.beta))
    slope = scale / np.sqrt(reference.variance.astype(np.float64) + norm.epsilon)
    write_values(norm.gamma, slope * np.sqrt(reference.taken_variance + norm.epsilon))
    write_values(norm.beta, shift + slope * (reference.taken_mean - reference.mean))
    write_values(norm.moving_mean, reference.taken_mean)
    write_values(norm.moving_variance, reference.taken_variance)
