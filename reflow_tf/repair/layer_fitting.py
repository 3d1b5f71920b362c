"""One layer's kernel, fitted to a target: its normal equations from activations, then the mask and the weights on it.

What is minimized is in `sparsity.reconstruction`; here are the layers and their activations.
"""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.execution import CHUNK
from reflow_tf.models.gram import find_patches
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.plan import PlannedLayer
from reflow_tf.sparsity.reconstruction import NormalEquations, choose_mask, solve_together


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
    """One layer's normal equations, and the means that were taken off: (groups, d) and (outputs,)."""

    equations: NormalEquations
    input_mean: np.ndarray
    target_mean: np.ndarray

    def regularize(self, kernel: np.ndarray) -> Problem:
        """The problem of fitting a kernel in place of this one, the dense one (canonical layout, float64)."""
        weights = kernel.reshape(self.equations.cross.shape)
        return Problem(self.equations, self.equations.regularized(weights))

    def predict_moments(self, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each output, but for the bias, if this kernel (canonical layout) met these inputs."""
        rows = kernel.reshape(self.equations.cross.shape)
        variance = np.einsum("god,god->go", rows @ self.equations.gram, rows)
        return np.einsum("god,gd->go", rows, self.input_mean).ravel(), variance.ravel()


def gather_equations(
    layer: keras.Layer, spec: LayerSpec, inputs: np.ndarray, targets: np.ndarray, correction: np.ndarray | None = None
) -> LayerSums:
    """The normal equations of one layer, means taken off, at the positions that `models.gram` looks at.

    Args:
        layer: a Dense, or a convolution of up to two spatial axes, channels last.
        spec: of its kernel.
        inputs: (n, ...) of the layer.
        targets: (n, ..., outputs).
        correction: added to the targets, of their shape.

    Raises:
        InputError: activations that are not finite.
    """
    patches = find_patches(layer, spec.path.rpartition("/")[2])
    assert patches is not None
    count = 0
    gram: Any = 0.0  # float64 sums, whose shapes the first chunk gives
    cross: Any = 0.0
    power: Any = 0.0
    sum_x: Any = 0.0
    sum_t: Any = 0.0
    for start in range(0, len(inputs), CHUNK):
        part = slice(start, start + CHUNK)
        x = patches(tf.convert_to_tensor(inputs[part]))
        wanted = targets[part] if correction is None else targets[part] + correction[part]
        t = tf.convert_to_tensor(_pick(wanted, len(inputs[part]), x.shape))
        gram += tf.matmul(x, x, transpose_a=True).numpy().astype(np.float64)
        cross += tf.matmul(t, x, transpose_a=True).numpy().astype(np.float64)
        power += tf.reduce_sum(tf.square(t), axis=1).numpy().astype(np.float64)
        sum_x += tf.reduce_sum(x, axis=1).numpy().astype(np.float64)
        sum_t += tf.reduce_sum(t, axis=1).numpy().astype(np.float64)
        count += x.shape[1]
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        raise InputError(f"Activations must be finite. Received: NaN or infinity around {spec.path}")
    mean_x, mean_t = sum_x / count, sum_t / count
    gram = gram / count - mean_x[:, :, None] * mean_x[:, None]
    cross = cross / count - mean_t[:, :, None] * mean_x[:, None]
    return LayerSums(NormalEquations(gram, cross, power / count - mean_t**2), mean_x, mean_t.ravel())


def _pick(targets: np.ndarray, num_inputs: int, shape: tf.TensorShape) -> np.ndarray:
    """Targets (n, *spatial, outputs) at the positions of patches (groups, samples, d): (groups, samples, outputs)."""
    groups, samples, _ = shape
    if targets.ndim > 2 and targets[..., 0].size != samples:
        rows, columns = (*targets.shape[1:-1], 1)[:2]
        looked_at = samples // num_inputs
        thinning = next(t for t in range(1, rows + 1) if math.ceil(rows / t) * math.ceil(columns / t) == looked_at)
        targets = targets[:, ::thinning] if targets.ndim == 3 else targets[:, ::thinning, ::thinning]
    return np.ascontiguousarray(targets.reshape(samples, groups, -1).transpose(1, 0, 2))


def fit_kernel(problem: Problem, kernel: np.ndarray, worth: np.ndarray, layer: PlannedLayer) -> Fit:
    """The best mask that the plan allows, and the best weights on it.

    Args:
        problem: of the layer; what it has found out for one sparsity, it knows for the next.
        kernel: the dense one, canonical layout, float64.
        worth: what errors in two outputs cost together, (outputs, outputs); see `fisher.gather_output_worth`.
        layer: pattern and sparsity.
    """
    groups, outputs, width = problem.equations.cross.shape
    weights = kernel.reshape(groups, outputs, width)
    of_group = np.stack(
        [worth[start : start + outputs, start : start + outputs] for start in range(0, len(worth), outputs)]
    )
    counts = np.einsum("goo->go", of_group)

    def select(scores: np.ndarray) -> np.ndarray:
        return layer.pattern.select(scores.reshape(kernel.shape), layer.sparsity).reshape(scores.shape)

    mask = choose_mask(problem.regularized, weights, of_group, select)
    found = solve_together(problem.regularized, mask, of_group)
    total = float(np.sum(problem.equations.power * counts))
    error = float(np.sum(problem.equations.errors(found) * counts)) / total if total > 0 else 0.0
    return Fit(found.reshape(kernel.shape), mask.reshape(kernel.shape), error)
