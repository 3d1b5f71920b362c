"""Why a candidate is not made: the network has no such form, it could not fit, or it cannot win, as far as is known."""

from collections.abc import Sequence

from reflow_tf.choices import AUTO
from reflow_tf.jobs.frontier.answer import read_row
from reflow_tf.jobs.frontier.candidates import BOTH, NARROW, PLAIN, SPARSE, Candidate
from reflow_tf.jobs.frontier.contract import Cell
from reflow_tf.jobs.frontier.costs import Costs
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.frontier.request import Search
from reflow_tf.jobs.record.run import Given
from reflow_tf.models.graph import find_kernels
from reflow_tf.report import frontier as report
from reflow_tf.report.progress import stage


class Objections:
    """To the candidates of a search on one device.

    Args:
        search: what is allowed.
        device: where.
        candidates: all of them.
        given: the network and its images.
        costs: on the device.
    """

    def __init__(self, search: Search, device: Device, candidates: Sequence[Candidate], given: Given, costs: Costs):
        self._search, self._device, self._candidates = search, device, candidates
        self._given, self._costs = given, costs

    def find(self, candidate: Candidate, cells: Sequence[Cell]) -> str | None:
        """The first one, None where there is none.

        Args:
            candidate: that may be made.
            cells: of those that were.
        """
        if candidate.kind == PLAIN:
            return None
        return self._find_obstacle(candidate, cells) or self._find_defeat(candidate, cells)

    def _find_defeat(self, candidate: Candidate, cells: Sequence[Cell]) -> str | None:
        """Why it cannot win, as far as is known."""
        limit = self._search.max_accuracy_drop
        made = [(each, cell) for each in self._candidates for cell in cells if cell["name"] == each.name]
        for other, cell in made:
            expected = cell["expected_drop_points"]
            if _says_of(other, candidate) and candidate.goes_as_far_as(other) and expected > limit:
                return f"{cell['name']} is expected to lose {expected:.2f} points already"
        ships = [(each, cell) for each, cell in made if self._may_ship(cell)]
        own = candidate.kind, candidate.number_format
        for other, cell in ships:
            if (other.kind, other.number_format) == own and other.goes_as_far_as(candidate):
                return f"{cell['name']} may be shipped, and costs less"
        plain = [cell for other, cell in ships if other.kind == PLAIN]
        if not plain:
            return None
        best = min(plain, key=report.price)
        least = self._foresee(candidate, best, cells)
        if least is not None and least >= report.price(best):
            return (
                f"it would cost about {least:.2f} of {self._device.formats[0]}, and {best['name']} costs "
                f"{report.price(best):.2f}"
            )
        return None

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
        reasons = [target.objection(spec) for spec in find_kernels(self._given.loaded.model).specs]
        if all(reasons):
            return f"no kernel of the network can be sparse there: {reasons[0]}" if reasons else "it has no kernels"
        budget = self._search.job.ram_budget
        for cell in same if candidate.kind == SPARSE else ():
            if budget is not None and cell["ram_bytes"] > budget:
                return f"{cell['name']} needs {cell['ram_bytes']:,} bytes of RAM, of which zeros save none"
        return None

    def _foresee(self, candidate: Candidate, best: Cell, cells: Sequence[Cell]) -> float | None:
        """About so much it will cost, as a share of the first plain conversion; None where nobody knows.

        Bytes do not go by multiply-adds: layers on small maps have few of them, and most of the weights. Cycles do not
        depend on the values of weights: a file with zeros is estimated before anything is repaired.
        """
        share = candidate.prune.max_macs
        if share == AUTO:
            return None
        if candidate.kind == NARROW and candidate.number_format != best["number_format"]:
            if self._device.unit == "bytes":
                return None
            own = _select_plain(cells, candidate.number_format)
            return report.price(own[0]) * float(share or 1) if own else None
        if not self._device.estimates_cycles or candidate.kind not in (SPARSE, BOTH):
            return None
        with stage(f"Counting for {candidate.name}"):
            model, shape = self._given.loaded.model, self._given.calibration.sample_shape
            zeros = self._costs.foresee_zeros(model, candidate.prune, shape)
            return zeros * (float(share) if share else 1.0)


def _says_of(other: Candidate, candidate: Candidate) -> bool:
    """Whether what one loses the other does: what pruning loses in a float format is lost in every other one, too."""
    is_pruned_in_float = other.kind != PLAIN and other.number_format in ("float32", "float16")
    return is_pruned_in_float or other.number_format == candidate.number_format


def _select_plain(cells: Sequence[Cell], number_format: str) -> list[Cell]:
    return [cell for cell in cells if (cell["kind"], cell["number_format"]) == (PLAIN, number_format)]
