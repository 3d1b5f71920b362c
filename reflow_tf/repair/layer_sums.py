"""What one layer's normal equations are made of: sums over what its kernel multiplies and what it is to give."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.execution import CHUNK, read_steps
from reflow_tf.models.gram import find_patches, find_thinning
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.observation import find_activation, without_activation
from reflow_tf.repair.contract import Progress
from reflow_tf.repair.layer_fitting import Problem
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.reconstruction import SHRINKAGE, NormalEquations


@dataclasses.dataclass(frozen=True)
class InputMoments:
    """What a layer takes, and what it is to give on average.

    Attributes:
        covariance: of the inputs, (groups, d, d).
        mean: of the inputs, (groups, d).
        target_mean: (outputs,).
    """

    covariance: np.ndarray
    mean: np.ndarray
    target_mean: np.ndarray

    def predict(self, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each output, but for the bias, if this kernel (canonical layout) met these inputs."""
        groups, _, width = self.covariance.shape
        rows = kernel.reshape(groups, -1, width)
        variance = np.einsum("god,god->go", rows @ self.covariance, rows)
        return np.einsum("god,gd->go", rows, self.mean).ravel(), variance.ravel()


@dataclasses.dataclass(frozen=True)
class LayerSums:
    """One layer's normal equations, and the means that were taken off."""

    equations: NormalEquations
    moments: InputMoments

    def regularize(self, kernel: np.ndarray, shrinkage: float = SHRINKAGE) -> Problem:
        """The problem of fitting a kernel in place of this one, the dense one (canonical layout, float64)."""
        weights = kernel.reshape(self.equations.cross.shape)
        return Problem(self.equations, self.equations.regularized(weights, shrinkage))


@dataclasses.dataclass(frozen=True)
class InputSums:
    """What `InputMoments` are made of, over some inputs, float64; those of other inputs are added to it.

    Attributes:
        count: positions that were looked at, in all inputs together; where they are weighed, what they are worth.
        gram: x x^T, (groups, d, d).
        inputs: x, (groups, d).
        targets: t, (groups, outputs of a group).
    """

    count: float
    gram: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray

    def __add__(self, other: "InputSums") -> "InputSums":
        gram, inputs, targets = self.gram + other.gram, self.inputs + other.inputs, self.targets + other.targets
        return InputSums(self.count + other.count, gram, inputs, targets)

    def finish(self, path: str) -> InputMoments:
        """The moments, means taken off.

        Raises:
            InputError: activations that were not finite, with the path of the kernel.
        """
        _require_finite(path, self.gram, self.targets)
        mean = self.inputs / self.count
        covariance = self.gram / self.count - mean[:, :, None] * mean[:, None]
        return InputMoments(covariance, mean, (self.targets / self.count).ravel())


@dataclasses.dataclass(frozen=True)
class RunningSums:
    """What normal equations are made of, over some inputs, float64; those of other inputs are added to it.

    Attributes:
        moments: of the inputs and targets by themselves.
        cross: t x^T, (groups, outputs of a group, d).
        power: t^2, (groups, outputs of a group).
    """

    moments: InputSums
    cross: np.ndarray
    power: np.ndarray

    def __add__(self, other: "RunningSums") -> "RunningSums":
        return RunningSums(self.moments + other.moments, self.cross + other.cross, self.power + other.power)

    def finish(self, path: str) -> LayerSums:
        """The normal equations, means taken off.

        Raises:
            InputError: activations that were not finite, with the path of the kernel.
        """
        _require_finite(path, self.cross, self.power)
        moments, count = self.moments.finish(path), self.moments.count
        target_mean = moments.target_mean.reshape(self.power.shape)
        cross = self.cross / count - target_mean[:, :, None] * moments.mean[:, None]
        return LayerSums(NormalEquations(moments.covariance, cross, self.power / count - target_mean**2), moments)


_Sums = TypeVar("_Sums", InputSums, RunningSums)


