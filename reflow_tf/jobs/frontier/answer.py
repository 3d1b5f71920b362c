"""Which file to ship, and the sentence that says so: pure reckoning over what was measured.

Files are chosen by what they are expected to lose on calibration images that none of them was fitted to; what they
score on the evaluation images is told, and chooses nothing. Where a cost is counted and another estimated, no file is
called cheaper than another unless both say so, and the estimate by more than it may be off.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from reflow_tf.jobs.frontier.candidates import BOTH, PLAIN, SPARSE
from reflow_tf.jobs.frontier.devices import Device

ESTIMATE_ERROR = 1.4
"""An estimate of cycles must say so many times fewer before other kernels are called cheaper.

The largest error of a ratio on one thread is 1.36 (`benchmarks/cycle_estimates.py`, docs/frontier.md).
"""
ONE_SIDED = 1.645  # standard errors, 95 % of a normal distribution lie below


@dataclasses.dataclass(frozen=True)
class Row:
    """A candidate as far as the choice is concerned.

    Attributes:
        name: of the candidate.
        kind: of the candidate.
        number_format: of the candidate.
        cost: of one inference, as a share of the first plain conversion's.
        expected_drop: points that it is expected to lose.
        error: the standard error of that.
        cycles: by estimate, as such a share, too; None where the cost needs no estimate beside it.
    """

    name: str
    kind: str
    number_format: str
    cost: float
    expected_drop: float
    error: float = 0.0
    cycles: float | None = None

    @property
    def price(self) -> float:
        """What files are ordered by."""
        return self.cost if self.cycles is None else self.cycles

    @property
    def likely_most(self) -> float:
        """More than this it loses with a probability of one in twenty, as far as the images tell."""
        return self.expected_drop + ONE_SIDED * self.error

    def beats(self, other: "Row", device: Device) -> bool:
        """Whether it is cheaper beyond doubt."""
        if self.cost * device.noise >= other.cost:
            return False
        if self.cycles is None or other.cycles is None:
            return True
        return self.cycles * (device.noise if self._is_like(other) else ESTIMATE_ERROR) < other.cycles

    def _is_like(self, other: "Row") -> bool:
        """Whether the same kernels run both, so that what an estimate is off by is the same for both."""
        kernels = [(row.number_format, row.kind in (SPARSE, BOTH)) for row in (self, other)]
        return kernels[0] == kernels[1]


def read_row(cell: dict[str, Any]) -> Row:
    """A cell of the document as far as the choice is concerned."""
    expected = cell["expected_drop_points"], cell["expected_error_points"]
    return Row(cell["name"], cell["kind"], cell["number_format"], cell["cost_share"], *expected, cell["cycles_share"])


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is recommended.

    Attributes:
        recommended: of the files that hardly lose more than is allowed (`Row.likely_most`) and beat `best_plain`, the
            one that none beats; of several such the one that is expected to lose least. `best_plain` where none beats
            it; None where all may lose more.
        best_plain: the same among the plain conversions.
        best_at_equal_cost: the file of the least expected loss that costs no more than `best_plain`.
        frontier: files of which none is both cheaper and expected to lose less, by cost.
    """

    recommended: str | None
    best_plain: str | None
    best_at_equal_cost: str | None
    frontier: tuple[str, ...]


def choose(rows: Sequence[Row], max_drop: float, device: Device) -> Answer:
    """Chooses.

    Args:
        rows: at least one.
        max_drop: points that may be lost.
        device: of the costs.
    """
    allowed = [row for row in rows if row.likely_most <= max_drop]
    plain = _best([row for row in allowed if row.kind == PLAIN], device)
    recommended = _best([row for row in allowed if plain is None or row.beats(plain, device)], device) or plain
    equal = [row for row in rows if plain is not None and row.cost <= plain.cost and row.price <= plain.price]
    best = min(equal, key=lambda row: (row.expected_drop, row.price), default=None)
    frontier = [row for row in rows if not any(_dominates(other, row) for other in rows)]
    return Answer(
        recommended.name if recommended else None,
        plain.name if plain else None,
        best.name if best else None,
        tuple(row.name for row in sorted(frontier, key=lambda row: row.price)),
    )


def find_rival(row: Row, allowed: Sequence[Row], device: Device) -> Row | None:
    """Which of the files that may be shipped keeps another one from being recommended, whatever that one loses.

    Args:
        row: the other one, as far as its cost is concerned.
        allowed: files that may be shipped.
        device: of the costs.

    Returns:
        The best plain conversion where `row` does not beat it, or else the best file that beats `row`; None: there is
        neither.
    """
    plain = _best([other for other in allowed if other.kind == PLAIN], device)
    if plain is not None and not row.beats(plain, device):
        return plain
    return min((other for other in allowed if other.beats(row, device)), key=lambda other: other.price, default=None)


def _best(rows: Sequence[Row], device: Device) -> Row | None:
    """See `Answer.recommended`."""
    unbeaten = [row for row in rows if not any(other.beats(row, device) for other in rows)]
    return min(unbeaten, key=lambda row: (row.expected_drop, row.price), default=None)


def _dominates(other: Row, row: Row) -> bool:
    better = other.price <= row.price and other.expected_drop <= row.expected_drop
    return better and (other.price, other.expected_drop) != (row.price, row.expected_drop)
