"""What a search asks of whoever makes its candidates: of a network, or of a finished file."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.frontier.candidates import Candidate
from reflow_tf.jobs.frontier.costs import Costs
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.microcontroller import Footprint
from reflow_tf.report.folder import Content

NETWORK, FILE = "network", "file"
"""What may be searched for the file to ship."""

Cell = dict[str, Any]
"""What the document says of a candidate that was made."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A candidate, made.

    Attributes:
        content: the .tflite file.
        runtime: what runs it here, as `OpenedFile` takes it.
        footprint: flash and RAM, where the device is a microcontroller.
        score: on the evaluation images: how many, `n`; what was lost, `drop_points`; and more.
        command: flags that make its like; () for a file that was given.
        files: of its folder.
        notes: what a person should know whatever they ship.
    """

    content: bytes
    runtime: str
    footprint: Footprint | None
    score: dict[str, Any]
    command: tuple[str, ...]
    files: Mapping[str, Content]
    notes: tuple[str, ...] = ()


Objecting = Callable[[Candidate, Sequence[Cell]], str | None]
"""A candidate, and the cells of those that were made -> why it need not be made; None: nothing speaks against it."""


class Workshop(Protocol):
    """Makes candidates of what was given; what they share is computed once.

    Attributes:
        given: NETWORK or FILE.
        first_name: of the file that all are compared with.
        drawn_from: where inputs are from, as --data spells it.
        data: of the document: the images, and what is scored on them.
        settings: all that the results depend on beside the device.
        notes: what is true of all candidates.
        announced: the same, of which the user was told when inputs were opened.
    """

    given: str
    first_name: str
    drawn_from: str
    data: dict[str, Any]
    settings: dict[str, Any]
    notes: tuple[str, ...]
    announced: tuple[str, ...]

    def list_candidates(self, device: Device) -> tuple[Candidate, ...]:
        """What may be tried on a device, by rank; raises InputError where that is nothing."""
        ...

    def find_first(self, job: JobConfig) -> bytes:
        """The file that all are compared with; `job` is that of the first candidate."""
        ...

    def object_to(
        self, candidates: Sequence[Candidate], device: Device, costs: Costs, tried: list[dict[str, Any]]
    ) -> Objecting:
        """Who knows which of them need not be made; adds to `tried`, of the document, what it tried for that."""
        ...

    def make(self, candidate: Candidate, device: Device, job: JobConfig) -> Made:
        """Makes one for a device; nothing is written. Raises InputError where there is no such file."""
        ...

    def judge(self, made: Made) -> tuple[float, float]:
        """Percentage points that a file is expected to lose by held-out calibration images, and their error."""
        ...
