"""Layer-wise least squares: every pruned layer is refitted so that the pruned network computes what the dense one did.

Both networks are led through the calibration images side by side, each layer once, in order of execution. A pruned
layer sees the inputs that the pruned network really gives it; its target is what the dense network's gave before an
activation of its own, plus, where a shortcut is added behind its batch norm, what the shortcut has lost. So each layer
makes up for the ones before it. Which weights stay is searched together with what they become
(`sparsity.reconstruction`); how many stay is the plan's. Outputs of a layer share its weights by how much an error in
each moves the prediction, and errors that cancel in the prediction are no errors (`fisher.gather_output_worth`).

A few hundred images have little to say about the hundreds of weights that an output has in late layers: from where
activations are small enough, each image is joined by NUM_VIEWS varied ones (`views`), which take at most half of the
memory there that the images alone took before. On the last seven 1x1 kernels of MobileNetV2 at 70 %, 188 images fitted
and 62 others judged, two folds: divergence from the dense network 0.53 with 3 views and 0.52 with 6, 0.49 with 3 and
gains in place of the scale of the batch norm behind; on another draw 0.72 without views and 0.51 with 6.

The moments of batch norms follow those of the pruned network's activations as the sweep passes them (REFLOW, layer by
layer). A channel that has next to no variance left would be blown up to the dense network's variance, noise and all:
none is taken to have less than VARIANCE_FLOOR of it.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable

import keras
import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.models.execution import CHUNK, Step, Steps, Stretch, activate, read_steps
from reflow_tf.models.fisher import gather_output_worth
from reflow_tf.models.gram import find_patches
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.observation import check_batch, find_activation, without_activation
from reflow_tf.models.precision import read_wide
from reflow_tf.models.sidebyside import Ledger, Pair
from reflow_tf.models.surgery import write_masks, write_values
from reflow_tf.repair.contract import MovedMasks, Progress, PrunedModel
from reflow_tf.repair.layer_fitting import Fit, fit_kernel, gather_equations
from reflow_tf.repair.views import make_views
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.plan import PruningPlan

VARIANCE_FLOOR = 0.3
MOST_INPUTS = 512
"""Calibration images that the sweep takes; more are left out, since all are held in memory."""
NUM_VIEWS = 3
"""Of each image, which are fitted to beside it in late layers."""
MOST_GRADED = 128
"""Calibration images that say how much each output matters."""


def least_squares(
    pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress, *, plan: PruningPlan
) -> MovedMasks:
    """Refits every masked kernel, and re-estimates every batch norm behind one, in one sweep.

    Turns masked weights back on, and others off in their place, as many in each kernel: any repair after it has to be
    given the masks that this one returns. It starts from the dense network: what an earlier repair did is lost.

    Args:
        pruned: a functional or sequential model.
        batches: float arrays (n, ...); the first MOST_INPUTS are held in memory, with all that two layers give.
        progress: wraps the layers as the sweep passes them.
        plan: which pattern and sparsity each masked kernel has.

    Raises:
        InputError: the model is subclassed; a batch does not fit; no batches; activations that are not finite.
    """
    steps = read_steps(pruned.model)
    images = np.concatenate(list(batches) or [np.empty(0)])[:MOST_INPUTS]
    if not len(images):
        raise InputError("Least squares needs at least one calibration batch. Received: none")
    check_batch(pruned.model, images)
    with pruned.restored_on_error():
        pruned.write_weights(pruned.dense_weights)
        write_masks(find_kernels(pruned.model), pruned.masks)  # for kernels that the sweep cannot refit
        sweep = _Sweep(pruned, plan, steps, images)
        for step in progress(steps.steps, "Refitting layer by layer"):
            sweep.take(step)
    masks = {path: sweep.fits[path].mask if path in sweep.fits else mask for path, mask in pruned.masks.items()}
    unreached = tuple(path for path in pruned.masks if path not in sweep.fits)
    moved = ("kernel", "bias", *(("moving_mean", "moving_variance") if sweep.has_followed else ()))
    return MovedMasks("least_squares", tuple(sweep.fits), unreached, moved, _describe(sweep, masks), masks)


class _Sweep:
    """The state of one sweep."""

    def __init__(self, pruned: PrunedModel, plan: PruningPlan, steps: Steps, images: np.ndarray):
        self.fits: dict[str, Fit] = {}
        self.has_followed = False  # any batch norm's moments
        self.pruned = pruned
        self._plan = plan
        self._images = images
        self._steps = steps
        self._ledger = Ledger(steps, images)
        self._first_with_views = find_late_step(steps, images[:1], 2 * (1 + NUM_VIEWS))
        self._kernels = find_kernels(pruned.model)
        self._dense = {id(v): w for v, w in zip(pruned.model.variables, pruned.dense_weights, strict=True)}
        calls = steps.count_calls()
        with pruned.as_dense() as model:
            chosen = [spec for spec in self._kernels.specs if spec.path in pruned.masks]
            self._worth = gather_output_worth(model, chosen, images[:MOST_GRADED])
        self._specs = {
            id(step.operation): spec
            for step in steps
            if calls[id(step.operation)] == 1 and (spec := self._find_spec(step.operation))
        }

    def _find_spec(self, layer: keras.Operation) -> LayerSpec | None:
        own = [id(variable) for variable in getattr(layer, "_trainable_variables", ())]
        specs = [s for s in self._kernels.specs if s.path in self.pruned.masks]
        found = [spec for spec in specs if id(self._kernels.variables[spec.path]) in own]
        return found[0] if len(found) == 1 and find_patches(layer, found[0].path.rpartition("/")[2]) else None

    def take(self, step: Step) -> None:
        """Carries out one step in both networks, the pruned one with what it is repaired to."""
        if step is self._first_with_views:
            self._add_views()
        pairs = [self._ledger[tensor] for tensor in step.inputs]
        is_pruned = any(id(variable) in self._changed for variable in getattr(step.operation, "variables", ()))
        if all(pair.is_same for pair in pairs) and not is_pruned:
            same = self._ledger.compute(step, "dense")
            self._ledger.enter(step, same, same)
            return
        if isinstance(step.operation, keras.layers.BatchNormalization):
            self._follow_moments(step.operation, pairs[0])  # first, since computing may write over the inputs
        now = [np.array(v) for v in getattr(step.operation, "variables", ())]
        self._write_dense(step.operation)
        is_refitted = id(step.operation) in self._specs
        with without_activation(step.operation) if is_refitted else contextlib.nullcontext():
            dense = self._ledger.compute(step, "dense")
        for variable, value in zip(getattr(step.operation, "variables", ()), now, strict=True):
            variable.assign(value)
        if is_refitted:
            self._refit(step, dense)
            dense = activate(step.operation, dense)
        self._ledger.enter(step, dense, self._ledger.compute(step, "pruned"))

    def _add_views(self) -> None:
        """Leads the views to where the images are."""
        views = make_views(self._images, NUM_VIEWS)
        if not len(views):
            return
        before = list(itertools.takewhile(lambda step: step is not self._first_with_views, self._steps))
        lead = Stretch(before, [self._steps.input], self._ledger.tensors)
        pruned = lead([views])
        with self.pruned.as_dense():
            dense = lead([views])
        self._ledger.extend(dense, pruned)

    def _follow_moments(self, norm: keras.layers.BatchNormalization, pair: Pair) -> None:
        """Gives the batch norm its moments in the pruned network; over the images alone, since views have others."""
        mean, variance = _measure(norm, pair.pruned[: len(self._images)])
        dense = _measure(norm, pair.dense[: len(self._images)])
        self._write_dense(norm)
        moments = follow_moments(norm, mean - dense[0], variance, dense[1])
        self.has_followed = True
        write_values(norm.moving_mean, moments[0])
        write_values(norm.moving_variance, moments[1])

    @functools.cached_property
    def _changed(self) -> set[int]:
        return {id(self._kernels.variables[path]) for path in self.pruned.masks}

    def _write_dense(self, layer: keras.Operation) -> None:
        for variable in getattr(layer, "variables", ()):
            variable.assign(self._dense[id(variable)])

    def _refit(self, step: Step, dense: np.ndarray) -> None:
        spec = self._specs[id(step.operation)]
        variable = self._kernels.variables[spec.path]
        norm, correction = self._find_correction(step)
        inputs = self._ledger[step.inputs[0]].pruned
        sums = gather_equations(step.operation, spec, inputs, dense, correction)
        kernel = spec.to_canonical(self._dense[id(variable)]).astype(np.float64)
        fit = fit_kernel(sums.regularize(kernel), kernel, self._worth[spec.path], self._plan.layers[spec.path])
        write_values(variable, spec.from_canonical(fit.kernel))
        if norm is None and getattr(step.operation, "use_bias", False):  # the mean, too, over the images alone
            count = len(self._images)
            has_views = len(inputs) > count
            own = gather_equations(step.operation, spec, inputs[:count], dense[:count]) if has_views else sums
            moved = own.target_mean - own.predict_moments(fit.kernel)[0]
            write_values(step.operation.bias, moved)
        self.fits[spec.path] = fit

    def _find_correction(self, step: Step) -> tuple[keras.layers.BatchNormalization | None, np.ndarray | None]:
        """The batch norm behind the step, and what its target gains: (n, ...), in the units of the step's output."""
        norm = find_norm(step, self._steps)
        if norm is None:
            return None, None
        (norm_step,) = self._steps.consumers(step.output)
        sum_step = _only(self._steps.consumers(norm_step.output))
        if sum_step is None or type(sum_step.operation).__name__ != "Add":
            return norm, None
        others = [tensor for tensor in sum_step.inputs if tensor != norm_step.output]
        known = [self._ledger[tensor] for tensor in others if tensor in self._ledger]
        lost = [pair.dense - pair.pruned for pair in known if not pair.is_same]
        scale = _scale(norm)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > 1e-6)
        return norm, np.multiply(sum(lost[1:], lost[0]), inverse) if lost else None


