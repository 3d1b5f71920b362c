"""What is masked: kernels scored, zeros shared out over them, and masks; and what is done to the dense network before.

Its sibling for whole channels is `narrowing`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from reflow_tf.config import PruneConfig
from reflow_tf.data.portions import take_first
from reflow_tf.export.limits import Foreseen, Limit, find_least
from reflow_tf.models.channels.groups import find_channel_groups
from reflow_tf.models.channels.narrowing import find_masks
from reflow_tf.models.channels.pairing import MOST_SCORED, pair_channels
from reflow_tf.models.channels.rotation import rotate_streams
from reflow_tf.models.graph import KernelMap, find_kernels
from reflow_tf.models.statistics import gather
from reflow_tf.narrowing.choice import Complain, Narrowing, Weighed, find_widest, weigh_channels
from reflow_tf.repair.contract import Progress
from reflow_tf.sensitivity import measure_sensitivity
from reflow_tf.sparsity.allocation import ALLOCATIONS, Allocation
from reflow_tf.sparsity.budget import Price, find_most, share_out
from reflow_tf.sparsity.criteria import CRITERIA, NEEDS, Statistics
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.masks import Masks, build_masks, count_zeros, is_sparse
from reflow_tf.sparsity.patterns import Block
from reflow_tf.sparsity.plan import PruningPlan, keep_zeros, make_plan
from reflow_tf.stopwatch import Stopwatch
from reflow_tf.targets.selection import read_prunable
from reflow_tf.task import Task


@dataclasses.dataclass(frozen=True)
class Weighing:
    """Channels weighed once, for as many widths as are tried.

    Attributes:
        weights: of the network in the basis in which they were weighed, as `keras.Model.get_weights` has them.
        num_turned: linear streams that were put into that basis.
        weighed: what each costs.
    """

    weights: Sequence[np.ndarray]
    num_turned: int
    weighed: Weighed


Weighings = dict[tuple[bool, str, Task, str], Weighing]
"""Whether linear streams were turned, criterion, what outputs are taken for, and `prunable` -> what was found then."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be masked, and how it came about.

    Attributes:
        plan: what each kernel gets; which channels stay, where whole ones leave.
        masks: path -> boolean mask in canonical layout, True = kept.
        zeros_before: path of each masked kernel -> how many of its weights were zero already.
        budget: what the budget came to, where it was not a sparsity.
        narrowing: which channels leave, where whole ones do; the plan has no kernels then, and the masks are theirs.
        paired: as in `pruning.PruneReport`.
        num_turned: as there.
    """

    plan: PruningPlan
    masks: Masks
    zeros_before: Mapping[str, int]
    budget: Foreseen | None = None
    narrowing: Narrowing | None = None
    paired: tuple[str, ...] = ()
    num_turned: int = 0


def plan_masks(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    config: PruneConfig,
    limit: Limit | None,
    calibration: Iterable[np.ndarray] | None,
    progress: Progress,
    stopwatch: Stopwatch,
    complain: Complain | None,
    weighings: Weighings,
) -> Planned:
    """Chooses masks for these kernels; the model keeps computing what it did, in another basis or order maybe.

    Args:
        model: dense, and written to.
        specs: its kernels that are to be pruned.
        config: pattern, criterion, allocation, and how much.
        limit: the budget, where it is not a sparsity.
        calibration: float batches (n, ...), where the configuration needs any.
        progress: wraps each pass over them.
        stopwatch: is told how long each stage takes.
        complain: as `find_widest` takes it, where channels are to leave until it is silent.
        weighings: of the same model by the same batches; what is missing is added.

    Raises:
        InputError: the budget cannot be met, a pattern does not fit a kernel, or bad inputs.
    """
    if config.max_macs is not None:
        return _plan_channels(model, config, calibration, progress, stopwatch, complain, weighings)
    num_turned = _turn(model, specs, config, calibration, stopwatch)
    paired = _pair(model, specs, config, calibration, stopwatch)
    kernels = find_kernels(model)
    scores = _score(model, kernels, specs, config, calibration, progress, stopwatch)
    share = _find_allocation(model, specs, config, limit, calibration, progress, stopwatch)
    with stopwatch.timed("masks"):
        weights = kernels.read()
        zeros_before = {spec.path: count_zeros(weights[spec.path]) for spec in specs}
        plan, masks, foreseen = _plan(specs, weights, scores, config, share, limit)
    return Planned(plan, masks, zeros_before, foreseen, paired=paired, num_turned=num_turned)


def _plan_channels(
    model: keras.Model,
    config: PruneConfig,
    calibration: Iterable[np.ndarray] | None,
    progress: Progress,
    stopwatch: Stopwatch,
    complain: Complain | None,
    weighings: Weighings,
) -> Planned:
    """Which channels leave, and the masks with which they are neither computed nor read."""
    assert config.max_macs is not None and calibration is not None
    asked = config.turns_streams, config.requested_criterion, config.known_task, config.prunable
    if (known := weighings.get(asked)) is not None:
        model.set_weights(known.weights)
    else:
        leaves_out = read_prunable(config.prunable)
        narrowing_specs = [spec for spec in find_kernels(model).specs if not leaves_out(spec)]
        num_turned = _turn(model, narrowing_specs, config, calibration, stopwatch)
        with stopwatch.timed("channels"):
            how = config.known_task, config.requested_criterion, config.prunable
            weighed = weigh_channels(model, calibration, progress, *how)
            known = Weighing(model.get_weights(), num_turned, weighed)
        weighings[asked] = known
    with stopwatch.timed("channels"):
        if isinstance(config.max_macs, str):
            assert complain is not None
            narrowing = find_widest(model, known.weighed, complain, progress, config.requested_channel_multiple)
        else:
            narrowing = known.weighed.narrow(config.max_macs, config.requested_channel_multiple)
    kernels = find_kernels(model)
    masks = find_masks(kernels, find_channel_groups(model), narrowing.kept)
    weights = kernels.read()
    zeros_before = {path: count_zeros(weights[path]) for path in masks}
    plan = PruningPlan({}, narrowing.plan(known.weighed.candidates))
    return Planned(plan, masks, zeros_before, narrowing=narrowing, num_turned=known.num_turned)


def _turn(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    config: PruneConfig,
    calibration: Iterable[np.ndarray] | None,
    stopwatch: Stopwatch,
) -> int:
    """Puts linear streams into the basis in which zeros cost least; zeros that are there already would be lost by it.

    Returns:
        How many streams.
    """
    if not config.turns_streams:
        return 0
    assert calibration is not None
    kernels = find_kernels(model)
    weights = kernels.read()
    with stopwatch.timed("basis"):
        changing = [kernels.variables[spec.path] for spec in specs]
        sparse = [kernels.variables[path] for path, kernel in weights.items() if is_sparse(kernel)]
        return rotate_streams(model, take_first(calibration, MOST_SCORED), changing, sparse, config.known_task)


def _pair(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    config: PruneConfig,
    calibration: Iterable[np.ndarray] | None,
    stopwatch: Stopwatch,
) -> tuple[str, ...]:
    """Puts output channels side by side that want the same inputs, where zeros come in blocks of outputs."""
    patterns = {spec.path: config.pattern_of(spec) for spec in specs}
    heights = {path: pattern.outputs for path, pattern in patterns.items() if isinstance(pattern, Block)}
    if max(heights.values(), default=1) == 1:
        return ()
    with stopwatch.timed("pairing"):
        return pair_channels(model, specs, heights, config.requested_sparsity, calibration, config.known_task)


def _score(
    model: keras.Model,
    kernels: KernelMap,
    specs: Sequence[LayerSpec],
    config: PruneConfig,
    calibration: Iterable[np.ndarray] | None,
    progress: Progress,
    stopwatch: Stopwatch,
) -> dict[str, np.ndarray]:
    """Path -> the criterion's scores; what it was told by calibration, much more than them, goes away at the end."""
    statistics: Mapping[str, Statistics] = {}
    if names := NEEDS[config.requested_criterion]:
        assert calibration is not None
        with stopwatch.timed("statistics"):
            # No criterion reads two: a second one would be a second pass, and progress shows one.
            watched = progress(calibration, f"Gathering statistics for {config.requested_criterion}")
            statistics = gather(model, specs, names, watched, task=config.known_task)
    with stopwatch.timed("masks"):
        weights = kernels.read()
        criterion = CRITERIA[config.requested_criterion]
        return {spec.path: criterion(weights[spec.path], statistics.get(spec.path, {})) for spec in specs}


