"""What each stage of a run predicts, and for which of the evaluation images.

A .tflite file is run over all images, in one pass for all files. What Keras alone can tell, the signal inside the
network, is measured on some of them, drawn evenly: an image takes five times as long (benchmarks/scoring_cost.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from reflow_tf.crew import ALONE, Crew, State
from reflow_tf.data.batches import EvaluationSet
from reflow_tf.data.portions import Portion
from reflow_tf.models.predictions import read_outputs
from reflow_tf.repair.contract import Progress
from reflow_tf.repair.passing import pass_over
from reflow_tf.report.scores import Parity, compare_numbers, compare_outputs
from reflow_tf.signal import rank_classes, require_finite
from reflow_tf.task import Task

# Enough for the verdict: the number of predicted classes is compared between stages on the same images.
SIGNAL_IMAGES = 512
# An interpreter for microcontrollers takes 15 to 25 ms for a small network; LiteRT takes less than one.
MOST_IN_TFLM = 1000


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The best classes of some of the evaluation images.

    Attributes:
        positions: which of them, in the order of iteration, (n,) int64, increasing.
        classes: best first, (n, *map, up to 5) int.
    """

    positions: np.ndarray
    classes: np.ndarray

    def at(self, positions: np.ndarray) -> "Ranked":
        """Those of these images, all of which must be among the own."""
        return Ranked(positions, self.classes[np.searchsorted(self.positions, positions)])


def spread(num_images: int, most: int) -> np.ndarray:
    """Positions of at most `most` images, evenly over all, (n,) int64: the order may be that of the classes."""
    return np.linspace(0, num_images - 1, min(most, num_images)).round().astype(np.int64)


def rank_outputs(outputs: Iterable[np.ndarray], num_classes: int, task: Task = Task.CLASSIFICATION) -> np.ndarray:
    """The up to 5 best classes of each input over all batches, best first, (inputs, *positions, up to 5).

    Args:
        outputs: batches (n, *positions, outputs), not read yet, see `predictions.read_outputs`.
        num_classes: of the network.
        task: what they are taken for.
    """
    return np.concatenate([rank_classes(read_outputs(batch, num_classes, task)) for batch in outputs])


class Runner(Protocol):
    """Something that computes outputs; pickled, it says how to make it, as workers do."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Outputs (n, *output) of samples (n, *sample)."""
        ...


@dataclasses.dataclass(frozen=True)
class Distances:
    """How far the outputs of a network are from the dense network's, of some of the evaluation images.

    Attributes:
        positions: which of them, in the order of iteration, (n,) int64, increasing.
        sums: over all numbers of each output, (n, outputs, 3) float64: squared error, squares of the dense output, own
            squares.
        sizes: numbers that each output has for an input.
    """

    positions: np.ndarray
    sums: np.ndarray
    sizes: tuple[int, ...]


