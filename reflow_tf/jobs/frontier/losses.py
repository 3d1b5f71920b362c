"""What a file is expected to lose, without labels: by the probabilities of the dense network, which it replaces.

Where the dense network says of an image that its classes are right with probabilities p, it is right itself with max p,
and a file that names class c with p_c. The mean difference is what accuracy falls by, as far as the dense network's
probabilities can be believed; of two files it says which loses more from far fewer images than labels would.
"""

from collections.abc import Iterable

import numpy as np

from reflow_tf.crew import ALONE
from reflow_tf.data.batches import EvaluationSet
from reflow_tf.jobs.scoring import Runner, rank_files, rank_outputs
from reflow_tf.models.outputs import as_probabilities
from reflow_tf.models.predictions import read_outputs
from reflow_tf.repair.contract import show_nothing


class ExpectedLoss:
    """The dense network's opinion of images that nothing is fitted to.

    Args:
        dense: runs the dense network.
        images: held out.
        num_classes: of the network.
    """

    def __init__(self, dense: Runner, images: EvaluationSet, num_classes: int):
        self._images, self._num_classes = images, num_classes
        outputs = np.concatenate([read_outputs(dense.run(batch), num_classes) for batch in images])
        self._probabilities = as_probabilities(outputs)
        self._best = rank_outputs([outputs], num_classes)[..., :1]

    def measure(self, file: Runner) -> tuple[float, float]:
        """Percentage points of top-1 that the file is expected to lose, and their standard error, over images."""
        found = rank_files({"file": file}, {}, self._images, self._num_classes, show_nothing, crew=ALONE)["file"]
        losses = 100 * (self._of(self._best) - self._of(found.classes[..., :1])).reshape(len(self._best), -1).mean(
            axis=1
        )
        return float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(len(losses)))

    def _of(self, classes: np.ndarray) -> np.ndarray:
        return np.take_along_axis(self._probabilities, classes.astype(np.int64), axis=-1)


def split(positions: Iterable[int], every: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to fit to, and one in `every` to judge by: spread evenly, because neighbours are often of a kind."""
    positions = np.asarray(list(positions), np.int64)
    judged = np.arange(len(positions)) % every == every - 1
    return positions[~judged], positions[judged]
