"""A Keras model in, a pruned and repaired one out: scores, plan, masks, surgery, repair, and the signal at each."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from reflow_tf.choices import AUTO, TARGETS
from reflow_tf.config import PruneConfig
from reflow_tf.crew import ALONE, Crew, Readdressed
from reflow_tf.errors import InputError
from reflow_tf.export.limits import Foreseen, Limit, open_limit, require_reachable
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.channel_order import check_channel_order
from reflow_tf.models.channels.narrowing import require_rebuildable
from reflow_tf.models.graph import KernelMap, find_kernels
from reflow_tf.models.loading import check_finite, check_kind
from reflow_tf.models.packing import as_inputs, count_outputs, is_plain, pack, read_scales, unpack
from reflow_tf.models.predictions import require_numbers, settle_task
from reflow_tf.models.surgery import copy_model, write_masks
from reflow_tf.narrowing.candidates import require_candidates, require_room
from reflow_tf.narrowing.choice import Complain, Narrowing
from reflow_tf.narrowing.proof import narrow_and_check
from reflow_tf.planning import Weighings, plan_masks
from reflow_tf.repair.chain import run_chain
from reflow_tf.repair.choice import choose
from reflow_tf.repair.contract import Progress, PrunedModel, RepairOutcome, read_weights, show_nothing
from reflow_tf.repair.least_squares import Worths
from reflow_tf.repair.unmerging import find_merged, unmerge
from reflow_tf.sensitivity import SPARSITIES
from reflow_tf.signal import Signal
from reflow_tf.signal import measure_signal as _measure_signal
from reflow_tf.sparsity.criteria import NEEDS
from reflow_tf.sparsity.layers import LayerSpec, Skipped
from reflow_tf.sparsity.plan import PruningPlan
from reflow_tf.stopwatch import Stopwatch
from reflow_tf.targets.selection import Selection, leave_dense, select_kernels
from reflow_tf.targets.target import HardwareTarget
from reflow_tf.task import Task


@dataclasses.dataclass(frozen=True)
class PruneReport:
    """What happened to the model.

    Attributes:
        specs: the kernels that were pruned.
        skipped: everything else that holds a weight matrix, and why.
        repair: what restored the signal, step by step; of 'auto' first what it chose, a `Choice`.
        signals: 'dense', 'pruned', 'repaired' -> what that model did with the evaluation inputs; empty without any. The
            last model that was measured keeps its outputs.
        seconds: stage -> how long it took.
        zeros_before: path of each of `specs` -> how many of its weights were zero already.
        budget: what the budget came to, where it was not a sparsity.
        paired: paths of the kernels whose outputs were put into another order, so that blocks of them keep more.
        num_turned: linear streams that were put into another basis, so that zeros in their kernels cost less.
        narrowing: which channels were removed; None where none were asked to be.
        unmerged: paths of batch norms that got moments before anything was pruned, see `repair.unmerging`.
        scales: what each of several outputs is multiplied by in the signals' outputs, which have those of an input in
            one row; () for a single output, which is as it is.
    """

    specs: tuple[LayerSpec, ...]
    skipped: tuple[Skipped, ...]
    repair: tuple[RepairOutcome, ...]
    signals: Mapping[str, Signal]
    seconds: Mapping[str, float]
    zeros_before: Mapping[str, int]
    budget: Foreseen | None = None
    paired: tuple[str, ...] = ()
    num_turned: int = 0
    narrowing: Narrowing | None = None
    unmerged: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: pruned and repaired; a narrower one where channels were removed.
        plan: which channels left the network that was given, and what each kernel of what was left got.
        masks: path -> boolean mask in canonical layout (output, *spatial, input), True = kept; those that hold after
            the repairs, some of which choose them anew. Of the kernels of `model`; {} where channels alone left.
        report: what happened.
        removed: path -> boolean mask of a kernel as it was in the network that was given, before it was narrowed: which
            of its weights are left where channels were removed; {} where none were. In Keras's own layout of the
            kernel, such as (height, width, input, output), unlike `masks`; they fit the network that was given and not
            `model`, which has no zeros of theirs for `keep_zeros` to keep.
    """

    model: keras.Model
    plan: PruningPlan
    masks: Mapping[str, np.ndarray]
    report: PruneReport
    removed: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Known:
    """What calls of `prune` need not find twice, if the model and the inputs are the same; they add to it.

    Attributes:
        weighings: what removing channels costs.
        narrowed: the configuration with which channels left, `PruneConfig.without_hardware` -> what it came to, for
            those who go on from there; without outputs, which may take gigabytes, but for numbers of the dense network.
        dense: the signal of the network as it was given, by what its outputs are taken for; without outputs likewise.
        worths: what errors of its outputs cost, in each basis.
    """

    weighings: Weighings = dataclasses.field(default_factory=dict)
    narrowed: dict[PruneConfig, PruneResult] = dataclasses.field(default_factory=dict)
    dense: dict[Task, Signal] = dataclasses.field(default_factory=dict)
    worths: Worths = dataclasses.field(default_factory=dict)


