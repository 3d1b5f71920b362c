"""Layer-wise least squares: every pruned layer is refitted so that the pruned network computes what the dense one did.

Both networks are led through the calibration images side by side, each layer once, in order of execution. A pruned
layer sees the inputs that the pruned network really gives it; its target is what the dense network's gave before an
activation of its own, plus, where a shortcut is added behind its batch norm, what the shortcut has lost. So each layer
makes up for the ones before it. Which weights stay is searched together with what they become
(`sparsity.reconstruction`); how many stay is the plan's. Outputs of a layer share its weights by how much an error in
each moves the prediction, and errors that cancel in the prediction are no errors (`fisher.gather_output_worth`);
positions of an image count by how much errors there move it (`position_worth`).

Layers on large maps see thousands of positions of each image, and have few weights: they are fitted to so many images
as EARLY_BYTES allow. Where maps are small and an output has hundreds of weights, all others join, and where these are
few, varied views of each (`views`). On the last seven 1x1 kernels of MobileNetV2 at 70 %, 188 images fitted and 62
others judged, two folds: divergence from the dense network 0.53 with 3 views and 0.52 with 6; on another draw 0.72
without views and 0.51 with 6.

Depthwise kernels behind pruned layers are refitted with them: nine weights a channel, and no zeros. MobileNetV2
at 70 %, 512 images: divergence from the dense network on 400 others 0.74 with it and 0.78 without.

The moments of batch norms follow those of the pruned network's activations as the sweep passes them (REFLOW, layer by
layer). A channel that has next to no variance left would be blown up to the dense network's variance, noise and all:
none is taken to have less than VARIANCE_FLOOR of it.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from reflow_tf.crew import ALONE, Crew
from reflow_tf.data.portions import count_inputs, take_first
from reflow_tf.errors import InputError
from reflow_tf.models.carrying import Carried
from reflow_tf.models.course import Course
from reflow_tf.models.execution import CHUNK, Step, Steps, read_steps
from reflow_tf.models.fisher import gather_output_worth
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.ledger import Held, find_late_position, measure_held
from reflow_tf.models.observation import check_batch
from reflow_tf.models.precision import read_wide
from reflow_tf.models.surgery import write_masks, write_values
from reflow_tf.repair.contract import MovedMasks, Progress, PrunedModel, resolve_memory_budget
from reflow_tf.repair.layer_fitting import Fit, fit_kernel, fit_on_mask, refit_kernel
from reflow_tf.repair.position_worth import add_worth
from reflow_tf.repair.sweep_sums import AtLayer, Measuring, Meter, find_norm
from reflow_tf.repair.views import have_views
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.plan import PruningPlan
from reflow_tf.sparsity.reconstruction import SHRINKAGE

Worths = dict[bytes, dict[str, np.ndarray]]
"""Digest of a dense network's weights -> path of a kernel -> `fisher.gather_output_worth` of it."""