def find_late_step(steps: Steps, image: np.ndarray, factor: int) -> Step | None:
    """The first step from which on none needs more than 1 / factor of the memory of the one that needs most; or None.

    A step needs what it computes and all that the ledger holds, its inputs among them.

    Args:
        steps: of the model.
        image: one, (1, ...).
        factor: how many times as many images the steps from there on can take in the same memory.
    """
    ledger, sizes = Ledger(steps, image), []
    for step in steps:
        outputs = ledger.compute(step, "dense")
        sizes.append(ledger.count_elements() + outputs.size)
        ledger.enter(step, outputs, outputs)
    fits = [size * factor <= max(sizes) for size in sizes]
    late = [index for index in range(len(fits)) if all(fits[index:])]
    return steps.steps[late[0]] if late else None


def _only(steps: tuple[Step, ...]) -> Step | None:
    return steps[0] if len(steps) == 1 else None


def find_norm(step: Step, steps: Steps) -> keras.layers.BatchNormalization | None:
    """The batch norm that is all that takes the step's output, if there is one and no activation lies between."""
    if find_activation(step.operation) is not None:
        return None
    behind = _only(steps.consumers(step.output))
    if behind is None or not isinstance(behind.operation, keras.layers.BatchNormalization):
        return None
    return behind.operation


