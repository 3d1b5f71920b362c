"""What one inference of a file costs on a device: measured there, and where that is not time, estimated too."""

import dataclasses

import keras

from reflow_tf.config import PruneConfig
from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs.benchmark import Candidate as Measurable
from reflow_tf.jobs.benchmark import measure_files
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.record.run import Run
from reflow_tf.pruning import prune
from reflow_tf.repair.contract import show_nothing
from reflow_tf.runtimes.aarch64.runtime import AArch64


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one file.

    Attributes:
        cost: in the device's unit.
        cost_share: of the first plain conversion's.
        differs: the outputs there are wrong.
        cycles: by estimate; None where the cost needs none beside it.
        cycles_share: of the first plain conversion's.
    """

    cost: float
    cost_share: float
    differs: bool = False
    cycles: float | None = None
    cycles_share: float | None = None


class Costs:
    """Measures on a device.

    Args:
        device: where.
        dense: the dense network's float32 file.
    """

    def __init__(self, device: Device, dense: bytes):
        self._device, self._dense = device, dense
        self._dense_cycles: float | None = None

    def measure(self, made: Run) -> Cost:
        """What the file of a run costs.

        Raises:
            InputError: the device cannot run it.
        """
        content, footprint = made.exported.content, made.measured.footprint
        if self._device.runtime == "bytes":
            return Cost(len(content), len(content) / len(self._dense))
        if self._device.runtime != "microcontroller":
            return self._run(content)
        assert footprint is not None
        if self._device.unit == "bytes":
            return Cost(footprint.flash_bytes, footprint.flash_bytes / footprint.dense_flash_bytes)
        pair = footprint.npu_cycles or next(iter(footprint.instructions.values()))
        return Cost(pair.file, pair.file / pair.dense)

    def _run(self, content: bytes) -> Cost:
        """Side by side with the float32 file, turn by turn, so that what else the machine does falls on both."""
        found = measure_files(
            [Measurable("the file", content)],
            Measurable("float32", self._dense),
            runtime=self._device.runtime,
            cpu=self._device.job.get("cpu"),
        )
        (file,) = found.files
        assert file.speedup is not None
        cost = Cost(file.cost.median, 1 / file.speedup.median, file.differs)
        if not self._device.estimates_cycles:
            return cost
        cycles = self._estimate(content)
        return dataclasses.replace(cost, cycles=cycles, cycles_share=cycles / self._estimate_dense())

    def foresee_zeros(self, model: keras.Model, config: PruneConfig, input_shape: tuple[int, ...]) -> float:
        """The cycles of a sparse file as a share of the dense one's; known before a repair, which moves no zeros.

        Args:
            model: dense.
            config: of the zeros; channels stay.
            input_shape: of one sample.

        Raises:
            InputError: the network cannot be pruned so.
        """
        config = dataclasses.replace(config, max_macs=None, repair="none")
        target = config.hardware
        file = export_tflite(
            prune(model, config, progress=show_nothing).model,
            storage=target.storage,
            rewrite=target.rewrite,
            device=config.device,
            input_shape=input_shape,
        )
        return self._estimate(file.content) / self._estimate_dense()

    def _estimate(self, content: bytes) -> float:
        return AArch64(content, cpu=self._device.job["cpu"]).estimate().cycles

    def _estimate_dense(self) -> float:
        if self._dense_cycles is None:
            self._dense_cycles = self._estimate(self._dense)
        return self._dense_cycles