def measure_distances(outputs: np.ndarray, dense: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The sums of `Distances`, of outputs (n, ...) and the dense network's for the same inputs.

    Args:
        outputs: all of an input in one row, where there are several.
        dense: of the same shape.
        sizes: numbers that each output has for an input.

    Raises:
        InputError: an output is NaN or infinite.
    """
    require_finite(outputs)
    own, reference = (values.reshape(len(values), -1).astype(np.float64) for values in (outputs, dense))
    squares = [np.square(part) for part in (own - reference, reference, own)]
    return np.stack([sum_by_output(part, sizes) for part in squares], axis=2)


def sum_by_output(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Numbers (..., numbers) of all outputs, added up for each, (..., outputs)."""
    return np.add.reduceat(values, np.cumsum([0, *sizes[:-1]]), axis=-1)


def compare(found: np.ndarray, expected: np.ndarray, task: Task) -> Parity:
    """Compares what two give for the same inputs, (n, ...), read by `predictions.read_outputs`."""
    return compare_numbers(found, expected) if task is Task.FIDELITY else compare_outputs(found, expected)


def rank_files(
    runners: Mapping[str, Runner],
    most: Mapping[str, int],
    images: EvaluationSet,
    num_classes: int,
    progress: Progress,
    *,
    task: Task = Task.CLASSIFICATION,
    crew: Crew = ALONE,
    description: str = "Evaluating the files",
) -> dict[str, Ranked]:
    """Runs files over the images, in one pass.

    Args:
        runners: name -> the file in what runs it.
        most: name -> so many images at the most; all where the name is missing.
        images: to run them over.
        num_classes: of the network; one output with two classes is a sigmoid.
        progress: wraps the pass.
        task: what outputs are taken for.
        crew: who runs them.
        description: what is done.

    Raises:
        InputError: an output is NaN or infinite.
    """
    positions = {name: spread(len(images), most.get(name, len(images))) for name in runners}
    work = Running(runners, positions, images, functools.partial(_rank_batch, num_classes, task))
    return {name: Ranked(positions[name], found) for name, found in _run(work, progress, crew, description).items()}


def collect_outputs(
    runners: Mapping[str, Runner],
    images: EvaluationSet,
    progress: Progress,
    *,
    crew: Crew = ALONE,
    description: str = "Evaluating the files",
) -> dict[str, np.ndarray]:
    """All outputs of files, (n, *output) each, in one pass; else as `rank_files`.

    Raises:
        InputError: an output is NaN or infinite.
    """
    positions = {name: np.arange(len(images)) for name in runners}
    work = Running(runners, positions, images, _keep_batch)
    return _run(work, progress, crew, description)


def compare_files(
    runners: Mapping[str, Runner],
    dense: Runner,
    sizes: Sequence[int],
    most: Mapping[str, int],
    images: EvaluationSet,
    progress: Progress,
    *,
    crew: Crew = ALONE,
    description: str = "Evaluating the files",
) -> dict[str, Distances]:
    """Runs files over the images, in one pass, beside the dense one, outputs of these sizes; else as `rank_files`."""
    positions = {name: spread(len(images), most.get(name, len(images))) for name in runners}
    work = Running(runners, positions, images, functools.partial(_compare_batch, tuple(sizes)), dense)
    found = _run(work, progress, crew, description)
    return {name: Distances(positions[name], sums, tuple(sizes)) for name, sums in found.items()}


def _rank_batch(num_classes: int, task: Task, outputs: np.ndarray, _: np.ndarray | None) -> np.ndarray:
    return rank_outputs([outputs], num_classes, task)


def _keep_batch(outputs: np.ndarray, _: np.ndarray | None) -> np.ndarray:
    require_finite(outputs)
    return outputs


def _compare_batch(sizes: tuple[int, ...], outputs: np.ndarray, dense: np.ndarray | None) -> np.ndarray:
    assert dense is not None
    return measure_distances(outputs, dense, sizes)


def _run(work: "Running", progress: Progress, crew: Crew, description: str) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {name: [] for name in work.runners}
    with crew.begin(work) as site:
        for of_batch in pass_over(site, work.images, progress, description):
            for name, rows in of_batch.items():
                found[name].append(rows)
    return {name: np.concatenate(rows) for name, rows in found.items()}


@dataclasses.dataclass(frozen=True)
class Running:
    """The pass as a `crew.Work`: for each `Portion`, name of a file -> a row for each of its images.

    Attributes:
        runners: as `rank_files` takes them.
        positions: name -> which of the images, increasing.
        images: to run them over.
        summarize: outputs of a file, and the dense file's for the same images where there is one -> rows.
        dense: the dense file.
    """

    runners: Mapping[str, Runner]
    positions: Mapping[str, np.ndarray]
    images: EvaluationSet
    summarize: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    dense: Runner | None = None

    def prepare(self) -> State:
        return _Rows(self)


class _Rows(State):
    def __init__(self, work: Running):
        self._work = work

    def __call__(self, items: Iterable[Portion]) -> Iterator[dict[str, np.ndarray]]:
        work = self._work
        for portion in items:
            batch, start = portion.read(work.images), work.images.parts[portion.number].start
            found = {}
            for name, runner in work.runners.items():
                rows = work.positions[name] - start
                rows = rows[(rows >= 0) & (rows < len(batch))]
                if rows.size:
                    dense = None if work.dense is None else work.dense.run(batch[rows])
                    found[name] = work.summarize(runner.run(batch[rows]), dense)
            yield found
