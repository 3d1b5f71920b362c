"""Distillation: some minutes of training in which the pruned network learns to answer as the dense one does.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. No label is used. Both
networks see the same view of the same image, and the dense one's answer is computed for that very view: Beyer et al.,
"Knowledge distillation: A good teacher is patient and consistent", arXiv 2106.05237. Besides the outputs, what leaves
each batch norm is compared, as in Romero et al., "FitNets", arXiv 1412.6550: a few hundred images have few outputs, but
millions of activations.

Batch norms normalize by the moments that they have, those that an earlier repair gave them; gamma and beta are trained
like any other weight. So what is trained is the very network that is exported afterwards. Masked weights get no
gradient and stay zero. Part of the images is never trained on: the divergence on it decides which state is kept.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.observation import LayerCall, replaced_calls, run
from reflow_tf.models.outputs import are_probabilities
from reflow_tf.models.walking import find_batch_norms, walk
from reflow_tf.repair.contract import Progress, PrunedModel, RepairOutcome, show_nothing
from reflow_tf.repair.views import draw_boxes

NAME = "distill"
SECONDS = 600.0
BATCH_SIZE = 32
LEARNING_RATE = 1e-4
TEMPERATURE = 2.0
FEATURE_WEIGHT = 5.0
# Every fifth input is held out.
HELD_OUT_EVERY = 5
WARM_UP = 0.03
# Share of the budget after which training ends if the held-out divergence has not fallen.
PATIENCE = 0.4


@dataclasses.dataclass
class _Draws:
    """Indices of training inputs, batch after batch, until the budget is spent or somebody sets `stopped`.

    Attributes:
        num_inputs: how many there are to draw from; each is drawn once before any is drawn twice.
        rng: draws.
        seconds: the budget.
        epochs: if not None, the budget in its place: how often each input is drawn.
        stopped: ends the draws.
    """

    num_inputs: int
    rng: np.random.Generator
    seconds: float
    epochs: int | None
    stopped: bool = False
    drawn: int = 0
    _begin: float = 0.0

    @property
    def batch_size(self) -> int:
        return min(BATCH_SIZE, self.num_inputs)

    @property
    def spent(self) -> float:
        """Share of the budget."""
        if self.epochs is not None:
            return self.drawn / (self.epochs * self.num_inputs)
        return (time.monotonic() - self._begin) / self.seconds

    @property
    def at_end_of_epoch(self) -> bool:
        return self.drawn % self.num_inputs < self.batch_size

    def __iter__(self) -> Iterator[np.ndarray]:
        waiting = np.empty(0, np.int32)
        self._begin = time.monotonic()
        while self.spent < 1 and not self.stopped:
            while len(waiting) < self.batch_size:
                waiting = np.concatenate([waiting, self.rng.permutation(self.num_inputs).astype(np.int32)])
            batch, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            self.drawn += len(batch)
            yield batch


@dataclasses.dataclass(frozen=True)
class _Student:
    """What a training step needs to know of the pruned network.

    Attributes:
        model: the pruned network.
        dense: pairs (variable, dense value).
        trained: the variables that are trained.
        masks: for each of them 1 where it may move, or None where it may everywhere.
        features: what the observed layers gave in the call that is being traced.
        probabilities: the outputs are probabilities, not values.
    """

    model: keras.Model
    dense: list[tuple[keras.Variable, tf.Tensor]]
    trained: list[keras.Variable]
    masks: list[tf.Tensor | None]
    features: list[tf.Tensor]
    probabilities: bool

    def answer(self, inputs: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The pruned network's outputs and features."""
        self.features.clear()
        outputs = self.model(inputs, training=False)
        return outputs, list(self.features)

    def answer_as_dense(self, inputs: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The dense network's, without touching a variable."""
        with keras.StatelessScope(state_mapping=self.dense):
            return self.answer(inputs)


def distill(
    pruned: PrunedModel,
    batches: Iterable[np.ndarray],
    progress: Progress = show_nothing,
    *,
    seconds: float = SECONDS,
    epochs: int | None = None,
    seed: int = 0,
) -> RepairOutcome:
    """Trains every trainable variable of the pruned network towards the dense one's outputs, in place.

    What is kept is the state with the lowest divergence from the dense outputs on the held-out inputs; if none is lower
    than before, the model stays as it was. Inputs of shape (n, height, width, channels) are varied: parts of them at
    random, scaled back to full size, and mirror images; other inputs are taken as they are.

    Args:
        pruned: best repaired already; on any error, and on Ctrl-C, it is what it was before.
        batches: float arrays (n, ...); all of them are held in memory.
        progress: wraps the indices that are drawn.
        seconds: wall-clock budget. What it buys depends on the machine.
        epochs: budget in passes over the inputs instead: the same seed then gives the same weights.
        seed: of the order and the views.

    Raises:
        InputError: fewer than two inputs, a batch of the wrong shape, nothing to train, or no finite dense output.
    """
    if seconds <= 0 or (epochs is not None and epochs < 1):
        raise InputError(f"The budget must be positive. Received: seconds={seconds}, epochs={epochs}")
    inputs = np.concatenate([np.asarray(batch) for batch in batches] or [np.empty(0)])
    held_out = np.arange(len(inputs)) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
    if len(inputs) < HELD_OUT_EVERY:
        raise InputError(
            f"Distillation holds out every {HELD_OUT_EVERY}th calibration input, so it needs at least as many. "
            f"Received: {len(inputs)}"
        )
    judged = [inputs[held_out][i : i + BATCH_SIZE] for i in range(0, int(held_out.sum()), BATCH_SIZE)]
    with pruned.as_dense():
        targets = _predict(pruned.model, judged)
    if not np.isfinite(targets).all():
        raise InputError("The dense network's outputs must be finite. Received: NaN or infinity")
    draws = _Draws(len(inputs) - len(targets), np.random.default_rng(seed), seconds, epochs)
    with pruned.restored_on_error():
        before, after = _train(pruned, inputs[~held_out], draws, judged, targets, progress)
        _check_zeros(pruned)
    return _describe(pruned, before, after, draws)


def _train(
    pruned: PrunedModel,
    inputs: np.ndarray,
    draws: _Draws,
    judged: list[np.ndarray],
    targets: np.ndarray,
    progress: Progress,
) -> tuple[float, float]:
    """Trains, and leaves the model in its best state. Returns the held-out divergence before, and in that state."""
    probabilities = are_probabilities(targets)

    infer = tf.function(lambda batch: pruned.model(batch, training=False), autograph=False)

    def judge() -> float:
        outputs = tf.concat([infer(tf.convert_to_tensor(batch)) for batch in judged], 0)
        return float(_divergence(outputs, targets, probabilities))

    before = best = judge()
    best_weights, last_gain = pruned.read_weights(), 0.0
    step = _build_step(pruned, inputs, probabilities)
    for indices in progress(draws, "Distilling"):
        rate = LEARNING_RATE * min(1.0, draws.spent / WARM_UP) * 0.5 * (1 + np.cos(np.pi * min(1.0, draws.spent)))
        step(indices, draw_boxes(draws.rng, len(indices), inputs.shape), rate)
        if not draws.at_end_of_epoch and draws.spent < 1:
            continue
        if (divergence := judge()) < best:
            best, best_weights, last_gain = divergence, pruned.read_weights(), draws.spent
        draws.stopped = draws.spent - last_gain > PATIENCE or not np.isfinite(divergence)
    pruned.write_weights(best_weights)
    return before, best


def _build_step(
    pruned: PrunedModel, inputs: np.ndarray, probabilities: bool
) -> Callable[[np.ndarray, np.ndarray | None, float], None]:
    """One step of Adam as a graph: (indices of inputs, views of them, learning rate)."""
    student = _describe_student(pruned, probabilities)
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build(student.trained)

    def step(batch: tf.Tensor) -> None:
        targets, target_features = student.answer_as_dense(batch)
        with tf.GradientTape() as tape:
            outputs, features = student.answer(batch)
            loss = _divergence(outputs, targets, student.probabilities, TEMPERATURE)
            if features:
                differences = [_relative_error(*pair) for pair in zip(features, target_features, strict=True)]
                loss += FEATURE_WEIGHT * tf.add_n(differences) / len(differences)
        gradients = tape.gradient(loss, student.trained, unconnected_gradients="zero")
        masked = [g if mask is None else g * mask for g, mask in zip(gradients, student.masks, strict=True)]
        optimizer.apply(masked, student.trained)

    # No XLA: compiling MobileNetV2 for CPUs takes longer than a minute of training.
    graph = tf.function(step, autograph=False)
    observed = _find_observed(pruned)

    def run_step(indices: np.ndarray, views: np.ndarray | None, rate: float) -> None:
        optimizer.learning_rate.assign(rate)
        batch = tf.convert_to_tensor(inputs[indices])
        if views is not None:
            batch = tf.image.crop_and_resize(batch, views, tf.range(len(indices)), inputs.shape[1:3])
        # Only the trace goes through the replaced calls.
        with replaced_calls({layer: _observed_call(layer, student.features) for layer in observed}):
            graph(batch)
        student.features.clear()

    return run_step


def _describe_student(pruned: PrunedModel, probabilities: bool) -> _Student:
    trained = list(pruned.model.trainable_variables)
    if not trained:
        raise InputError(
            f"Distillation needs a model with trainable variables. Received: {pruned.model.name}, all frozen"
        )
    kernels = find_kernels(pruned.model)
    kept = {
        id(kernels.variables[spec.path]): spec.from_canonical(pruned.masks[spec.path])
        for spec in kernels.specs
        if spec.path in pruned.masks
    }
    masks = [tf.cast(kept[id(v)], v.dtype) if id(v) in kept else None for v in trained]
    dense = [
        (variable, tf.convert_to_tensor(value))
        for variable, value in zip(pruned.model.variables, pruned.dense_weights, strict=True)
    ]
    return _Student(pruned.model, dense, trained, masks, [], probabilities)


def _find_observed(pruned: PrunedModel) -> tuple[keras.Layer, ...]:
    """The layers whose outputs are compared: batch norms, or, of a model without any, the pruned layers."""
    if norms := find_batch_norms(pruned.model):
        return tuple(norm.layer for norm in norms)
    owners = {path.rpartition("/")[0] for path in pruned.masks}
    return tuple(placed.layer for placed in walk(pruned.model) if placed.path in owners)


def _observed_call(layer: keras.Layer, features: list[tf.Tensor]) -> LayerCall:
    inference_call = layer.call

    def call(*args: object, **options: object) -> tf.Tensor:
        outputs = inference_call(*args, **options)
        features.append(outputs)
        return outputs

    return call


def _predict(model: keras.Model, batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([outputs.numpy() for outputs in run(model, batches)])


def _divergence(outputs: tf.Tensor, targets: tf.Tensor, probabilities: bool, temperature: float = 1.0) -> tf.Tensor:
    """Kullback-Leibler divergence of the outputs from the targets, times temperature squared; or relative error."""
    if not probabilities:
        return _relative_error(outputs, targets)
    # A softmax of log(p) / T is what a softmax at temperature T of the unknown logits would be.
    tiny = np.finfo(np.float32).tiny
    ours, theirs = (
        tf.nn.log_softmax(tf.math.log(tf.cast(p, tf.float32) + tiny) / temperature) for p in (outputs, targets)
    )
    return temperature**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(theirs) * (theirs - ours), -1))


