"""Distillation: some minutes of training in which the pruned network learns to compute what the dense one does.

No label is used. What is compared is features, see `feature_matching`; a few hundred images have few outputs, but
millions of activations. Measured on MobileNetV2 at 70 % with 200 images, training towards the outputs as well brought
the training images close to the dense network and took others further away from it. Images are varied: parts of them,
scaled back to full size and mirrored (`views`), mixed in pairs (Zhang et al., "mixup", arXiv 1710.09412).

Part of the inputs is never trained on. What is judged on them, and kept, is an average over the weights of many steps,
with the moments of batch norms re-estimated (`batchnorm`): activations matched by least squares shrink.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.crew import find_memory
from reflow_tf.data.portions import count_inputs, held
from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.observation import check_batch, compile_inference, run
from reflow_tf.models.outputs import are_probabilities
from reflow_tf.models.predictions import Reading, find_reading
from reflow_tf.models.walking import find_batch_norms, walk
from reflow_tf.repair.batchnorm import observe_dense, recalibrate
from reflow_tf.repair.contract import Progress, PrunedModel, RepairOutcome, resolve_memory_budget, show_nothing
from reflow_tf.repair.divergence import measure_divergence
from reflow_tf.repair.feature_matching import Student
from reflow_tf.repair.holdout import HELD_OUT_EVERY, is_held_out
from reflow_tf.repair.views import vary

NAME = "distill"
SECONDS = 600.0
# Of a batch that nothing is trained on.
_JUDGED_AT_ONCE = 64
# By how much a divergence has to be lower to be lower at all; less is rounding.
_LEAST_GAIN = 1e-4
_MOST_JUDGED, _MOST_NORMALIZED = 512, 512  # inputs: a state is judged, and its moments re-estimated, ten times


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How it trains.

    Attributes:
        learning_rate: of Adam, at its highest; it falls along half a cosine.
        batch_size: inputs a step.
        warm_up: steps in which the learning rate rises.
        averaging: how much of the average over the weights a step keeps, in [0, 1).
        output_weight: of the outputs' divergence beside the features.
        judgements: how often in all a state is judged.
        patience: training ends after so many judgements in a row that found nothing better.
    """

    learning_rate: float = 5e-4
    batch_size: int = 16
    warm_up: int = 20
    averaging: float = 0.98
    output_weight: float = 0.0
    judgements: int = 10
    patience: int = 6


RECIPE = Recipe()


def distill(
    pruned: PrunedModel,
    batches: Iterable[np.ndarray],
    progress: Progress = show_nothing,
    *,
    seconds: float = SECONDS,
    epochs: int | None = None,
    seed: int = 0,
    recipe: Recipe = RECIPE,
    memory_budget: int | None = None,
) -> RepairOutcome:
    """Trains every trainable variable of the pruned network towards the dense one's activations, in place.

    What is kept is the state with the lowest divergence from the dense outputs on the held-out inputs; if none is lower
    than before, the model stays as it was. A repair that was fitted to the held-out inputs before looks better on them
    than it is, and is left less easily. Inputs of shape (n, height, width, channels) are varied; others are taken as
    they are.

    Args:
        pruned: best repaired already; on any error, and on Ctrl-C, it is what it was before.
        batches: float arrays (n, ...), re-iterable.
        progress: wraps the indices that are drawn.
        seconds: wall-clock budget. What it buys depends on the machine.
        epochs: budget in passes over the inputs instead: the same seed then gives the same weights, but
            for the order in which threads add.
        seed: of the order, the views and the mixtures.
        recipe: how it trains.
        memory_budget: bytes; inputs that take more than half of it are kept on disk. None: a quarter of the machine's.

    Raises:
        InputError: too few inputs, a batch of the wrong shape, nothing to train, dense outputs or activations that are
            not finite, a full disk.
    """
    if not seconds > 0 or (epochs is not None and epochs < 1):
        raise InputError(f"The budget must be positive. Received: seconds={seconds}, epochs={epochs}")
    num_inputs = count_inputs(batches)
    if num_inputs < HELD_OUT_EVERY:
        raise InputError(
            f"Distillation holds out every {HELD_OUT_EVERY}th calibration input, so it needs at least as many. "
            f"Received: {num_inputs}"
        )
    with held(batches, resolve_memory_budget(memory_budget, find_memory()) / 2) as inputs, pruned.restored_on_error():
        check_batch(pruned.model, inputs)
        return _distill(pruned, inputs, progress, recipe, _Limits(seconds, epochs, seed))