VARIANCE_FLOOR = 0.3
EARLY_BYTES = 2_500_000_000
"""What two networks give for the calibration images that layers on large maps are fitted to, where that is most.

MobileNetV2 at 224 x 224: 256 images. Each has thousands of positions there, for kernels of a few dozen inputs.
"""
LATE_FACTOR = 8
"""By how much smaller than the largest all maps are from where all calibration images and their views are fitted to."""
SHARD, LARGE_SHARD = 64, 256
"""Inputs that are led and left together; the latter of networks that never have more than FEW_NUMBERS."""
FEW_NUMBERS = 200_000
"""Of one input, before and behind a step: where it is never more, shards are large and led whole through all steps.

ResNet-8 on images of 28 x 28, 256 of them: 0.74 times the time of 16 at a time. MobileNetV2 on 64 x 64, 375 and three
views of each: LARGE_SHARD at a time 0.65 times the time of SHARD.
"""
NUM_VIEWS = 3
"""Of each image, at most, which are fitted to beside it in late layers."""
ENOUGH_LATE = 1500
"""Images that late layers have enough of; views make up for those that are missing.

MobileNetV2 at 70 %, 1,100 images: 69.2 % of 400 others classed as by the dense network without views, 69.8 % with
three of each, in twice the time; with 256 images and three views 65.2 %. Whether one view of each is worth its time
beside as many is not settled: divergence on 400 others 0.671 with it and 0.708 without, with 1,100 images; top-1 on 650
validation images of ImageNet 66.5 and 67.5 %, with 1,500.
"""
LEAST_SHRINKAGE = 0.05
"""Of the inputs' correlations, where there are a thousand images or more to know them by.

MobileNetV2 at 70 %, divergence from the dense network on 400 images that were not fitted to: with 1,100 images 0.718
with 0.05 and 0.736 with 0.1; with 250 images 1.138 and 1.123.
"""
MOST_GRADED = 512
"""Calibration images that say how much each output matters.

MobileNetV2 at 70 %, 194 images fitted to, divergence from the dense network on 400 others: 0.917 with 128, 0.883 with
all of them; without the same share for each input (`fisher.gather_output_worth`) 0.940 and 0.903. EfficientNet-Lite0,
1,100 images: 0.815 with 128 and no such share, 0.690 with 512 and it.
"""


def least_squares(
    pruned: PrunedModel,
    batches: Iterable[np.ndarray],
    progress: Progress,
    *,
    plan: PruningPlan,
    memory_budget: int | None = None,
    crew: Crew = ALONE,
    worths: Worths | None = None,
) -> MovedMasks:
    """Refits every masked kernel and the depthwise kernels behind them, and re-estimates every batch norm behind one.

    Turns masked weights back on, and others off in their place, as many in each kernel: any repair after it has to be
    given the masks that this one returns. It starts from the dense network: what an earlier repair did is lost.

    Args:
        pruned: a functional or sequential model.
        batches: float arrays (n, ...), re-iterable, any number of them.
        progress: wraps the layers as the sweep passes them.
        plan: which pattern and sparsity each masked kernel has; one that is not in it keeps its mask.
        memory_budget: bytes; half of it may hold what lies between layers. It decides what is computed again, and never
            the result. None: a quarter of the machine's memory.
        crew: who leads the images through the network; the searches and the solving are done here.
        worths: what is known of outputs by earlier calls with the same images, and is added to; None: nothing.

    Raises:
        InputError: the model is subclassed; a batch does not fit; no batches; activations that are not finite; a memory
            budget that has no room for one shard; a full disk.
    """
    steps = read_steps(pruned.model)
    first = take_first(batches, SHARD)
    if not len(first):
        raise InputError("Least squares needs at least one calibration batch. Received: none")
    check_batch(pruned.model, first)
    with pruned.restored_on_error():
        pruned.write_weights(pruned.dense_weights)
        write_masks(find_kernels(pruned.model), pruned.masks)  # for kernels that the sweep cannot refit
        with begin_course(pruned, steps, first[:1], batches, memory_budget, crew) as begun:
            sweep = _Sweep(pruned, plan, steps, batches, *begun, {} if worths is None else worths)
            for position in progress(range(len(steps.steps)), "Refitting layer by layer"):
                sweep.take(position)
    masks = {path: sweep.fits[path].mask if path in sweep.fits else mask for path, mask in pruned.masks.items()}
    unreached = tuple(path for path in pruned.masks if path not in sweep.fits)
    moved = ("kernel", "bias", *(("moving_mean", "moving_variance") if sweep.has_followed else ()))
    return MovedMasks("least_squares", tuple(sweep.fits), unreached, moved, _describe(sweep, masks), masks)