def _relative_error(values: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Mean squared difference over the variance of the targets."""
    values, targets = tf.cast(values, tf.float32), tf.cast(targets, tf.float32)
    return tf.reduce_mean(tf.square(values - targets)) / (tf.math.reduce_variance(targets) + 1e-12)


def _check_zeros(pruned: PrunedModel) -> None:
    for path, kernel in find_kernels(pruned.model).read().items():
        if path in pruned.masks and kernel[~pruned.masks[path]].any():
            raise AssertionError(f"distillation moved a masked weight of {path}")


def _describe(pruned: PrunedModel, before: float, after: float, draws: _Draws) -> RepairOutcome:
    if after >= before:
        statement = (
            f"Distillation did not bring the divergence from the dense network on held-out inputs below {before:.3g}; "
            "the model stays as it was."
        )
        return RepairOutcome(NAME, (), (), (), statement)
    trained = pruned.model.trainable_variables
    owners = {
        id(variable): placed.path for placed in walk(pruned.model) for variable in placed.layer._trainable_variables
    }
    statement = (
        f"Distillation trained {len(trained)} variables on {draws.num_inputs} inputs, each seen "
        f"{draws.drawn / draws.num_inputs:.0f} times: the divergence from the dense network on held-out inputs fell "
        f"from {before:.3g} to {after:.3g}."
    )
    repaired = tuple(dict.fromkeys(owners[id(v)] for v in trained if id(v) in owners))
    return RepairOutcome(NAME, repaired, (), tuple(sorted({v.name for v in trained})), statement)
