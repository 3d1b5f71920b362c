"""Signal: whether different inputs still look different inside the network, and at its output.

Pruning shrinks the variance of activations layer by layer until every input looks the same and one class is
predicted for
all of them: signal collapse (Saikumar & Varghese, arXiv 2502.15790). Measured at the output of every batch norm, at
inference, and at the predictions; of networks that name no classes at the outputs.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.moments import PooledMoments
from reflow_tf.models.observation import LayerCall, replaced_calls
from reflow_tf.models.outputs import as_probabilities
from reflow_tf.models.predictions import run_predictions
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.task import Task

DEAD_SHARE = 0.01
COLLAPSED_CLASS_SHARE = 0.5
# Measured on training images of the embedded model (benchmarks/accuracy.py --choose): pruned networks that kept over
# 17 % of the variance lost under 1 point of top-1, those that kept under 3 % lost over 30.
COLLAPSED_RATIO = 0.1
NUM_RANKED = 5
NUM_KEPT = 256
MOST_KEPT_BYTES = 1 << 28

VERDICT_RULE = (
    "The signal has collapsed when the effective number of predicted classes (2 to the entropy of their histogram) is "
    f"under {COLLAPSED_CLASS_SHARE:.0%} of the dense network's, or when the last batch norm keeps under "
    f"{COLLAPSED_RATIO:.0%} of the dense network's variance. Of a network that names no classes: when its outputs "
    f"or the last batch norm keep under {COLLAPSED_RATIO:.0%} of that."
)


@dataclasses.dataclass(frozen=True)
class Signal:
    """What one model did with one set of inputs.

    Attributes:
        variances: path of each batch norm, in the order of execution -> variance of its output, (channels,) float64.
        ranked: the best classes, best first, (inputs, *positions, up to 5): one an input or, on maps, a position.
        num_classes: size of the output's last axis; 2 for a single sigmoid.
        confidence: the mean probability that it gives the class it names, as far as its outputs are probabilities or
            logits.
        outputs: of the first NUM_KEPT inputs; numbers as (n, numbers), of as many inputs as MOST_KEPT_BYTES allow.
        spread: of numbers, the mean of their variances over those inputs; None of classes.

    Where outputs are numbers and no classes, `ranked` has none, `num_classes` is 0 and `confidence` NaN.
    """

    variances: Mapping[str, np.ndarray]
    ranked: np.ndarray
    num_classes: int
    confidence: float
    outputs: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.float32), repr=False)
    spread: float | None = None

    def without_outputs(self) -> "Signal":
        """The same but for `outputs`, of which there are none."""
        return dataclasses.replace(self, outputs=np.empty(0, np.float32))

    @property
    def predicted(self) -> np.ndarray:
        """How often each class was predicted, over all inputs and positions, (classes,) int64."""
        first = self.ranked[..., :1]  # of numbers there is none
        return np.bincount(first.ravel(), minlength=self.num_classes)

    @property
    def entropy_bits(self) -> float:
        """Shannon entropy of the histogram of predicted classes: 0 if all inputs get one class, or there are none."""
        shares = self.predicted[self.predicted > 0] / self.predicted.sum()
        return float(max(0.0, -np.sum(shares * np.log2(shares))))

    @property
    def effective_classes(self) -> float:
        """2 ** entropy: the number of classes, equally often predicted, that would have this entropy."""
        return float(2**self.entropy_bits)


@dataclasses.dataclass(frozen=True)
class LayerRatio:
    """How much of the dense network's variance is left at one batch norm.

    Attributes:
        path: of the batch norm.
        ratio: sum over channels of Var(model) / sum over channels of Var(reference); None where the reference has none.
        channel_ratios: the same channel by channel, (channels,) float64, NaN where the reference has no variance.
        num_dead: channels with under 1 % of the reference's variance.
    """

    path: str
    ratio: float | None
    channel_ratios: np.ndarray
    num_dead: int


def measure_signal(model: keras.Model, batches: Iterable[np.ndarray], task: Task = Task.CLASSIFICATION) -> Signal:
    """Runs the model at inference over the batches; the model is left as it was.

    Args:
        model: a built one. A classifier's output numbers the classes on the last axis or is a single sigmoid; other
            axes are positions.
        batches: float arrays (n, ...).
        task: what its outputs are taken for.

    Raises:
        InputError: a batch does not fit the model, its outputs have no axis of classes, or one is NaN or infinite.
    """
    norms = find_batch_norms(model)
    accumulators = {norm.path: PooledMoments(norm.layer.moving_mean.shape[0]) for norm in norms}
    order: dict[str, None] = {}
    calls = {norm.layer: _observed_call(norm.layer, norm.path, accumulators[norm.path], order) for norm in norms}
    ranked: list[np.ndarray] = []
    num_classes = 0
    kept: list[np.ndarray] = []
    missing = NUM_KEPT
    confidences: list[np.ndarray] = []
    with replaced_calls(calls):
        for outputs in run_predictions(model, batches, task):
            if task.names_classes:
                num_classes = outputs.shape[-1]
                ranked.append(rank_classes(outputs))
                confidences.append(as_probabilities(outputs).max(axis=-1).ravel())
            else:
                require_finite(outputs)
                ranked.append(np.empty((len(outputs), 0), np.uint8))
                missing = min(missing, max(1, MOST_KEPT_BYTES // outputs[0].nbytes) - sum(map(len, kept)))
            if missing > 0:  # a copy: a view would hold all of the batch
                kept.append(outputs[:missing].copy())
                missing -= len(kept[-1])
    variances = {path: accumulators[path].moments().variance for path in order}
    found = np.concatenate(kept)
    if task is Task.FIDELITY:
        spread = float(np.mean(found.var(axis=0, dtype=np.float64)))
        return Signal(variances, np.concatenate(ranked), 0, math.nan, found, spread)
    return Signal(variances, np.concatenate(ranked), num_classes, float(np.concatenate(confidences).mean()), found)


def compare_signals(signal: Signal, reference: Signal) -> tuple[LayerRatio, ...]:
    """Var(model)/Var(reference) at every batch norm, in the order of execution."""
    return tuple(_compare_layer(path, signal.variances[path], dense) for path, dense in reference.variances.items())


def has_collapsed(signal: Signal, reference: Signal) -> bool:
    """The verdict; `VERDICT_RULE` is its rule in words."""
    if signal.spread is not None and reference.spread is not None:
        if signal.spread < COLLAPSED_RATIO * reference.spread:
            return True
    elif signal.effective_classes < COLLAPSED_CLASS_SHARE * reference.effective_classes:
        return True
    ratios = [layer.ratio for layer in compare_signals(signal, reference) if layer.ratio is not None]
    return bool(ratios) and ratios[-1] < COLLAPSED_RATIO


def rank_classes(outputs: np.ndarray) -> np.ndarray:
    """Indices of the up to 5 largest of (..., classes), best first, (..., up to 5); ties: lower first.

    Of the smallest type that counts the classes: a map has as many predictions as the image has pixels.

    Raises:
        InputError: an output is NaN or infinite, so that there is no best one.
    """
    require_finite(outputs)
    ranked = np.argsort(-outputs, axis=-1, kind="stable")[..., :NUM_RANKED]
    return ranked.astype(np.min_scalar_type(outputs.shape[-1]))


def require_finite(outputs: np.ndarray) -> None:
    """Raises InputError if an output is NaN or infinite."""
    if not np.isfinite(outputs).all():
        raise InputError("The outputs of the model must be finite to be compared. Received: NaN or infinity")


def _compare_layer(path: str, variance: np.ndarray, dense: np.ndarray) -> LayerRatio:
    channel_ratios = np.divide(variance, dense, out=np.full_like(dense, np.nan), where=dense > 0)
    ratio = float(variance.sum() / dense.sum()) if dense.sum() > 0 else None
    return LayerRatio(path, ratio, channel_ratios, int(np.count_nonzero(channel_ratios < DEAD_SHARE)))


def _observed_call(
    layer: keras.layers.BatchNormalization, path: str, accumulator: PooledMoments, order: dict[str, None]
) -> LayerCall:
    inference_call = layer.call

    def call(inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        del training
        order[path] = None
        outputs = inference_call(inputs, training=False)
        accumulator.update(outputs, layer.axis, mask)
        return outputs

    return call
