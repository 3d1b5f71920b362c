"""What each stage of a run predicts, and for which of the evaluation images.

A .tflite file is run over all images, in one pass for all files. What Keras alone can tell, the signal inside the
network, is measured on some of them, drawn evenly: an image takes five times as long (benchmarks/scoring_cost.py).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

from reflow_tf.crew import ALONE, Crew, State
from reflow_tf.data.batches import EvaluationSet
from reflow_tf.data.portions import Portion
from reflow_tf.models.predictions import read_outputs
from reflow_tf.repair.contract import Progress
from reflow_tf.repair.passing import pass_over
from reflow_tf.signal import rank_classes

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


def rank_outputs(outputs: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """The up to 5 best classes of each input over all batches, best first, (inputs, *positions, up to 5).

    Args:
        outputs: batches (n, *positions, outputs); one output with two classes is a sigmoid.
        num_classes: of the network.
    """
    return np.concatenate([rank_classes(read_outputs(batch, num_classes)) for batch in outputs])


class Runner(Protocol):
    """Something that computes outputs; pickled, it says how to make it, as workers do."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Outputs (n, *output) of samples (n, *sample)."""
        ...


def rank_files(
    runners: Mapping[str, Runner],
    most: Mapping[str, int],
    images: EvaluationSet,
    num_classes: int,
    progress: Progress,
    *,
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
        crew: who runs them.
        description: what is done.

    Raises:
        InputError: an output is NaN or infinite.
    """
    positions = {name: spread(len(images), most.get(name, len(images))) for name in runners}
    found: dict[str, list[np.ndarray]] = {name: [] for name in runners}
    with crew.begin(Ranking(runners, positions, images, num_classes)) as site:
        for ranks in pass_over(site, images, progress, description):
            for name, classes in ranks.items():
                found[name].append(classes)
    return {name: Ranked(positions[name], np.concatenate(found[name])) for name in runners}


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The pass as a `crew.Work`: for each `Portion`, name of a file -> the best classes of its images.

    Attributes:
        positions: name -> which of the images, increasing. The others are those of `rank_files`.
    """

    runners: Mapping[str, Runner]
    positions: Mapping[str, np.ndarray]
    images: EvaluationSet
    num_classes: int

    def prepare(self) -> State:
        return _Ranks(self)


class _Ranks(State):
    def __init__(self, work: Ranking):
        self._work = work

    def __call__(self, items: Iterable[Portion]) -> Iterator[dict[str, np.ndarray]]:
        work = self._work
        for portion in items:
            batch, start = portion.read(work.images), work.images.parts[portion.number].start
            ranks = {}
            for name, runner in work.runners.items():
                rows = work.positions[name] - start
                rows = rows[(rows >= 0) & (rows < len(batch))]
                if rows.size:
                    ranks[name] = rank_outputs([runner.run(batch[rows])], work.num_classes)
            yield ranks