def prune(
    model: keras.Model,
    config: PruneConfig | None = None,
    calibration: Any = None,
    *,
    evaluation: Any = None,
    fitting: Any = None,
    batch_size: int = 64,
    inplace: bool = False,
    dense_file: bytes | None = None,
    complain: Complain | None = None,
    progress: Progress = show_nothing,
    crew: Crew = ALONE,
    known: Known | None = None,
) -> PruneResult:
    """Prunes a model in one shot and restores its signal; the model itself stays as it is unless `inplace`.

    Args:
        model: a built Keras model; one with several inputs or outputs must be functional. Of any precision: what is
            measured and fitted is what it computes in float32, as its file will; variables keep their dtype.
        config: what to do; None: the defaults of `PruneConfig`.
        calibration: inputs, as the network takes them, that the criterion and the repairs estimate statistics on: an
            array (N, ...), a batched tf.data.Dataset, or an iterable of batches; labels in it are not looked at. Of
            several inputs a dict of arrays by their names; or rows of numbers, in the order of `model.inputs`.
        evaluation: other inputs of the same kind: where given, the signal of the dense, the pruned and the repaired
            model is measured on them. Never the calibration images.
        fitting: those of the calibration inputs that the repairs learn from; None: all.
        batch_size: for arrays, the most inputs at a time.
        inplace: write into `model`, for models that Keras cannot rebuild from their configuration.
        dense_file: for a budget of bytes or speed: the model as the .tflite file that it will be, but for its zeros,
            which are stored dense; None: float32 and rewritten as the target wants it, for a batch of 1.
        complain: for max_macs='auto': says what must be otherwise for a model to fit, such as the bytes that it may
            have, or None where it fits; channels leave until it says None.
        progress: wraps each pass over batches.
        crew: who leads the calibration inputs through the network; a command's `--workers`.
        known: by earlier calls with the same model and inputs; None: nothing.

    Raises:
        InputError: the model, the configuration or the data cannot be used. A model that was pruned `inplace` keeps its
            zeros when a later stage fails.
    """
    config = config or PruneConfig()
    if not isinstance(model, keras.Model) or not isinstance(config, PruneConfig):
        raise InputError(
            f"prune takes a Keras model, and a PruneConfig. Received: {type(model).__name__}, {type(config).__name__}"
        )
    calibration, evaluation, fitting = (
        None if data is None else as_inputs(model, data, batch_size=batch_size)
        for data in (calibration, evaluation, fitting)
    )
    if calibration is None:
        _require_none_needed(config)
    check_kind(model)
    check_finite(model)
    check_channel_order(model)
    select(model, config)
    if not is_plain(model):
        given = config, calibration, evaluation, fitting, batch_size, dense_file, complain, progress, crew, known
        return _prune_packed(model, inplace, *given)
    config = dataclasses.replace(config, task=settle_task(model, config.task, calibration, evaluation))
    if config.max_macs == AUTO and complain is None:
        raise InputError("max_macs='auto' needs `complain`, which says whether a model fits. Received: None")
    unmerged: tuple[str, ...] = ()
    if calibration is not None and find_merged(model):
        model, inplace = model if inplace else copy_model(model), True
        unmerged = unmerge(model, calibration, progress, crew)
    found = known or Known()
    results: list[PruneResult] = []
    for stage in config.stages:
        if len(config.stages) > 1 and (before := found.narrowed.get(stage.without_hardware)) is not None:
            results.append(dataclasses.replace(before, model=copy_model(before.model)))
            continue
        given = results[-1].model if results else model if inplace else copy_model(model)
        of_network = Known() if results else found  # behind the first stage it is another one
        sets = calibration, evaluation, calibration if fitting is None else fitting
        leading = ALONE if results else crew  # workers load the network that was given
        result = _prune(given, stage, *sets, dense_file, complain, progress, leading, of_network)
        if known is not None and not stage.sets_zeros and stage.max_macs != AUTO:
            found.narrowed[stage.without_hardware] = _keep(result, config.known_task)
        results.append(result)
    merged = functools.reduce(_merge, results)
    return dataclasses.replace(merged, report=dataclasses.replace(merged.report, unmerged=unmerged))


