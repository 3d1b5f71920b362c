"""What one run of the tool has to tell, before it is put into words."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.export.tflite import ExportedFile
from reflow_tf.export.verification import MaskCheck
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.benchmark import Benchmark
from reflow_tf.jobs.float16_arithmetic import Float16Check
from reflow_tf.jobs.microcontroller import Footprint
from reflow_tf.jobs.scoring import Distances, Ranked
from reflow_tf.models.loading import LoadedModel
from reflow_tf.pruning import PruneResult
from reflow_tf.report.scores import MetricScore, Parity
from reflow_tf.targets.target import Verdict
from reflow_tf.task import Task


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user brought: a model, and images to calibrate and to score with.

    Attributes:
        looked_into: positions of those evaluation images on which the signal is measured, see `scoring`.
        task: what the network's outputs are taken for.
        doubt: what speaks against how pixels are scaled, see `jobs.scaling`; None where nothing does.
    """

    loaded: LoadedModel
    calibration: CalibrationSet
    evaluation: EvaluationSet
    looked_into: np.ndarray
    task: Task
    doubt: str | None = None

    @property
    def measure(self) -> str:
        """What is scored, a key of `report.measures.MEASURES`."""
        return name_measure(self.task, self.evaluation)

    @property
    def has_label_maps(self) -> bool:
        """Whether each input has a map of classes, and labels for it."""
        return self.measure == "accuracy" and self.evaluation.labels is not None and self.evaluation.labels.ndim > 1


def name_measure(task: Task, evaluation: EvaluationSet) -> str:
    """What is scored, a key of `report.measures.MEASURES`."""
    if task is Task.FIDELITY:
        return "fidelity"
    return "agreement" if evaluation.labels is None else "accuracy"


@dataclasses.dataclass(frozen=True)
class Dense:
    """What there was to compare with.

    Attributes:
        file: what the unpruned model gives with the same quantization, not rewritten.
        float_content: the same in float32, which is what accuracy is lost against.
        verdict: the target's, on the file.
        expected: the same after the rewriting that the job asks for.
        ranked: which classes the float32 file names for the evaluation images, where that is known already.
        metric: what --metric makes of that, if there is one.
    """

    file: ExportedFile
    float_content: bytes
    verdict: Verdict
    expected: Verdict
    ranked: Ranked | None = None
    metric: MetricScore | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the file came to.

    Attributes:
        verdict: the target's, on the file.
        mask_checks: each mask against the bytes.
        ranked: which classes the dense float32 file and the file name, under 'dense' and 'file'; {} for numbers.
        distance: how far the numbers of the file are from those of the dense float32 file; None for classes.
        metrics: what --metric makes of 'dense', 'repaired' and 'file'; {} without one.
        parity: Keras against the file.
        benchmarks: runtime as --benchmark spells it -> dense file and file, measured side by side; or why they could
            not be.
        footprint: flash and RAM, where the target is a microcontroller.
    """

    verdict: Verdict
    mask_checks: Sequence[MaskCheck]
    ranked: Mapping[str, Ranked]
    distance: Distances | None
    metrics: Mapping[str, MetricScore]
    parity: Parity
    benchmarks: Mapping[str, Benchmark | str]
    footprint: Footprint | None

    def benchmarks_in(self, unit: str) -> dict[str, Benchmark]:
        """What was measured in 'ms' or counted in 'instructions'."""
        found = {name: found for name, found in self.benchmarks.items() if isinstance(found, Benchmark)}
        return {name: benchmark for name, benchmark in found.items() if benchmark.unit == unit}


@dataclasses.dataclass(frozen=True)
class Run:
    """All that one run of the tool has to tell.

    Attributes:
        in_float16: how the file computes in float16, or why that was not tried; None where it does not.
        seconds: stage -> wall-clock seconds.
        command: the command line.
        num_threads: that images were led through the network with, by each who did it.
    """

    job: JobConfig
    given: Given
    dense: Dense
    result: PruneResult
    exported: ExportedFile
    in_float16: Float16Check | str | None
    measured: Measured
    seconds: Mapping[str, float]
    command: Sequence[str]
    num_threads: int


def plain(noun: Any) -> dict[str, Any]:
    """A dataclass as a dict of JSON types."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(noun).items()}