def _find_allocation(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    config: PruneConfig,
    limit: Limit | None,
    calibration: Iterable[np.ndarray] | None,
    progress: Progress,
    stopwatch: Stopwatch,
) -> tuple[Allocation, float]:
    """The allocation, and the highest sparsity that it can share out.

    With a limit, 'auto' shares out what the limit counts; its sparsities then are shares of that.
    """
    if config.allocation != "auto":
        return ALLOCATIONS[config.allocation], math.nextafter(1, 0)
    assert calibration is not None
    prices = limit.prices if limit else {spec.path: Price(1.0) for spec in specs}
    least_zeros = limit.least_zeros if limit else 0
    priced = [spec for spec in specs if spec.path in prices]
    with stopwatch.timed("sensitivity"):
        patterns = {spec.path: config.pattern_of(spec) for spec in priced}
        curves = measure_sensitivity(model, priced, patterns, calibration, progress, config.known_task)
    most = find_most(priced, curves, prices)
    return lambda specs, scores, sparsity: share_out(specs, curves, sparsity, prices, least_zeros), most


def _plan(
    specs: Sequence[LayerSpec],
    weights: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    config: PruneConfig,
    share: tuple[Allocation, float],
    limit: Limit | None,
) -> tuple[PruningPlan, Masks, Foreseen | None]:
    """The plan, its masks, and what the limit, if there is one, comes to with them."""
    allocation, most = share
    patterns = {spec.path: config.pattern_of(spec) for spec in specs}

    def plan_at(sparsity: float) -> tuple[PruningPlan, Masks]:
        plan = keep_zeros(make_plan(specs, scores, patterns, allocation, sparsity), weights)
        return plan, build_masks(plan, scores)

    return (*plan_at(config.requested_sparsity), None) if limit is None else find_least(limit, plan_at, most)