def _prune_packed(
    model: keras.Model,
    inplace: bool,
    config: PruneConfig,
    calibration: Iterable[np.ndarray] | None,
    evaluation: Iterable[np.ndarray] | None,
    fitting: Iterable[np.ndarray] | None,
    batch_size: int,
    dense_file: bytes | None,
    complain: Complain | None,
    progress: Progress,
    crew: Crew,
    known: Known | None,
) -> PruneResult:
    """`prune` of a model with several inputs or outputs, by way of one in which they are rows of numbers."""
    several = count_outputs(model)
    require_numbers(config.task, model.name, several)
    batches = calibration if calibration is not None else evaluation
    packed = pack(model, None if batches is None else next(iter(batches)))
    if crew.address is not None:
        crew = Readdressed(crew, dataclasses.replace(crew.address, scales=read_scales(packed) or (1.0,)))
    result = prune(
        packed,
        dataclasses.replace(config, task=str(Task.FIDELITY)) if several > 1 else config,
        calibration,
        evaluation=evaluation,
        fitting=fitting,
        batch_size=batch_size,
        inplace=inplace,
        dense_file=dense_file or (_export_dense(model, config.hardware, calibration) if config.budget else None),
        complain=None if complain is None else lambda narrower: complain(unpack(narrower, model)),
        progress=progress,
        crew=crew,
        known=known,
    )
    report = dataclasses.replace(result.report, scales=read_scales(packed))
    return dataclasses.replace(result, model=unpack(result.model, model), report=report)


def _prune(
    model: keras.Model,
    config: PruneConfig,
    calibration: Iterable[np.ndarray] | None,
    evaluation: Iterable[np.ndarray] | None,
    fitting: Iterable[np.ndarray] | None,
    dense_file: bytes | None,
    complain: Complain | None,
    progress: Progress,
    crew: Crew,
    known: Known,
) -> PruneResult:
    """One stage of `prune`, in place; where channels leave, the model of the result is another one."""
    stopwatch = Stopwatch()
    signals = _Signals(evaluation, progress, stopwatch, config.known_task, known.dense)
    kernels = find_kernels(model)
    selection = _select(model, config)
    limit = None
    if config.budget is not None:
        with stopwatch.timed("forecast"):
            content = dense_file or _export_dense(model, config.hardware, calibration)
            limit = _open_limit(config, content, kernels, selection.chosen)
    signals.measure_dense(model)
    given = selection.chosen, config, limit, calibration, progress, stopwatch, complain, known.weighings
    planned = plan_masks(model, *given)
    pruned = PrunedModel(model, planned.masks, read_weights(model), config.known_task)
    removed = write_masks(kernels, planned.masks)
    signals.measure("pruned", model, unchanged_from=None if removed else "dense")
    with stopwatch.timed("repair"):
        pruned, repair = _repair(pruned, config, planned.plan, fitting, progress, crew, known.worths)
    signals.measure("repaired", model, unchanged_from=None if any(step.repaired for step in repair) else "pruned")
    specs = tuple(spec for spec in kernels.specs if spec.path in planned.masks)
    report = PruneReport(
        *(specs, kernels.skipped + selection.skipped, repair, signals.found, stopwatch.seconds),
        *(planned.zeros_before, planned.budget, planned.paired, planned.num_turned, planned.narrowing),
    )
    result = PruneResult(model, planned.plan, pruned.masks, report)
    return result if planned.narrowing is None else _narrow(result, planned.narrowing, calibration, stopwatch)


