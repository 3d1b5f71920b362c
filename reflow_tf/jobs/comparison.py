"""The paper's figures: what each way to choose weights, and to update the rest, gives alone and with REFLOW after it.

A method is a criterion and a chain of repairs. Every cell, a method at a sparsity, starts from the same dense weights,
and in every cell of one sparsity a layer has the same number of zeros: those that the allocation gives it on magnitude
scores. So methods differ in which weights of a layer go and in what becomes of the others, and in nothing else; scores
of some criteria could not be compared across layers anyway.

A cell is written as soon as it is measured, and a run with the same settings takes over what it finds.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from reflow_tf.cluster.opening import open_crew
from reflow_tf.config import PruneConfig
from reflow_tf.crew import Alone, Crew, Site, State
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.inputs import foresee_task, open_sets
from reflow_tf.jobs.resuming import describe_settings, locked, open_folder, require_same, write_texts
from reflow_tf.jobs.scaling import warn_of_scaling
from reflow_tf.jobs.scoring import measure_distances, spread
from reflow_tf.models.carrying import Address, Carried
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.loading import load_model
from reflow_tf.models.packing import is_plain, pack
from reflow_tf.models.statistics import Gathered, gather
from reflow_tf.models.surgery import copy_model, write_masks
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.pruning import select
from reflow_tf.repair.batchnorm import observe_dense
from reflow_tf.repair.chain import run_chain
from reflow_tf.repair.contract import Progress, PrunedModel, read_weights, show_nothing
from reflow_tf.repair.impact import READS
from reflow_tf.repair.unmerging import unmerge
from reflow_tf.report import comparison, figures
from reflow_tf.report.comparison import BASELINE, VERSION, Document
from reflow_tf.report.folder import OutputFolder
from reflow_tf.report.progress import show_progress, stage, track
from reflow_tf.report.resumable import to_json
from reflow_tf.report.scores import Score, score_accuracy, score_agreement, score_closeness
from reflow_tf.signal import NUM_KEPT, Signal, compare_signals, measure_signal
from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.criteria import CRITERIA, NEEDS
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.plan import keep_zeros, make_plan
from reflow_tf.task import Task

JSON, PAGE, LOCK = "compare.json", "compare.html", "compare.lock"
DRAWN = {name: f"{name}.{'csv' if figure.draw is None else 'svg'}" for name, figure in figures.FIGURES.items()}
"""Name of a figure -> its file."""

Scores = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one model did.

    The verdict of `signal.has_collapsed` is left out. It is made for magnitude pruning; criteria that know the output
    take away variance that the classifier does not read: on the embedded model at 50 %, fisher keeps 2 % of it and all
    of the accuracy.

    Attributes:
        score: accuracy; without labels, agreement with the dense model; of numbers their fidelity to its own.
        variance_ratio: how much of the dense model's variance the last batch norm keeps; None without one.
        effective_classes: of the predictions, see `signal.Signal`.
        ratios: how much every batch norm keeps, in the order of execution; None where the dense model has none.
        histogram: how often each class is predicted.
    """

    score: Score
    variance_ratio: float | None
    effective_classes: float
    ratios: tuple[float | None, ...] = ()
    histogram: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method at one sparsity.

    Attributes:
        alone: after the method's own repairs, if it has any.
        reflow: with REFLOW after them.
        recalibrates: a repair of the method re-estimates batch norms itself, so that `alone` is not without that.
        statements: what each repair did, REFLOW the last.
        seconds: for all of it, statistics for the criterion and the measuring itself left out.
    """

    alone: Outcome
    reflow: Outcome
    recalibrates: bool
    statements: tuple[str, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Norms:
    """The batch norms of the dense model.

    Attributes:
        paths: in the order of execution.
        unmerged: those that got moments before anything was pruned, see `repair.unmerging`.
    """

    paths: tuple[str, ...]
    unmerged: tuple[str, ...]


class Bench:
    """A dense model and its images, on which one method after the other is measured.

    Args:
        model: built; it is not changed.
        specs: the kernels to prune.
        methods: all that will be measured; the statistics that they share are gathered once, and those that repairs
            read, at most `statistics.LIMIT_BYTES` of each kind, are kept.
        calibration: float batches (n, ...), re-iterable.
        evaluation: others of the same kind.
        labels: (N,) int of the evaluation inputs; None: agreement with the dense model takes the place of accuracy.
        progress: wraps each pass that takes place before the first cell.
        task: what its outputs are taken for; numbers of the first `signal.NUM_KEPT` evaluation inputs are compared.
        crowding: how many of these share the memory of this machine.

    Raises:
        InputError: the batches do not fit, or a kernel has no statistics of the kind that a method needs.
    """

    def __init__(
        self,
        model: keras.Model,
        specs: Sequence[LayerSpec],
        methods: Iterable[PruneConfig],
        calibration: Iterable[np.ndarray],
        evaluation: Iterable[np.ndarray],
        labels: np.ndarray | None = None,
        progress: Progress = show_nothing,
        task: Task = Task.CLASSIFICATION,
        crowding: int = 1,
    ):
        self._crew = Alone(crowding)
        self._specs, self._calibration, self._evaluation, self._labels = specs, calibration, evaluation, labels
        self._task = task
        self._model = copy_model(model)
        self._unmerged = unmerge(self._model, calibration, progress)
        self._dense_weights = read_weights(self._model)
        self._references = observe_dense(self._model, calibration, progress=progress)
        self._signal = measure_signal(self._model, progress(evaluation, "Evaluating the dense model"), task)
        methods = list(methods)
        criteria = {BASELINE, *(method.requested_criterion for method in methods)}
        read = {READS[name] for method in methods for name in method.repairs if name in READS}
        self._weights = find_kernels(self._model).read()
        given = specs, criteria, read, calibration, progress, task
        self._scores, self._statistics = study_kernels(self._model, *given)

    @property
    def dense(self) -> Outcome:
        """How the dense model does."""
        return self._describe(self._signal)

    @property
    def norms(self) -> Norms:
        """What the entries of `Outcome.ratios` are of."""
        return Norms(tuple(self._signal.variances), self._unmerged)

    def measure(self, config: PruneConfig) -> Cell:
        """Prunes and repairs as the configuration says, its repairs being what comes before REFLOW.

        Raises:
            InputError: a repair cannot be used on this model or these images.
        """
        allocation = ALLOCATIONS[config.allocation]
        by_magnitude, scores = self._scores[BASELINE], self._scores[config.requested_criterion]
        patterns = {spec.path: config.pattern_of(spec) for spec in self._specs}
        plan = make_plan(self._specs, by_magnitude, patterns, allocation, config.requested_sparsity)
        plan = keep_zeros(plan, self._weights)
        masks = build_masks(plan, scores)
        pruned = PrunedModel(self._model, masks, self._dense_weights, self._task)
        pruned.write_weights(self._dense_weights)
        start = time.perf_counter()
        write_masks(find_kernels(self._model), masks)
        names = [name for name in config.repairs if name != "none"]
        repair = functools.partial(
            run_chain,
            plan=plan,
            statistics=self._statistics,
            references=self._references,
            memory_budget=config.memory_budget,
            crew=self._crew,
        )
        pruned, outcomes = repair(names, pruned, self._calibration, show_nothing)
        seconds = time.perf_counter() - start
        alone = self._look()
        start = time.perf_counter()
        _, last = repair(["reflow"], pruned, self._calibration, show_nothing)
        seconds += time.perf_counter() - start
        recalibrates = any("moving_mean" in outcome.moved for outcome in outcomes)
        statements = tuple(outcome.statement for outcome in (*outcomes, *last))
        return Cell(alone, self._look(), recalibrates, statements, seconds)

    def _look(self) -> Outcome:
        return self._describe(measure_signal(self._model, self._evaluation, self._task))

    def _describe(self, signal: Signal) -> Outcome:
        ratios = tuple(layer.ratio for layer in compare_signals(signal, self._signal))
        histogram = tuple(signal.predicted.tolist())
        return Outcome(self._score(signal), ratios[-1] if ratios else None, signal.effective_classes, ratios, histogram)

    def _score(self, signal: Signal) -> Score:
        if self._task is Task.FIDELITY:
            dense = self._signal.outputs
            return score_closeness(measure_distances(signal.outputs, dense, (dense[0].size,)))
        if self._labels is None:
            return score_agreement(signal.ranked, self._signal.ranked)
        return score_accuracy(signal.ranked, self._labels, signal.num_classes)


def study_kernels(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    criteria: Iterable[str],
    kept: Iterable[str],
    batches: Iterable[np.ndarray],
    progress: Progress = show_nothing,
    task: Task = Task.CLASSIFICATION,
) -> tuple[dict[str, Scores], dict[str, Gathered]]:
    """What can be known of the kernels before any is pruned; one pass over the batches for each kind of statistic.

    Returns:
        Criterion -> path -> scores in canonical layout; and name -> what `gather` returned, of those in `kept`.

    Raises:
        InputError: as `statistics.gather` and the criteria do.
    """
    weights = find_kernels(model).read()
    scores: dict[str, Scores] = {}
    statistics: dict[str, Gathered] = {}
    wanted, kept = sorted(set(criteria)), sorted(set(kept))
    for needs in dict.fromkeys([*(NEEDS[name] for name in wanted), *(frozenset({name}) for name in kept)]):
        watched = progress(batches, f"Gathering {', '.join(sorted(needs))}")
        found = gather(model, specs, needs, watched, task=task) if needs else {}
        for name in (name for name in wanted if NEEDS[name] == needs):
            with stage(f"Scoring by {name}"):
                scores[name] = {s.path: CRITERIA[name](weights[s.path], found.get(s.path, {})) for s in specs}
        statistics.update(dict.fromkeys(needs.intersection(kept), found))
    return scores, statistics


def run(
    job: JobConfig,
    methods: Mapping[str, PruneConfig],
    sparsities: Sequence[float],
    version: str,
    figure: str | None = None,
) -> Document:
    """Measures every method at every sparsity that the output folder does not hold yet; progress on standard error.

    The folder holds compare.json, compare.html and a lock. Methods and sparsities may differ from run to run: what is
    there stays. Anything else that a cell depends on must be the same.

    Args:
        job: model, images, folder; of `job.prune`, all that is neither criterion nor repair nor sparsity.
        methods: name -> criterion, and the repairs before REFLOW; plain magnitude pruning must be among them, and the
            others are compared with it.
        sparsities: in [0, 1).
        version: of this package.
        figure: of `report.figures.FIGURES`: is written as a file of its own as well.

    Returns:
        What compare.json holds.

    Raises:
        InputError: something given cannot be used, or the folder holds a comparison with other settings, or one that
            is running.
    """
    folder = open_folder(job, (JSON, PAGE, LOCK, *DRAWN.values()))
    keras.utils.set_random_seed(job.seed)
    address = Address.of(job.model, **job.model_options)
    with locked(folder.path, LOCK, "comparison"):
        with open_crew(job.workers, job.threads_per_worker, address) as crew:
            document = _run(job, methods, sparsities, version, folder, crew, figure)
        if figure is not None:
            # Once more: inputs may have reached none of the batch norms.
            _require_drawable(figure, document["data"]["task"], len(document["norms"]["paths"]), sparsities)
            drawn = _draw(figures.restrict(document, figure, sparsities), figure)
            write_texts(folder.path, {DRAWN[figure]: drawn})
    return document


def _require_drawable(figure: str, task: str, num_norms: int, sparsities: Sequence[float]) -> None:
    if objection := figures.find_objection(figure, task, num_norms, len(set(sparsities))):
        raise InputError(f"--preset={figure} {objection}")


def _draw(document: Document, figure: str) -> str:
    if figures.FIGURES[figure].draw is None:
        return figures.render_csv(document)
    return figures.render_svg(document, figure, pathlib.PurePath(document["settings"]["model"]).stem)


def _run(
    job: JobConfig,
    methods: Mapping[str, PruneConfig],
    sparsities: Sequence[float],
    version: str,
    folder: OutputFolder,
    crew: Crew,
    figure: str | None,
) -> Document:
    with stage("Loading the model"):
        loaded = load_model(job.model, preprocess=job.preprocess, **job.model_options)
        loaded, foreseen = foresee_task(job, loaded)
    with stage("Opening the data"):
        calibration, evaluation, task = open_sets(job, loaded, foreseen)
        warn_of_scaling(loaded.model, calibration)
        if figure is not None:
            _require_drawable(figure, str(task), len(find_batch_norms(loaded.model)), sparsities)
        if task is Task.FIDELITY:
            evaluation = evaluation.select(spread(len(evaluation), NUM_KEPT))
        settings = describe_settings(job, loaded, version, calibration, evaluation)
        settings |= {name: getattr(job.prune, name) for name in ("allocation", "target", "prunable")}
        settings |= {"pattern": str(job.prune.requested_pattern), "task": str(task)}
    document = _start(settings, calibration, evaluation, task)
    if job.overwrite:
        for name in (JSON, PAGE, *DRAWN.values()):  # or figures would stand beside cells that they do not show
            folder.path.joinpath(name).unlink(missing_ok=True)
    if folder.path.joinpath(JSON).exists():
        document = _take_over(folder.path / JSON, settings)
    done = {(cell["method"], cell["sparsity"]) for cell in document["cells"]}
    todo = [(name, sparsity) for sparsity in sparsities for name in methods if (name, sparsity) not in done]
    if todo:
        needed = {name: methods[name] for name in dict.fromkeys(name for name, _ in todo)}
        carried = Carried(loaded.model, crew.address)
        given = carried, job.prune, tuple(needed.values()), calibration, evaluation, task
        comparing = Comparing(*given, crew.crowding, show_progress if job.workers is None else show_nothing)
        with crew.begin(comparing) as site:
            _measure(site, needed, todo, document, folder.path)
    return document


@dataclasses.dataclass(frozen=True)
class Comparing:
    """The cells as a `crew.Work`: for a configuration, how the dense model does, its batch norms, and the cell.

    Attributes:
        carried: the dense model.
        prune: which kernels are pruned.
        methods: all that will be measured.
        task: what the model's outputs are taken for.
        crowding: how many do so on a machine.
        progress: of what takes place before the first cell.
    """

    carried: Carried
    prune: PruneConfig
    methods: tuple[PruneConfig, ...]
    calibration: CalibrationSet
    evaluation: EvaluationSet
    task: Task
    crowding: int
    progress: Progress

    def prepare(self) -> State:
        model = self.carried.model
        chosen = select(model, self.prune).chosen
        if not is_plain(model):
            model = pack(model, next(iter(self.calibration)))
        labels = self.evaluation.labels if self.task.names_classes else None
        given = self.methods, self.calibration, self.evaluation, labels
        return _Cells(Bench(model, chosen, *given, self.progress, self.task, self.crowding))


Found = tuple[Outcome, Norms, Cell]


class _Cells(State):
    def __init__(self, bench: Bench):
        self._bench = bench

    def __call__(self, items: Iterable[PruneConfig]) -> Iterator[Found]:
        for config in items:
            yield self._bench.dense, self._bench.norms, self._bench.measure(config)


def _measure(
    site: Site,
    methods: Mapping[str, PruneConfig],
    todo: Sequence[tuple[str, float]],
    document: Document,
    folder: pathlib.Path,
) -> None:
    """Adds one cell after the other to the document, and writes it each time."""
    before = list(document["cells"])
    cells: dict[int, dict[str, Any]] = {}
    configs = [dataclasses.replace(methods[name], sparsity=sparsity) for name, sparsity in todo]
    names = [f"{name} at {sparsity:.1%}" for name, sparsity in todo]
    for position, (dense, norms, cell) in _show(site, configs, names):
        (name, sparsity), config = todo[position], configs[position]
        about = {
            "method": name,
            "criterion": config.requested_criterion,
            "repair": config.requested_repair,
            "sparsity": sparsity,
        }
        cells[position] = about | describe_cell(cell)
        document["dense"] = describe_outcome(dense)
        document["norms"] = {"paths": list(norms.paths), "unmerged": list(norms.unmerged)}
        document["cells"] = before + [cells[place] for place in sorted(cells)]  # not in the order of being done
        comparison.add_gains(document)
        write_texts(folder, {JSON: to_json(document), PAGE: _render(document)})


def _render(document: Document) -> str:
    return comparison.render(document, figures.for_page(document))


def _show(site: Site, configs: Sequence[PruneConfig], names: Sequence[str]) -> Iterator[tuple[int, Found]]:
    """What is found, while somebody sees how much is done, and what is being done where that is one cell at a time."""
    found = iter(site.map_as_done(configs))
    if not site.is_here:
        with track(found, "Cells", total=len(configs)) as tracked:
            yield from tracked
        return
    for number, name in enumerate(names, start=1):
        with stage(f"{name} ({number} of {len(names)})"):
            one = next(found)
        yield one


def describe_cell(cell: Cell) -> dict[str, Any]:
    """The cell as plain JSON."""
    return dataclasses.asdict(cell) | {state: describe_outcome(getattr(cell, state)) for state in comparison.STATES}


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """The same of one model."""
    described = dataclasses.asdict(outcome)
    score: dict[str, Any] = described.pop("score")
    return score | described


def _start(settings: dict[str, Any], calibration: CalibrationSet, evaluation: EvaluationSet, task: Task) -> Document:
    data = {
        "unit": evaluation.unit,
        "calibration": len(calibration),
        "evaluation": len(evaluation),
        "task": str(task),
        "labelled": task.names_classes and evaluation.labels is not None,
    }
    norms: dict[str, list[str]] = {"paths": [], "unmerged": []}
    return {"version": VERSION, "settings": settings, "data": data, "norms": norms, "dense": None, "cells": []}


def _take_over(path: pathlib.Path, settings: dict[str, Any]) -> Document:
    """What an earlier run with the same settings found."""
    document = comparison.from_json(path.read_bytes())
    require_same(settings, document["settings"], "a comparison", path.parent)
    return document
