"""What each group's channels cost to remove.

It is what the kernels that read them cannot make up for with the channels that are left (`sparsity.channels`), weighed
by what errors of their outputs do to the prediction and by how much more those cost that are the same all over an
image, as those of a missing channel are (`fisher.gather_output_errors`). So it is in nats, of every group.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from reflow_tf.models.execution import CHUNK
from reflow_tf.models.fisher import OutputErrors, believe, find_layers, gather_output_errors
from reflow_tf.models.graph import find_kernels
from reflow_tf.narrowing.candidates import Candidate
from reflow_tf.repair.contract import Progress
from reflow_tf.repair.layer_sums import (
    InputMoments,
    InputSums,
    add_up,
    gather_own_equations,
    sum_inputs,
    watch_kernels,
)
from reflow_tf.sparsity.channels import CHANNEL_CRITERIA, Elimination, Members, Reader, eliminate
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.task import Task

MOST_GRADED = 128
"""Inputs that say what errors do to the prediction."""
JUDGED_EVERY = 4
"""One part in so many of the inputs judges what readers that were refitted to the others miss."""


class Prices:
    """What readers can make up for, and what their errors cost.

    Args:
        model: a functional or sequential model.
        candidates: the groups.
        images: (n, ...); some find out, the others judge.
        progress: wraps what is done one by one.
        task: what the model's outputs are taken for.
        criterion: a key of `CHANNEL_CRITERIA`: in which order channels leave.
    """

    def __init__(
        self,
        model: keras.Model,
        candidates: Sequence[Candidate],
        images: np.ndarray,
        progress: Progress,
        task: Task,
        criterion: str,
    ):
        self._criterion = CHANNEL_CRITERIA[criterion]
        specs = {spec.path: spec for candidate in candidates for spec, _ in candidate.readers}
        kernels = find_kernels(model)
        self._kernels, self._is_kernel = kernels.read(), kernels.by_variable.keys()
        # Parts of the same size, one of which judges: neighbours in a folder are often of a kind.
        judges = np.arange(len(images)) // CHUNK % JUDGED_EVERY == JUDGED_EVERY - 1
        if not judges.any() or judges.all():
            judges = np.arange(len(images)) % JUDGED_EVERY == JUDGED_EVERY - 1
        watching = progress, "Watching what channels are read for"
        self._fitted = gather_own_equations(model, specs, images[~judges], *watching)
        self._judging = _gather_judging(model, specs, images[judges], *watching)
        layers = find_layers(model, specs)
        graded = images[~judges][:MOST_GRADED], images[judges][:MOST_GRADED]
        self._errors: list[dict[str, OutputErrors]] = gather_output_errors(model, layers, graded, task)
        # A network of one class has no Fisher: each reader's misses count as a share of what it gives.
        self._is_blind = not any(found.fisher.any() for errors in self._errors for found in errors.values())

    def eliminate(self, candidate: Candidate) -> Elimination:
        """In which order the group's channels leave, and what that costs, in nats."""
        readers = [self._read(spec, starts, candidate.group.size) for spec, starts in candidate.readers]
        return eliminate(readers, None if self._criterion is None else self._criterion(self._describe(candidate)))

    def _describe(self, candidate: Candidate) -> Members:
        size = candidate.group.size
        weights, read, powers = [], [], []
        for span in candidate.group.spans:
            if id(span.variable) in self._is_kernel:  # and not of a bias or a batch norm
                values = np.moveaxis(np.array(span.variable, np.float64), span.axis, 0)
                weights.append(values[span.start : span.start + size].reshape(size, -1))
        for spec, starts in candidate.readers:
            kernel = self._kernels[spec.path].astype(np.float64)
            places = _find_places(kernel, starts, size)
            sums = self._fitted[spec.path]
            (gram,), (mean,) = sums.moments.covariance, sums.moments.mean
            read.append(kernel.reshape(len(kernel), -1)[:, places])
            powers.append((np.diagonal(gram) + mean**2)[places])
        return Members(tuple(weights), tuple(read), tuple(powers))

    def _read(self, spec: LayerSpec, starts: tuple[int, ...], size: int) -> Reader:
        kernel = self._kernels[spec.path].astype(np.float64)
        outputs = len(kernel)
        (gram,) = self._fitted[spec.path].regularize(kernel).regularized.gram
        layer = spec.path.rpartition("/")[0]
        fitting = self._errors[0].get(layer)
        (judging,) = self._judging[spec.path].weigh(fitting.coherence if fitting else 1.0)
        places = _find_places(kernel, starts, size)
        rows = kernel.reshape(outputs, -1)
        if self._is_blind:
            _, variances = self._judging[spec.path].of_positions.predict(kernel)
            power = float(np.sum(variances))
            fitted = judged = rows / np.sqrt(power or 1.0)
        else:
            fitted, judged = (_find_root(errors.get(layer), outputs) @ rows for errors in self._errors)
        return Reader(fitted, judged, gram, judging, places)


@dataclasses.dataclass(frozen=True)
class _Judging:
    """What a reader takes from inputs that it is not refitted to.

    Attributes:
        of_positions: over all positions.
        of_means: over the means of each input's positions.
    """

    of_positions: InputMoments
    of_means: InputMoments

    def weigh(self, coherence: float) -> np.ndarray:
        """The covariance of its inputs, (groups, d, d), for errors that cost so many times as much where they are the
        same all over an input.

        For judging. Fitted to, they are learned by heart, since an input has one mean: MobileNetV2, single weights at
        70 %, 500 images, 1,000 others: 59.3 % classed as by the dense network with 1, 57.8 % with 2, 53.6 % with
        what `fisher.gather_output_errors` finds (5 to 37).
        """
        return self.of_positions.covariance + (coherence - 1) * self.of_means.covariance


def _gather_judging(
    model: keras.Model, specs: Mapping[str, LayerSpec], images: np.ndarray, progress: Progress, description: str
) -> dict[str, _Judging]:
    positions: dict[str, InputSums] = {}
    means: dict[str, InputSums] = {}
    for path, samples in watch_kernels(model, specs, images, progress, description):
        add_up(positions, path, sum_inputs(samples))
        add_up(means, path, sum_inputs(samples.average()))
    return {path: _Judging(positions[path].finish(path), means[path].finish(path)) for path in positions}


def _find_places(kernel: np.ndarray, starts: tuple[int, ...], size: int) -> np.ndarray:
    """The columns of each channel of a group in a kernel (canonical layout), (channels, taps).

    Of a channel that is read in several places, `starts` along the inputs, all of them.
    """
    inputs = kernel.shape[-1]
    taps = kernel[0].size // inputs
    begins = (np.arange(taps)[:, None] * inputs + np.array(starts)).ravel()
    return np.arange(size)[:, None] + begins


def _find_root(errors: OutputErrors | None, outputs: int) -> np.ndarray:
    """A root of what errors of two outputs cost together, in nats; 0 where the prediction does not depend on it."""
    if errors is None or len(errors.fisher) != outputs:
        return np.zeros((1, outputs))
    values, vectors = np.linalg.eigh(believe(errors.fisher) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))).T