def _narrow(
    result: PruneResult, narrowing: Narrowing, calibration: Iterable[np.ndarray] | None, stopwatch: Stopwatch
) -> PruneResult:
    """The masked model as the narrower one that computes the same, in which nothing is masked."""
    assert calibration is not None
    report = result.report
    with stopwatch.timed("narrow"):
        model = narrow_and_check(result.model, narrowing.kept, calibration, spread=report.num_turned > 0)
    removed = {spec.path: spec.from_canonical(result.masks[spec.path]) for spec in report.specs}
    report = dataclasses.replace(report, specs=(), zeros_before={}, seconds=stopwatch.seconds)
    return PruneResult(model, result.plan, {}, report, removed)


def _keep(result: PruneResult, task: Task) -> PruneResult:
    """A copy that nobody goes on with; of outputs it has the dense network's where these are numbers."""
    signals = {
        name: signal.without_outputs() if task.names_classes or name != "dense" else signal
        for name, signal in result.report.signals.items()
    }
    report = dataclasses.replace(result.report, signals=signals)
    return dataclasses.replace(result, model=copy_model(result.model), report=report)


def _merge(first: PruneResult, second: PruneResult) -> PruneResult:
    """Two stages as one: the second began with what the first left.

    Variances of channels that left have nothing to be compared with: those of the second stage are its own.
    """
    asks_for_none = [outcome.name for outcome in second.report.repair] == ["none"]
    signals = dict(second.report.signals)
    if signals:
        variances = signals["dense"].variances
        signals["dense"] = dataclasses.replace(first.report.signals["dense"], variances=variances)
    seconds = Counter(first.report.seconds)
    seconds.update(second.report.seconds)
    report = dataclasses.replace(
        second.report,
        repair=first.report.repair + (() if asks_for_none else second.report.repair),  # which the first says
        signals=signals,
        seconds=dict(seconds),
        num_turned=first.report.num_turned + second.report.num_turned,
        narrowing=first.report.narrowing,
    )
    plan = dataclasses.replace(second.plan, channels=first.plan.channels)
    return dataclasses.replace(second, plan=plan, report=report, removed=first.removed)


def select(model: keras.Model, config: PruneConfig) -> Selection:
    """Which kernels of a model the configuration prunes, and which it leaves; no single ones where channels alone go.

    Raises:
        InputError: it leaves them all, or channels cannot leave as it wants; the message says what would help.
    """
    if config.max_macs is not None:
        candidates, _ = require_candidates(model, config.prunable)
        require_rebuildable(model)
        share = None if isinstance(config.max_macs, str) else config.max_macs
        require_room(model, candidates, share, config.requested_channel_multiple)
    return _select(model, config)


def _select(model: keras.Model, config: PruneConfig) -> Selection:
    """`select`, of which it is known that channels can leave as the configuration wants."""
    if not config.sets_zeros:
        return Selection((), ())
    kernels = find_kernels(model)
    selection = select_kernels(
        kernels.specs,
        # Nothing is pruned: a plain conversion, which no target minds.
        prunable="all" if config.sparsity == 0 and config.prunable == "target" else config.prunable,
        target=config.hardware,
        pattern=config.requested_pattern,
        others=TARGETS.values(),
    )
    return leave_dense(selection, kernels.read(), config.requested_pattern) if config.keeps_existing else selection


