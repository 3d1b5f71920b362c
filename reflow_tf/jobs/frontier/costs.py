"""What one inference of a file costs on a device: measured there, and where that is not time, estimated too."""

import dataclasses
import functools

from reflow_tf.export import flatbuffer
from reflow_tf.jobs.benchmark import Candidate as Measurable
from reflow_tf.jobs.benchmark import measure_files
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.microcontroller import Footprint
from reflow_tf.runtimes.aarch64.runtime import AArch64


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one file.

    Attributes:
        cost: in the device's unit.
        cost_share: of the first file's, see `Costs`.
        differs: the outputs there are wrong.
        cycles: by estimate; None where the cost needs none beside it.
        cycles_share: of the first file's.
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
        first: the file that all are compared with: of a network, the dense one in float32.
        name: of that file, for messages.
    """

    def __init__(self, device: Device, first: bytes, name: str):
        self._device, self._first, self._name = device, first, name

    def measure(self, content: bytes, footprint: Footprint | None) -> Cost:
        """What a file costs.

        Args:
            content: the file.
            footprint: what it takes, where the device is a microcontroller.

        Raises:
            InputError: the device cannot run it.
        """
        if self._device.runtime == "bytes":
            return Cost(len(content), len(content) / len(self._first))
        content = flatbuffer.fix_batch(content)
        if self._device.estimates_cycles:
            return self._count(content)
        if self._device.runtime != "microcontroller":
            return self._time(content)
        assert footprint is not None
        if self._device.unit == "bytes":
            return Cost(footprint.flash_bytes, footprint.flash_bytes / footprint.dense_flash_bytes)
        pair = footprint.npu_cycles or next(iter(footprint.instructions.values()))
        return Cost(pair.file, pair.file / pair.dense)

    def _time(self, content: bytes) -> Cost:
        """Side by side with the first file, turn by turn, so that what else the machine does falls on both."""
        files = [Measurable("the file", content)], Measurable(self._name, self._first_of_one)
        (file,) = measure_files(*files, runtime=self._device.runtime).files
        assert file.speedup is not None
        return Cost(file.cost.median, 1 / file.speedup.median, file.differs)

    def _count(self, content: bytes) -> Cost:
        """Instructions are the same every time: the first file's are counted once."""
        cpu = self._device.job["cpu"]
        (file,) = measure_files([Measurable("the file", content)], runtime=self._device.runtime, cpu=cpu).files
        share, cycles = file.cost.median / self._first_instructions, self._estimate(content)
        return Cost(file.cost.median, share, file.differs, cycles, cycles / self._first_cycles)

    @functools.cached_property
    def _first_of_one(self) -> bytes:
        """The first file for a batch of 1, where it leaves the batch open: that is what an inference is here."""
        return flatbuffer.fix_batch(self._first)

    @functools.cached_property
    def _first_instructions(self) -> float:
        return AArch64(self._first_of_one, cpu=self._device.job["cpu"]).measure()

    def _estimate(self, content: bytes) -> float:
        return AArch64(content, cpu=self._device.job["cpu"]).estimate().cycles

    @functools.cached_property
    def _first_cycles(self) -> float:
        return self._estimate(self._first_of_one)
