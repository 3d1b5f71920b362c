"""Why a candidate is not made: the network has no such form, it could not fit, or it cannot win, as far as is known."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from reflow_tf.choices import AUTO
from reflow_tf.jobs.frontier.answer import ONE_SIDED, Row, find_rival, read_row
from reflow_tf.jobs.frontier.candidates import BOTH, NARROW, PLAIN, SPARSE, Candidate
from reflow_tf.jobs.frontier.contract import Cell
from reflow_tf.jobs.frontier.costs import Cost
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.frontier.request import Search
from reflow_tf.models.graph import find_kernels
from reflow_tf.report.wording import SPACE, plural

Foreseeing = Callable[[Candidate], Cost]
"""A candidate that sets zeros -> what a file with these zeros costs, if no channel leaves and nothing is repaired.

Raises InputError where there is no such file.
"""

HOPELESS = 2.0
"""Times the limit: who is expected to lose more when it is fitted to a quarter of the images is not made with all.

MobileNetV2 at 80 % of its multiply-adds: 2.6 ± 0.4 points with 125 images, 2.0 ± 0.4 with 500.
"""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Candidates made with fewer images, and in float32, to see whether they are worth more.

    Attributes:
        num_fitted: images.
        unit: what an image is called.
        run: a candidate -> what it is expected to lose then, and the standard error of that.
        results: of the document, to which new ones are added.
    """

    num_fitted: int
    unit: str
    run: Callable[[Candidate], tuple[float, float]]
    results: list[dict[str, Any]]

    def find(self, candidate: Candidate) -> dict[str, Any]:
        """Its result, which may be known from an earlier run."""
        for result in self.results:
            if result["name"] == candidate.name:
                return result
        expected, error = self.run(candidate)
        found = {"name": candidate.name, "fitted": self.num_fitted}
        found |= {"expected_drop_points": expected, "expected_error_points": error}
        self.results.append(found)
        return found

    def describe(self, found: Mapping[str, Any]) -> str:
        """A result in words."""
        images = plural(found["fitted"], self.unit).replace(SPACE, " ")
        return (
            f"{found['name']}, fitted to {images}, is expected to lose "
            f"{found['expected_drop_points']:.1f} ± {found['expected_error_points']:.1f} points"
        )