@contextlib.contextmanager
def begin_course(
    pruned: PrunedModel,
    steps: Steps,
    first: np.ndarray,
    batches: Iterable[np.ndarray],
    memory_budget: int | None,
    crew: Crew,
) -> Iterator[tuple[Meter, Course, int | None]]:
    """Images on their way through both networks for the time of the block: those that early layers are fitted to.

    Args:
        pruned: as for `least_squares`.
        steps: of its model.
        first: one input, (1, ...).
        batches: as for `least_squares`.
        memory_budget: as for `least_squares`.
        crew: as for `least_squares`.

    Yields:
        What is measured, the images, and the step from which on all of them are fitted to; None: there is none.

    Raises:
        InputError: no room for one shard.
    """
    meter = Meter(pruned, steps)
    held = measure_held(steps, first)
    late = find_late_position(held.during, LATE_FACTOR)
    whole_from = _find_whole_position(held, late)
    shard = SHARD if whole_from else LARGE_SHARD
    kernels = tuple(i for i, spec in enumerate(meter.kernels.specs) if spec.path in pruned.masks)
    carried = Carried(pruned.model, crew.address)
    with crew.begin(Measuring(carried, pruned.dense_weights, kernels, batches, whole_from, shard, pruned.task)) as site:
        budget = resolve_memory_budget(memory_budget, crew.memory)
        with_worth = add_worth(held, meter.weighed)
        given = with_worth, count_inputs(batches), budget, CHUNK if whole_from else shard, shard
        course = Course(site, crew, meter.networks, *given)
        course.add(course.num_shards if late is None else min(course.num_shards, count_early(held, shard)))
        yield meter, course, late