def follow_moments(
    norm: keras.layers.BatchNormalization, mean_move: np.ndarray, variance: np.ndarray, dense_variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the batch norm's dense moments become when its inputs change as they do on the same images.

    The change is measured, not the moments: what the images have by chance is in both networks and cancels out, and
    where nothing was pruned nothing changes.

    Args:
        norm: with the dense moments.
        mean_move: by how much the inputs' mean moved, (channels,).
        variance: of the inputs now, (channels,).
        dense_variance: of the inputs in the dense network.

    Returns:
        Mean and variance, (channels,) float64 each.
    """
    ratio = np.divide(variance, dense_variance, out=np.ones_like(variance), where=dense_variance > 0)
    return read_wide(norm.moving_mean) + mean_move, read_wide(norm.moving_variance) * np.maximum(ratio, VARIANCE_FLOOR)


def _scale(norm: keras.layers.BatchNormalization) -> np.ndarray:
    """What the batch norm multiplies each channel by, (channels,) float32."""
    gamma = read_wide(norm.gamma) if norm.scale else np.float32(1)
    return gamma / np.sqrt(read_wide(norm.moving_variance) + np.float32(norm.epsilon))


def _measure(norm: keras.layers.BatchNormalization, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel over the whole array, (channels,) float64 each."""
    moved = np.moveaxis(values, norm.axis, -1)
    shift = moved[0].reshape(-1, moved.shape[-1]).mean(0)
    count, total, squares = 0, np.zeros(len(shift)), np.zeros(len(shift))
    for start in range(0, len(moved), CHUNK):
        deviations = moved[start : start + CHUNK].reshape(-1, len(shift)) - shift
        ones = np.ones(len(deviations), deviations.dtype)
        total += ones @ deviations
        squares += ones @ np.square(deviations)
        count += len(deviations)
    offset = total / count
    return shift + offset, np.maximum(squares / count - offset**2, 0)


def _describe(sweep: _Sweep, masks: dict[str, np.ndarray]) -> str:
    if not sweep.fits:
        return "Least squares had nothing to refit: no masked kernel has a rule for it."
    swapped = sum(int(np.count_nonzero(mask & ~sweep.pruned.masks[path])) for path, mask in masks.items())
    kept = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    errors = {path: fit.error for path, fit in sweep.fits.items()}
    worst = max(errors, key=errors.__getitem__)
    return (
        f"Least squares refitted {len(sweep.fits)} of {len(masks)} kernels; of {kept} kept weights, {swapped} took the "
        f"places of others. Share of the outputs' variance that is lost: {np.median(list(errors.values())):.1%} in the "
        f"median, {errors[worst]:.1%} at most ({worst})."
        f"{' Batch norms have the moments that the sweep met.' if sweep.has_followed else ''}"
    )
