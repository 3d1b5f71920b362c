"""What each stage of a run predicts, and for which of the evaluation images.

A .tflite file is run over all images, in one pass for all files. What Keras alone can tell, the signal inside the
network, is measured on some of them, drawn evenly: an image takes five times as long (benchmarks/scoring_cost.py).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from reflow_tf.data.batches import EvaluationSet
from reflow_tf.models.predictions import read_outputs
from reflow_tf.repair.contract import Progress
from reflow_tf.runtimes.runtime import Runtime
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


def rank_files(
    runtimes: Mapping[str, Runtime],
    most: Mapping[str, int],
    images: EvaluationSet,
    num_classes: int,
    progress: Progress,
) -> dict[str, Ranked]:
    """Runs files over the images, in one pass.

    Args:
        runtimes: name -> the file in what runs it.
        most: name -> so many images at the most; all where the name is missing.
        images: to run them over.
        num_classes: of the network; one output with two classes is a sigmoid.
        progress: wraps the pass.

    Raises:
        InputError: an output is NaN or infinite.
    """
    positions = {name: spread(len(images), most.get(name, len(images))) for name in runtimes}
    found: dict[str, list[np.ndarray]] = {name: [] for name in runtimes}
    start = 0
    for batch in progress(images, "Evaluating the files"):
        for name, runtime in runtimes.items():
            rows = positions[name] - start
            rows = rows[(rows >= 0) & (rows < len(batch))]
            if rows.size:
                found[name].append(rank_classes(read_outputs(runtime.run(batch[rows]), num_classes)))
        start += len(batch)
    return {name: Ranked(positions[name], np.concatenate(found[name])) for name in runtimes}