class _Sweep:
    """The state of one sweep."""

    def __init__(
        self,
        pruned: PrunedModel,
        plan: PruningPlan,
        steps: Steps,
        batches: Iterable[np.ndarray],
        meter: Meter,
        course: Course,
        late: int | None,
        worths: Worths,
    ):
        self.fits: dict[str, Fit] = {}
        self.has_followed = False  # any batch norm's moments
        self.pruned = pruned
        self._plan, self._steps, self._meter, self._course, self._late = plan, steps, meter, course, late
        graded = take_first(batches, MOST_GRADED)  # not kept: hundreds of megabytes
        few = min(NUM_VIEWS, ENOUGH_LATE // course.num_inputs - 1)
        self._num_views = max(0, few) if have_views(graded.shape) else 0
        chosen = [spec for spec in meter.kernels.specs if spec.path in pruned.masks]
        self._worth = _find_worth(pruned, chosen, graded, worths)
        self._settled: set[int] = set()  # batch norms whose moments followed from a refit
        self._positions = {id(variable): i for i, variable in enumerate(pruned.model.variables)}
        self._moved: dict[int, keras.Variable] = {}  # positions of variables that whoever leads images must be told of

    def take(self, position: int) -> None:
        """Settles the weights of one step in the pruned network."""
        if position == self._late:  # all other images, and views of all: where maps are small, kernels are large
            self._course.add(self._course.num_shards, self._num_views)
        if position in self._meter.specs:
            self._refit(position)
        elif (norm := self._meter.find_norm(position)) is not None and id(norm) not in self._settled:
            own, _ = self._gather(position)  # views have moments of their own
            self._follow(norm, own.pruned.mean - own.dense.mean, own.pruned.variance, own.dense.variance)

    def _gather(self, position: int) -> tuple[Any, Any]:
        moved = [(i, np.array(variable)) for i, variable in self._moved.items()]
        self._moved.clear()
        return self._course.gather(position, moved)

    def _write(self, variable: keras.Variable, values: np.ndarray) -> None:
        write_values(variable, values)
        self._moved[self._positions[id(variable)]] = variable

    def _refit(self, position: int) -> None:
        step, spec = self._steps.steps[position], self._meter.specs[position]
        own, views = self._gather(position)
        together = (own.sums if views is None else own.sums + views.sums).finish(spec.path)
        variable = self._meter.kernels.variables[spec.path]
        kernel = spec.to_canonical(self._meter.networks.read_dense(variable)).astype(np.float64)
        problem = together.regularize(kernel, find_shrinkage(self._course.num_inputs))
        if spec.path in self.pruned.masks:
            planned, worth = self._plan.layers.get(spec.path), self._worth[spec.path]
            if planned is None:
                fit = fit_on_mask(problem, kernel, worth, self.pruned.masks[spec.path])
            else:
                fit = fit_kernel(problem, kernel, worth, planned)
        else:
            fit = refit_kernel(problem, kernel)
        self._write(variable, spec.from_canonical(fit.kernel))
        self.fits[spec.path] = fit
        self._move_mean(step, fit, own, spec.path)

    def _move_mean(self, step: Step, fit: Fit, own: AtLayer, path: str) -> None:
        """Settles the layer's bias, or the batch norm behind it; by images alone."""
        layer, norm, moments = step.operation, find_norm(step, self._steps), own.plain.finish(path)
        bias, (mean, variance) = getattr(layer, "bias", None), moments.predict(fit.kernel)
        if norm is None and bias is not None:
            self._write(bias, moments.target_mean - mean)
        elif norm is not None and norm.axis in (-1, len(layer.output.shape) - 1):
            added = 0.0 if bias is None else read_wide(bias)
            self._follow(norm, mean + added - own.given.mean, variance, own.given.variance)
            self._settled.add(id(norm))

    def _follow(
        self, norm: keras.layers.BatchNormalization, mean_move: np.ndarray, variance: np.ndarray, dense: np.ndarray
    ) -> None:
        """Gives a batch norm its moments in the pruned network."""
        for variable in norm.variables:
            variable.assign(self._meter.networks.read_dense(variable))
            self._moved[self._positions[id(variable)]] = variable
        mean, variance = follow_moments(norm, mean_move, variance, dense)
        self.has_followed = True
        self._write(norm.moving_mean, mean)
        self._write(norm.moving_variance, variance)


def _find_worth(
    pruned: PrunedModel, specs: Sequence[LayerSpec], images: np.ndarray, known: Worths
) -> Mapping[str, np.ndarray]:
    """Of the outputs of these kernels in the dense network, which may be known of those that were pruned otherwise."""
    digest = hashlib.sha256()
    for weights in pruned.dense_weights:
        digest.update(weights.tobytes())
    found = known.setdefault(digest.digest(), {})
    if missing := [spec for spec in specs if spec.path not in found]:
        with pruned.as_dense() as model:
            found.update(gather_output_worth(model, missing, images, pruned.task))
    return found


def find_shrinkage(num_images: int) -> float:
    """The share of the inputs' correlations that is not believed, by how many images they are known from."""
    return max(LEAST_SHRINKAGE, min(SHRINKAGE, 50 / num_images))


def _find_whole_position(held: Held, late: int | None) -> int:
    """The step from which on shards are led as a whole: maps are small there, in small networks from the first on."""
    if max(held.during) <= FEW_NUMBERS:
        return 0
    return len(held.during) if late is None else late


def count_early(held: Held, shard: int) -> int:
    """Shards, of so many inputs, that early layers are fitted to."""
    both_networks = 2 * 4 * max(held.between)
    return max(1, EARLY_BYTES // (both_networks * shard))


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


def _describe(sweep: _Sweep, masks: dict[str, np.ndarray]) -> str:
    if not sweep.fits.keys() & masks.keys():
        return "Least squares had nothing to refit: no masked kernel has a rule for it."
    swapped = sum(int(np.count_nonzero(mask & ~sweep.pruned.masks[path])) for path, mask in masks.items())
    kept = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    errors = {path: fit.error for path, fit in sweep.fits.items() if path in masks}
    worst = max(errors, key=errors.__getitem__)
    num_behind = len(sweep.fits) - len(errors)
    behind = f", and {num_behind} depthwise {'ones' if num_behind > 1 else 'one'} behind them" if num_behind else ""
    return (
        f"Least squares refitted {len(errors)} of {len(masks)} kernels{behind}; of {kept} kept weights, {swapped} took "
        f"the places of others. Share of the outputs' variance that is lost: {np.median(list(errors.values())):.1%} in "
        f"the median, {errors[worst]:.1%} at most ({worst})."
        f"{' Batch norms have the moments that the sweep met.' if sweep.has_followed else ''}"
    )