class Objections:
    """To the candidates of a search on one device.

    Args:
        search: what is allowed.
        device: where.
        candidates: all of them.
        model: the network.
        foresee: what zeros will cost.
        trial: None: there are too few images for one.
    """

    def __init__(
        self,
        search: Search,
        device: Device,
        candidates: Sequence[Candidate],
        model: keras.Model,
        foresee: Foreseeing,
        trial: Trial | None = None,
    ):
        self._search, self._device, self._candidates, self._model = search, device, candidates, model
        self._foresee, self._trial = foresee, trial
        self._foreseen: dict[Candidate, Cost] = {}

    def find(self, candidate: Candidate, cells: Sequence[Cell]) -> str | None:
        """The first one, None where there is none.

        Args:
            candidate: that may be made.
            cells: of those that were.
        """
        if candidate.kind == PLAIN:
            return None
        told = self._find_obstacle(candidate, cells) or self._find_defeat(candidate, cells)
        return told or self._find_rival(candidate, cells) or self._find_failure(candidate, cells)

    def _find_defeat(self, candidate: Candidate, cells: Sequence[Cell]) -> str | None:
        """Why it cannot win, by what others lost."""
        limit, made = self._search.max_accuracy_drop, self._pair(cells)
        for other, cell in made:
            expected = cell["expected_drop_points"]
            if _says_of(other, candidate) and candidate.goes_as_far_as(other) and expected > limit:
                return f"{cell['name']} is expected to lose {expected:.2f} points already"
        own = candidate.kind, candidate.number_format
        for other, cell in made:
            is_milder = (other.kind, other.number_format) == own and other.goes_as_far_as(candidate)
            if is_milder and self._may_ship(cell):
                return f"{cell['name']} may be shipped, and costs less"
        if (trial := self._find_trial(candidate, cells)) is None:
            return None
        for other, found in self._pair(trial.results):
            if candidate.goes_as_far_as(other) and self._is_hopeless(found):
                return trial.describe(found)
        return None

    def _pair(self, entries: Sequence[dict[str, Any]]) -> list[tuple[Candidate, dict[str, Any]]]:
        """Candidates with what the document has under their names, in the candidates' order."""
        return [(each, entry) for each in self._candidates for entry in entries if entry["name"] == each.name]

    def _find_rival(self, candidate: Candidate, cells: Sequence[Cell]) -> str | None:
        """Why it cannot win, by what it would cost."""
        allowed = [read_row(cell) for cell in cells if self._may_ship(cell)]
        for least in self._foresee_rows(candidate, cells) if allowed else ():
            rival = find_rival(least, allowed, self._device)
            if rival is not None:
                return (
                    f"it would cost about {least.price:.2f} of {self._device.formats[0]} or more, and {rival.name}, "
                    f"which costs {rival.price:.2f}, may be shipped"
                )
        return None

    def _find_failure(self, candidate: Candidate, cells: Sequence[Cell]) -> str | None:
        """Why it would lose far too much, by what it loses when it is made with fewer images."""
        if (trial := self._find_trial(candidate, cells)) is None:
            return None
        found = trial.find(candidate)
        return trial.describe(found) if self._is_hopeless(found) else None

    def _find_trial(self, candidate: Candidate, cells: Sequence[Cell]) -> Trial | None:
        """None where something pruned may be shipped already: others are made then; a trial costs a third of that."""
        ships = any(cell["kind"] != PLAIN and self._may_ship(cell) for cell in cells)
        return None if ships or candidate.prune.max_macs == AUTO else self._trial

    def _is_hopeless(self, found: Mapping[str, Any]) -> bool:
        expected, error = found["expected_drop_points"], found["expected_error_points"]
        return bool(expected - ONE_SIDED * error > HOPELESS * self._search.max_accuracy_drop)

    def _may_ship(self, cell: Cell) -> bool:
        return cell["fits"] and not cell["differs"] and read_row(cell).likely_most <= self._search.max_accuracy_drop

    def _find_obstacle(self, candidate: Candidate, cells: Sequence[Cell]) -> str | None:
        """Why there is no such candidate of this network, or none that could fit."""
        same = _select_plain(cells, candidate.number_format)
        if candidate.prune.max_macs == AUTO and any(cell["fits"] for cell in same):
            return f"{same[0]['name']} fits as it is"
        if candidate.kind not in (SPARSE, BOTH):
            return None
        target = candidate.prune.hardware
        reasons = [target.objection(spec) for spec in find_kernels(self._model).specs]
        if all(reasons):
            return f"no kernel of the network can be sparse there: {reasons[0]}" if reasons else "it has no kernels"
        budget = self._search.job.ram_budget
        for cell in same if candidate.kind == SPARSE else ():
            if budget is not None and cell["ram_bytes"] > budget:
                return f"{cell['name']} needs {cell['ram_bytes']:,} bytes of RAM, of which zeros save none"
        return None

    def _foresee_rows(self, candidate: Candidate, cells: Sequence[Cell]) -> Iterator[Row]:
        """What it will cost at least, as far as that is known, and known better from row to row.

        A narrower network costs more than its share of the multiply-adds, but for bytes: layers on small maps have few
        multiply-adds, and most of the weights.
        """
        share = candidate.prune.max_macs
        if share == AUTO or (share is not None and self._device.unit == "bytes"):
            return
        names, share = (candidate.name, candidate.kind, candidate.number_format), float(share or 1)
        if candidate.kind == NARROW:
            same = map(read_row, _select_plain(cells, candidate.number_format))
            shares: Iterable[tuple[float, float | None]] = ((row.cost, row.cycles) for row in same)
        else:
            costs = self._foresee_zeros(candidate.without_narrowing)
            shares = ((cost.cost_share, cost.cycles_share) for cost in costs)
        for cost, cycles in shares:
            yield Row(*names, share * cost, expected_drop=0.0, cycles=None if cycles is None else share * cycles)

    def _foresee_zeros(self, candidate: Candidate) -> Iterator[Cost]:
        """What as many zeros or more cost, where that was measured; then its own."""
        for other, cost in list(self._foreseen.items()):
            if other.number_format == candidate.number_format and other.goes_as_far_as(candidate):
                yield cost
        if candidate not in self._foreseen:
            self._foreseen[candidate] = self._foresee(candidate)
            yield self._foreseen[candidate]


def _says_of(other: Candidate, candidate: Candidate) -> bool:
    """Whether what one loses the other does: what pruning loses in a float format is lost in every other one, too."""
    is_pruned_in_float = other.kind != PLAIN and other.number_format in ("float32", "float16")
    return is_pruned_in_float or other.number_format == candidate.number_format


def _select_plain(cells: Sequence[Cell], number_format: str) -> list[Cell]:
    return [cell for cell in cells if (cell["kind"], cell["number_format"]) == (PLAIN, number_format)]