@dataclasses.dataclass(frozen=True)
class _Limits:
    """The budget of a training, as `distill` is given it, and the seed of its draws."""

    seconds: float
    epochs: int | None
    seed: int


def _distill(
    pruned: PrunedModel, inputs: np.ndarray, progress: Progress, recipe: Recipe, limits: _Limits
) -> RepairOutcome:
    chosen = is_held_out(np.arange(len(inputs)))
    (judged,), (training,) = np.nonzero(chosen), np.nonzero(~chosen)
    held_out = inputs[judged[:_MOST_JUDGED]]
    with pruned.as_dense():
        outputs = np.concatenate([outputs.numpy() for outputs in run(pruned.model, _cut(held_out))])
    reading = find_reading(pruned.model, inputs.shape[1:], outputs.shape, pruned.task)
    targets = np.array(reading(outputs))
    if not np.isfinite(targets).all():
        raise InputError("The dense network's outputs must be finite. Received: NaN or infinity")
    rng = np.random.default_rng(limits.seed)
    draws = _Draws(training, recipe.batch_size, rng, limits.seconds, limits.epochs)
    before = pruned.read_weights()
    probabilities = pruned.task.names_classes and are_probabilities(targets)
    student = Student(pruned, recipe.averaging, recipe.output_weight, probabilities, reading)
    judge = _Judge(pruned, held_out, targets, inputs[training[:_MOST_NORMALIZED]], reading)
    _train(student, inputs, draws, judge, recipe, progress)
    judge.write_best()
    _check_zeros(pruned)
    return _describe(pruned, before, judge, draws)


@dataclasses.dataclass
class _Draws:
    """Indices of training inputs, batch after batch, until the budget is spent or somebody sets `stopped`.

    Attributes:
        positions: (n,) int, which are drawn; each is drawn once before any is drawn twice.
        batch_size: how many indices a batch has, unless there are fewer inputs.
        rng: draws.
        seconds: the budget.
        epochs: if not None, the budget in its place: how often each input is drawn.
        stopped: ends the draws.
        drawn: how many indices were drawn.
    """

    positions: np.ndarray
    batch_size: int
    rng: np.random.Generator
    seconds: float
    epochs: int | None
    stopped: bool = False
    drawn: int = 0
    _begin: float = 0.0

    @property
    def num_inputs(self) -> int:
        return len(self.positions)

    @property
    def spent(self) -> float:
        """Share of the budget."""
        if self.epochs is not None:
            return self.drawn / (self.epochs * self.num_inputs)
        return (time.monotonic() - self._begin) / self.seconds

    def __iter__(self) -> Iterator[np.ndarray]:
        waiting = np.empty(0, np.int32)
        size = min(self.batch_size, self.num_inputs)
        self._begin = time.monotonic()
        while self.spent < 1 and not self.stopped:
            while len(waiting) < size:
                waiting = np.concatenate([waiting, self.rng.permutation(self.num_inputs).astype(np.int32)])
            batch, waiting = waiting[:size], waiting[size:]
            self.drawn += size
            yield self.positions[batch]