def _require_finite(path: str, *sums: np.ndarray) -> None:
    if not all(np.isfinite(each).all() for each in sums):
        raise InputError(f"Activations must be finite. Received: NaN or infinity around {path}")


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a kernel multiplies and what it is to give, at the positions that `models.gram` looks at.

    Attributes:
        num_inputs: that the positions are of, one after the other.
        thinning: every so many rows and columns are looked at.
        inputs: (groups, samples, d).
        targets: (groups, samples, outputs of a group).
    """

    num_inputs: int
    thinning: int
    inputs: tf.Tensor
    targets: tf.Tensor

    def average(self) -> "Samples":
        """One sample of each input: the mean of its own."""
        by_input = (tf.reshape(v, [len(v), self.num_inputs, -1, v.shape[-1]]) for v in (self.inputs, self.targets))
        return Samples(self.num_inputs, self.thinning, *(tf.reduce_mean(v, axis=2) for v in by_input))


def take_samples(layer: keras.Layer, spec: LayerSpec, inputs: tf.Tensor, targets: tf.Tensor) -> Samples:
    """Of one layer.

    Args:
        layer: one that has patches, see `models.gram.find_patches`, channels last.
        spec: of its kernel.
        inputs: (n, ...) of the layer, few: they are summed up in float32.
        targets: (n, ..., outputs).
    """
    name = spec.path.rpartition("/")[2]
    patches, thinning = find_patches(layer, name), find_thinning(layer, name, targets.shape[1:-1])
    assert patches is not None
    x = patches(inputs)
    groups, samples, _ = x.shape
    t = tf.transpose(tf.reshape(thin_out(targets, thinning), [samples, groups, -1]), [1, 0, 2])
    return Samples(len(inputs), thinning, x, t)


def sum_up(samples: Samples, worth: tf.Tensor | None = None) -> RunningSums:
    """What the normal equations of one layer are made of.

    Args:
        samples: of the layer.
        worth: how often each position counts, (n, ...); None: once.
    """
    if worth is None:
        roots = _ones(samples)
    else:
        roots = tf.reshape(tf.sqrt(thin_out(worth[..., None], samples.thinning)), [1, -1, 1])
        samples = dataclasses.replace(samples, inputs=samples.inputs * roots, targets=samples.targets * roots)
    x, t = samples.inputs, samples.targets
    squares = tf.reduce_sum(tf.square(t), axis=1)
    return RunningSums(_sum_inputs(samples, roots), _wide(tf.matmul(t, x, transpose_a=True)), _wide(squares))


def sum_inputs(samples: Samples) -> InputSums:
    """Of these the inputs and targets by themselves, all positions alike."""
    return _sum_inputs(samples, _ones(samples))


def _sum_inputs(weighed: Samples, roots: tf.Tensor) -> InputSums:
    """Of samples that were multiplied by roots, (1, samples, 1)."""
    x, t = weighed.inputs, weighed.targets
    counts, of_x, of_t = (_sum_by_input(values, roots, weighed.num_inputs) for values in (roots, x, t))
    of_x, of_t = (_wide(tf.reduce_sum(values, axis=1)) for values in (of_x, of_t))
    return InputSums(float(_wide(counts).sum()), _wide(tf.matmul(x, x, transpose_a=True)), of_x, of_t)


def _ones(samples: Samples) -> tf.Tensor:
    return tf.ones([1, samples.inputs.shape[1], 1])


def _sum_by_input(values: tf.Tensor, roots: tf.Tensor, num_inputs: int) -> tf.Tensor:
    """Values times roots, (groups, samples, d) and (1, samples, 1), summed over each input's: (groups, n, d)."""
    by_input, weights = (tf.reshape(v, [len(v), num_inputs, -1, v.shape[-1]]) for v in (values, roots))
    return tf.squeeze(tf.matmul(weights, by_input, transpose_a=True), axis=2)


def _wide(tensor: tf.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.float64)


def watch_kernels(
    model: keras.Model, specs: Mapping[str, LayerSpec], images: np.ndarray, progress: Progress, description: str
) -> Iterator[tuple[str, Samples]]:
    """Samples of kernels that are to compute what they compute, with their paths, a few images at a time.

    Args:
        model: functional or sequential.
        specs: path -> the kernel; those inside nested models are not seen.
        images: (n, ...).
        progress: wraps the images.
        description: of the pass.

    Raises:
        InputError: the model is subclassed.
    """
    steps, kernels = read_steps(model), find_kernels(model)
    for start in progress(range(0, len(images), CHUNK), description):
        ledger = Ledger(steps, {steps.input: tf.convert_to_tensor(images[start : start + CHUNK])})
        for step in steps:
            inputs = [ledger[tensor] for tensor in step.inputs]
            own = (kernels.by_variable.get(id(v)) for v in getattr(step.operation, "_trainable_variables", ()))
            wanted = [spec for spec in own if spec is not None and spec.path in specs]
            with without_activation(step.operation) if wanted else contextlib.nullcontext():
                outputs = step.call(*inputs)
            for spec in wanted:
                yield spec.path, take_samples(step.operation, spec, inputs[0], outputs)
            activation = find_activation(step.operation) if wanted else None
            ledger.enter(step, outputs if activation is None else activation(outputs))


def add_up(found: dict[str, _Sums], path: str, sums: _Sums) -> None:
    """Adds to what was found of this kernel."""
    found[path] = found[path] + sums if path in found else sums


def gather_own_equations(
    model: keras.Model, specs: Mapping[str, LayerSpec], images: np.ndarray, progress: Progress, description: str
) -> dict[str, LayerSums]:
    """The normal equations of kernels that are to compute what they compute, of all at once; see `watch_kernels`.

    Raises:
        InputError: the model is subclassed; activations that are not finite.
    """
    found: dict[str, RunningSums] = {}
    for path, samples in watch_kernels(model, specs, images, progress, description):
        add_up(found, path, sum_up(samples))
    return {path: sums.finish(path) for path, sums in found.items()}


def thin_out(values: tf.Tensor, thinning: int) -> tf.Tensor:
    """Values (n, *spatial, c) of every so many rows and columns."""
    spatial = [slice(None, None, thinning)] * (len(values.shape) - 2)
    return values[(slice(None), *spatial)] if thinning > 1 else values
