"""Which file to ship, and the sentence that says so: pure reckoning over what was measured.

Files are chosen by what they are expected to lose on calibration images that none of them was fitted to; what they
score on the evaluation images is told, and chooses nothing.
"""

import dataclasses
from collections.abc import Sequence

from reflow_tf.jobs.frontier.candidates import PLAIN
from reflow_tf.jobs.frontier.devices import Device

_ONE_SIDED = 1.645  # standard errors, 95 % of a normal distribution lie below


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
    """

    name: str
    kind: str
    number_format: str
    cost: float
    expected_drop: float
    error: float = 0.0

    @property
    def likely_most(self) -> float:
        """More than this it loses with a probability of one in twenty, as far as the images tell."""
        return self.expected_drop + _ONE_SIDED * self.error


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is recommended.

    Attributes:
        recommended: the cheapest file that hardly loses more than is allowed (`Row.likely_most`); None where all may.
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
        device: its margins: a pruned file has to be cheaper than the plain one by these.
    """
    allowed = [row for row in rows if row.likely_most <= max_drop]
    plain = _cheapest([row for row in allowed if row.kind == PLAIN])
    recommended = plain
    for row in sorted(allowed, key=lambda row: row.cost):
        if plain is None or row.cost * _margin(row, plain, device) < plain.cost:
            recommended = row
            break
    equal = [row for row in rows if plain is not None and row.cost <= plain.cost]
    best = min(equal, key=lambda row: (row.expected_drop, row.cost), default=None)
    frontier = [row for row in rows if not any(_dominates(other, row) for other in rows)]
    return Answer(
        recommended.name if recommended else None,
        plain.name if plain else None,
        best.name if best else None,
        tuple(row.name for row in sorted(frontier, key=lambda row: row.cost)),
    )


def _margin(row: Row, plain: Row, device: Device) -> float:
    return device.noise if row.number_format == plain.number_format else max(device.margin, device.noise)


def _cheapest(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: (row.cost, row.expected_drop), default=None)


def _dominates(other: Row, row: Row) -> bool:
    better = other.cost <= row.cost and other.expected_drop <= row.expected_drop
    return better and (other.cost, other.expected_drop) != (row.cost, row.expected_drop)
