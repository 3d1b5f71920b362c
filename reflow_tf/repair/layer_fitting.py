"""One layer's kernel, fitted to a target: its normal equations from activations, then the mask and the weights on it.

What is minimized is in `sparsity.reconstruction`; here are the layers and their activations.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.execution import CHUNK, read_steps
from reflow_tf.models.gram import find_patches
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.observation import find_activation, without_activation
from reflow_tf.repair.contract import Progress
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.plan import PlannedLayer
from reflow_tf.sparsity.reconstruction import SHRINKAGE, NormalEquations, choose_mask, solve_together


@dataclasses.dataclass(frozen=True)
class Fit:
    """What became of one kernel.

    Attributes:
        kernel: canonical layout.
        mask: canonical layout.
        error: what is left, as a share of the target's variance, outputs weighted by their gains.
    """

    kernel: np.ndarray
    mask: np.ndarray
    error: float


@dataclasses.dataclass(frozen=True)
class Problem:
    """One layer's normal equations as gathered, and as they are solved."""

    equations: NormalEquations
    regularized: NormalEquations


@dataclasses.dataclass(frozen=True)
class LayerSums:
    """One layer's normal equations, and the means that were taken off: (groups, d) and (outputs,).

    Attributes:
        equations: over positions.
        of_means: over the means of each input's positions.
        input_mean: (groups, d).
        target_mean: (outputs,).
    """

    equations: NormalEquations
    of_means: NormalEquations
    input_mean: np.ndarray
    target_mean: np.ndarray

    def regularize(self, kernel: np.ndarray, shrinkage: float = SHRINKAGE) -> Problem:
        """The problem of fitting a kernel in place of this one, the dense one (canonical layout, float64)."""
        weights = kernel.reshape(self.equations.cross.shape)
        return Problem(self.equations, self.equations.regularized(weights, shrinkage))

    def weigh(self, coherence: float) -> NormalEquations:
        """Those of errors that cost so many times as much where they are the same all over an input.

        For judging. Fitted to, they are learned by heart, since an input has one mean: MobileNetV2, single weights at
        70 %, 500 images, 1,000 others: 59.3 % classed as by the dense network with 1, 57.8 % with 2, 53.6 % with
        what `fisher.gather_output_errors` finds (5 to 37).
        """
        return self.equations + self.of_means.scaled(coherence - 1)

    def predict_moments(self, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each output, but for the bias, if this kernel (canonical layout) met these inputs."""
        rows = kernel.reshape(self.equations.cross.shape)
        variance = np.einsum("god,god->go", rows @ self.equations.gram, rows)
        return np.einsum("god,gd->go", rows, self.input_mean).ravel(), variance.ravel()


@dataclasses.dataclass(frozen=True)
class RunningSums:
    """What normal equations are made of, over some inputs, float64; those of other inputs are added to it.

    Attributes:
        count: positions that were looked at, in all inputs together; where they are weighed, what they are worth.
        gram: x x^T, (groups, d, d).
        cross: t x^T, (groups, outputs of a group, d).
        power: t^2, (groups, outputs of a group).
        inputs: x, (groups, d).
        targets: t, (groups, outputs of a group).
        num_means, mean_gram, mean_cross, mean_power: the same four of the means over the positions of each input.
    """

    count: float
    gram: np.ndarray
    cross: np.ndarray
    power: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    num_means: int
    mean_gram: np.ndarray
    mean_cross: np.ndarray
    mean_power: np.ndarray

    def __add__(self, other: "RunningSums") -> "RunningSums":
        pairs = zip(_values(self), _values(other), strict=True)
        return RunningSums(*(mine + theirs for mine, theirs in pairs))

    def finish(self, path: str) -> LayerSums:
        """The normal equations, means taken off.

        Raises:
            InputError: activations that were not finite, with the path of the kernel.
        """
        if not (np.isfinite(self.gram).all() and np.isfinite(self.cross).all()):
            raise InputError(f"Activations must be finite. Received: NaN or infinity around {path}")
        mean_x, mean_t = self.inputs / self.count, self.targets / self.count
        gram = self.gram / self.count - mean_x[:, :, None] * mean_x[:, None]
        cross = self.cross / self.count - mean_t[:, :, None] * mean_x[:, None]
        equations = NormalEquations(gram, cross, self.power / self.count - mean_t**2)
        of_means = NormalEquations(
            self.mean_gram / self.num_means - mean_x[:, :, None] * mean_x[:, None],
            self.mean_cross / self.num_means - mean_t[:, :, None] * mean_x[:, None],
            self.mean_power / self.num_means - mean_t**2,
        )
        return LayerSums(equations, of_means, mean_x, mean_t.ravel())


def _values(sums: RunningSums) -> list[Any]:
    return [getattr(sums, field.name) for field in dataclasses.fields(sums)]


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a kernel multiplies and what it is to give, at the positions that `models.gram` looks at.

    Attributes:
        num_inputs: that the positions are of, one after the other.
        inputs: (groups, samples, d).
        targets: (groups, samples, outputs of a group).
    """

    num_inputs: int
    inputs: tf.Tensor
    targets: tf.Tensor


def take_samples(layer: keras.Layer, spec: LayerSpec, inputs: tf.Tensor, targets: tf.Tensor) -> Samples:
    """Of one layer.

    Args:
        layer: one that has patches, see `models.gram.find_patches`, channels last.
        spec: of its kernel.
        inputs: (n, ...) of the layer, few: they are summed up in float32.
        targets: (n, ..., outputs).
    """
    patches = find_patches(layer, spec.path.rpartition("/")[2])
    assert patches is not None
    x = patches(inputs)
    groups, samples, _ = x.shape
    t = tf.transpose(tf.reshape(_pick(targets, len(inputs), samples), [samples, groups, -1]), [1, 0, 2])
    return Samples(len(inputs), x, t)


def sum_up(samples: Samples, worth: tf.Tensor | None = None) -> RunningSums:
    """What the normal equations of one layer are made of.

    Args:
        samples: of the layer.
        worth: how often each position counts, (n, ...), thinned out or not; None: once.
    """
    x, t, num_inputs = samples.inputs, samples.targets, samples.num_inputs
    roots = tf.ones([1, x.shape[1], 1])
    if worth is not None:
        roots = tf.sqrt(_pick(worth[..., None], num_inputs, x.shape[1]))[None]
        x, t = x * roots, t * roots
    counts, of_x, of_t = (_sum_by_input(v, roots, num_inputs) for v in (roots, x, t))
    gram, cross, power = _multiply(x, t)
    mean_gram, mean_cross, mean_power = _multiply(of_x / counts, of_t / counts)
    return RunningSums(
        float(_wide(counts).sum()),
        *(gram, cross, power, _wide(tf.reduce_sum(of_x, axis=1)), _wide(tf.reduce_sum(of_t, axis=1))),
        *(num_inputs, mean_gram, mean_cross, mean_power),
    )


def _sum_by_input(values: tf.Tensor, roots: tf.Tensor, num_inputs: int) -> tf.Tensor:
    """Values times roots, (groups, samples, d) and (1, samples, 1), summed over each input's: (groups, n, d)."""
    by_input, weights = (tf.reshape(v, [len(v), num_inputs, -1, v.shape[-1]]) for v in (values, roots))
    return tf.squeeze(tf.matmul(weights, by_input, transpose_a=True), axis=2)


def _wide(tensor: tf.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.float64)


def _multiply(x: tf.Tensor, t: tf.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X x^T, t x^T and t^2, summed over samples, of (groups, samples, d) and (groups, samples, outputs)."""
    squares = tf.reduce_sum(tf.square(t), axis=1)
    return _wide(tf.matmul(x, x, transpose_a=True)), _wide(tf.matmul(t, x, transpose_a=True)), _wide(squares)


def gather_own_equations(
    model: keras.Model, specs: Mapping[str, LayerSpec], images: np.ndarray, progress: Progress, description: str
) -> dict[str, LayerSums]:
    """The normal equations of kernels that are to compute what they compute, of all at once, a few images at a time.

    Args:
        model: functional or sequential.
        specs: path -> the kernel; of those inside nested models nothing is gathered.
        images: (n, ...).
        progress: wraps the images.
        description: of the pass.

    Raises:
        InputError: the model is subclassed; activations that are not finite.
    """
    steps, kernels = read_steps(model), find_kernels(model)
    found: dict[str, RunningSums] = {}
    for start in progress(range(0, len(images), CHUNK), description):
        ledger = Ledger(steps, {steps.input: tf.convert_to_tensor(images[start : start + CHUNK])})
        for step in steps:
            inputs = [ledger[tensor] for tensor in step.inputs]
            own = (kernels.by_variable.get(id(v)) for v in getattr(step.operation, "_trainable_variables", ()))
            wanted = [spec for spec in own if spec is not None and spec.path in specs]
            with without_activation(step.operation) if wanted else contextlib.nullcontext():
                outputs = step.call(*inputs)
            for spec in wanted:
                sums = sum_up(take_samples(step.operation, spec, inputs[0], outputs))
                found[spec.path] = sums if spec.path not in found else found[spec.path] + sums
            activation = find_activation(step.operation) if wanted else None
            ledger.enter(step, outputs if activation is None else activation(outputs))
    return {path: sums.finish(path) for path, sums in found.items()}


def _pick(values: tf.Tensor, num_inputs: int, samples: int) -> tf.Tensor:
    """Values (n, *spatial, c) at the positions of as many patches: (samples, c)."""
    if len(values.shape) > 2 and math.prod(values.shape[:-1]) != samples:
        lengths, looked_at = values.shape[1:-1], samples // num_inputs
        thinning = next(
            t for t in range(1, max(lengths) + 1) if math.prod(math.ceil(n / t) for n in lengths) == looked_at
        )
        values = values[(slice(None), *[slice(None, None, thinning)] * len(lengths))]
    return tf.reshape(values, [samples, -1])


def fit_kernel(problem: Problem, kernel: np.ndarray, worth: np.ndarray, layer: PlannedLayer) -> Fit:
    """The best mask that the plan allows, and the best weights on it.

    Args:
        problem: of the layer; what it has found out for one sparsity, it knows for the next.
        kernel: the dense one, canonical layout, float64.
        worth: what errors in two outputs cost together, (outputs, outputs); see `fisher.gather_output_worth`.
        layer: pattern and sparsity.
    """
    weights = kernel.reshape(problem.equations.cross.shape)
    of_group = _by_group(worth, problem)

    def select(scores: np.ndarray) -> np.ndarray:
        return layer.pattern.select(scores.reshape(kernel.shape), layer.sparsity).reshape(scores.shape)

    return _solve(problem, kernel, choose_mask(problem.regularized, weights, of_group, select), of_group)


def fit_on_mask(problem: Problem, kernel: np.ndarray, worth: np.ndarray, mask: np.ndarray) -> Fit:
    """The best weights on a mask, canonical layout, that stays; else as `fit_kernel`."""
    kept = mask.reshape(problem.equations.cross.shape)
    of_group = _leave_out(_by_group(worth, problem), np.asarray(kept.any(axis=2)))
    return _solve(problem, kernel, kept, of_group)


def _by_group(worth: np.ndarray, problem: Problem) -> np.ndarray:
    """The worth of the outputs of each group by itself, (groups, outputs of a group, outputs of a group)."""
    _, outputs, _ = problem.equations.cross.shape
    starts = range(0, len(worth), outputs)
    return np.stack([worth[start : start + outputs, start : start + outputs] for start in starts])


def _leave_out(worth: np.ndarray, computed: np.ndarray) -> np.ndarray:
    """The worth, (groups, outputs, outputs), where nothing reads outputs that are not computed any more: no others
    have to make up for them.
    """
    together = computed[:, :, None] & computed[:, None]
    return np.where(together, worth, np.where(np.eye(worth.shape[-1], dtype=bool), 1e-9 * worth, 0.0))


def refit_kernel(problem: Problem, kernel: np.ndarray) -> Fit:
    """The best weights of a kernel that is not pruned, each output by itself; what is zero stays so."""
    groups, outputs, width = problem.equations.cross.shape
    alone = np.broadcast_to(np.eye(outputs), (groups, outputs, outputs))
    return _solve(problem, kernel, kernel.reshape(groups, outputs, width) != 0, alone)


def _solve(problem: Problem, kernel: np.ndarray, mask: np.ndarray, worth: np.ndarray) -> Fit:
    found = solve_together(problem.regularized, mask, worth)
    counts = np.einsum("goo->go", worth)
    total = float(np.sum(problem.equations.power * counts))
    error = float(np.sum(problem.equations.errors(found) * counts)) / total if total > 0 else 0.0
    return Fit(found.reshape(kernel.shape), mask.reshape(kernel.shape), error)