class _Signals:
    """The signal of each stage, where there are inputs to measure it on; of a model that did not change, once."""

    def __init__(
        self,
        evaluation: Iterable[np.ndarray] | None,
        progress: Progress,
        stopwatch: Stopwatch,
        task: Task,
        dense: dict[Task, Signal],
    ):
        self.found: dict[str, Signal] = {}
        self._evaluation, self._progress, self._stopwatch, self._task = evaluation, progress, stopwatch, task
        self._dense = dense

    def measure_dense(self, model: keras.Model) -> None:
        if (known := self._dense.get(self._task)) is not None:
            self.found["dense"] = known
            return
        self.measure("dense", model)
        if (signal := self.found.get("dense")) is not None:
            self._dense[self._task] = signal.without_outputs() if self._task.names_classes else signal

    def measure(self, stage: str, model: keras.Model, unchanged_from: str | None = None) -> None:
        if self._evaluation is None:
            return
        if unchanged_from is not None and self.found[unchanged_from].outputs.size:  # which whoever asks may look at
            self.found[stage] = self.found[unchanged_from]
            return
        if self._task.names_classes:  # maps take gigabytes, and the last stage alone is looked at again
            self.found = {name: signal.without_outputs() for name, signal in self.found.items()}
        with self._stopwatch.timed(f"evaluate {stage}"):
            batches = self._progress(self._evaluation, f"Evaluating the {stage} model")
            self.found[stage] = _measure_signal(model, batches, self._task)


def _require_none_needed(config: PruneConfig) -> None:
    """Raises InputError if anything in the configuration needs calibration inputs."""
    if config.max_macs is not None:
        raise InputError("Channels are chosen by calibration inputs: --max_macs needs some. Received: None")
    if NEEDS[config.requested_criterion]:
        raise InputError(
            f"The criterion '{config.requested_criterion}' needs calibration inputs; 'magnitude' needs none. "
            "Received: None"
        )
    if config.allocation == "auto":
        raise InputError("The allocation 'auto' needs calibration inputs; the others need none. Received: None")
    if config.requested_repair != "none":
        raise InputError(
            f"The repair '{config.requested_repair}' needs calibration inputs; repair='none' needs none. Received: None"
        )


def _export_dense(model: keras.Model, target: HardwareTarget, calibration: Iterable[np.ndarray] | None) -> bytes:
    shape = None if calibration is None else next(iter(calibration)).shape[1:]
    return export_tflite(
        model,
        quantize=target.quantize,
        io=target.io,
        calibration=calibration,
        storage="dense",
        rewrite=target.rewrite,
        input_shape=shape,
    ).content


def _open_limit(config: PruneConfig, dense_file: bytes, kernels: KernelMap, specs: Sequence[LayerSpec]) -> Limit:
    """The budget, once it is known that it can be met at all."""
    weights = kernels.read()
    limit = open_limit(config, dense_file, {spec.path: weights[spec.path] for spec in specs})
    require_reachable(limit, specs, SPARSITIES[-1] if config.allocation == "auto" else 1.0, config.requested_pattern)
    return limit


def _repair(
    pruned: PrunedModel,
    config: PruneConfig,
    plan: PruningPlan,
    calibration: Iterable[np.ndarray] | None,
    progress: Progress,
    crew: Crew,
    worths: Worths,
) -> tuple[PrunedModel, tuple[RepairOutcome, ...]]:
    if config.requested_repair == "none":
        statement = "No repair was asked for: the pruned model is exported as it is."
        return pruned, (RepairOutcome("none", (), (), (), statement),)
    assert calibration is not None
    plan = PruningPlan({}) if config.keeps_existing else plan  # no repair is to choose other masks
    given: dict[str, Any] = {"plan": plan, "memory_budget": config.memory_budget, "crew": crew}
    if config.requested_repair == "auto":
        return choose(pruned, calibration, progress, **given)
    return run_chain(config.repairs, pruned, calibration, progress, worths=worths, **given)