@dataclasses.dataclass
class _Judge:
    """The held-out inputs, and the best state so far.

    Attributes:
        pruned: what is judged.
        held_out: inputs.
        targets: the dense network's outputs for them.
        reading: of the outputs.
        training: some of the other inputs; the moments of batch norms are taken on them.
        first: divergence before anything was done.
        recalibrated: with the moments re-estimated and nothing else done.
        best: the lowest.
        failures: judgements since then.
    """

    pruned: PrunedModel
    held_out: np.ndarray
    targets: np.ndarray
    training: np.ndarray
    reading: Reading

    def __post_init__(self) -> None:
        self._infer = compile_inference(self.pruned.model)
        with self.pruned.as_dense() as model:
            self._references = observe_dense(model, _cut(self.training))
        self.first = self.best = self._measure()
        self._best_weights, self.failures = self.pruned.read_weights(), 0
        self.recalibrated = self.judge()

    def judge(self) -> float:
        """Re-estimates the moments, and remembers the state if it is the best one. Returns its divergence."""
        try:
            recalibrate(self.pruned.model, _cut(self.training), references=self._references)
        except InputError:  # activations that are not finite, so bad are the weights
            return np.inf
        divergence = self._measure()
        self.failures += 1
        if divergence < self.best * (1 - _LEAST_GAIN):
            self.best, self._best_weights, self.failures = divergence, self.pruned.read_weights(), 0
        return divergence

    def write_best(self) -> None:
        self.pruned.write_weights(self._best_weights)

    def _measure(self) -> float:
        batches = (tf.convert_to_tensor(batch) for batch in _cut(self.held_out))
        outputs = np.concatenate([self.reading(self._infer(batch)).numpy() for batch in batches])
        if not np.isfinite(outputs).all():
            return np.inf
        return measure_divergence(outputs, self.targets, self.reading.task)


def _train(
    student: Student, inputs: np.ndarray, draws: _Draws, judge: _Judge, recipe: Recipe, progress: Progress
) -> None:
    judged = 0
    for step, indices in enumerate(progress(draws, "Distilling")):
        warm = min(1.0, (step + 1) / recipe.warm_up)
        rate = recipe.learning_rate * warm * 0.5 * (1 + np.cos(np.pi * min(1.0, draws.spent)))
        is_finite = np.isfinite(student.learn(vary(inputs[indices], draws.rng), rate))
        if is_finite and draws.spent * recipe.judgements < judged + 1:
            continue
        judged = int(draws.spent * recipe.judgements)
        with student.averaged():
            is_finite &= np.isfinite(judge.judge())
        draws.stopped = not is_finite or judge.failures >= recipe.patience


def _cut(inputs: np.ndarray) -> list[np.ndarray]:
    return np.array_split(inputs, -(-len(inputs) // _JUDGED_AT_ONCE))


def _check_zeros(pruned: PrunedModel) -> None:
    for path, kernel in find_kernels(pruned.model).read().items():
        if path in pruned.masks and kernel[~pruned.masks[path]].any():
            raise AssertionError(f"distillation moved a masked weight of {path}")


def _describe(pruned: PrunedModel, before: tuple[np.ndarray, ...], judge: _Judge, draws: _Draws) -> RepairOutcome:
    if judge.best >= judge.first:
        statement = (
            f"Distillation did not bring the divergence from the dense network on held-out inputs below "
            f"{judge.first:.3g}; the model stays as it was."
        )
        return RepairOutcome(NAME, (), (), (), statement)
    variables = zip(pruned.model.variables, before, strict=True)
    moved = {id(v): v.name for v, value in variables if not np.array_equal(np.array(v), value)}
    repaired = tuple(p.path for p in walk(pruned.model) if any(id(v) in moved for v in _own_variables(p.layer)))
    alone = f" ({judge.recalibrated:.3g} with nothing but the batch norms' moments re-estimated)"
    statement = (
        f"Distillation trained on {draws.num_inputs} inputs, each seen {draws.drawn / draws.num_inputs:.0f} times: the "
        f"divergence from the dense network on {len(judge.held_out)} held-out inputs fell from {judge.first:.3g} to "
        f"{judge.best:.3g}{alone if find_batch_norms(pruned.model) else ''}."
    )
    return RepairOutcome(NAME, repaired, (), tuple(sorted(set(moved.values()))), statement)


def _own_variables(layer: keras.Layer) -> list[keras.Variable]:
    return [*layer._trainable_variables, *layer._non_trainable_variables]
