"""What to search for."""

import dataclasses
import pathlib
from collections.abc import Sequence

from reflow_tf.choices import check_between
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.sparsity.plan import is_number

DEFAULT_REPAIR = "least_squares"
"""Of what is pruned."""


def require_budgets(devices: Sequence[Device], flash_budget: int | None, ram_budget: int | None) -> None:
    """Raises InputError where a budget is set and not every device is a microcontroller."""
    given = {"flash_budget": flash_budget, "ram_budget": ram_budget}
    set_ones = [f"--{name}={value}" for name, value in given.items() if value is not None]
    for device in devices:
        if set_ones and device.runtime != "microcontroller":
            raise InputError(
                f"--flash_budget and --ram_budget need a --device that is a microcontroller. "
                f"Received: --device={device.name} {' '.join(set_ones)}"
            )


@dataclasses.dataclass(frozen=True)
class Search:
    """What to search for; the flags of `reflow_tf.tools.frontier`.

    Attributes:
        job: the model and the images; its `output_dir` is the search's folder.
        devices: where the file is to run, each once.
        max_accuracy_drop: points that it may be expected to lose.
        repair: of what is pruned, as `--repair` spells it.
        minutes: after so many, nothing more is begun; None: all is tried.
        version: of this package.

    Raises:
        InputError: a number is out of its range, or a repair unknown.
    """

    job: JobConfig
    devices: tuple[Device, ...]
    max_accuracy_drop: float
    repair: str
    minutes: float | None
    version: str

    def __post_init__(self) -> None:
        check_between("max_accuracy_drop", self.max_accuracy_drop, 0, 100)
        PruneConfig(repair=self.repair)
        if self.repair == "none":
            raise InputError("--repair must be one: without it nothing that is pruned can win. Received: none")
        if self.minutes is not None and not (is_number(self.minutes) and self.minutes > 0):
            received = f"{self.minutes:g}" if is_number(self.minutes) else f"{self.minutes!r}, which is no number"
            raise InputError(f"--minutes must be over 0. Received: {received}")

    @property
    def is_of_file(self) -> bool:
        """Whether the model is a finished file, of which nothing is pruned."""
        return self.job.model.endswith(".tflite")

    def job_on(self, device: Device) -> JobConfig:
        """The job with the folder of one device: where there are several, each has its own in the search's."""
        if len(self.devices) == 1:
            return self.job
        return dataclasses.replace(self.job, output_dir=str(pathlib.Path(self.job.output_dir) / device.name))
