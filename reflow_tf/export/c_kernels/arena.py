"""Where activations lie in one static block of memory, planned before anything runs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

ALIGNMENT = 8


@dataclass(frozen=True)
class Buffer:
    """Memory that something needs for a while.

    Attributes:
        size_bytes: how much.
        first: the step that writes it first.
        last: the last step that reads or writes it.
    """

    size_bytes: int
    first: int
    last: int

    def meets(self, other: "Buffer") -> bool:
        """Whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class ArenaPlan:
    """Attributes:
    offsets: of each buffer, in bytes, multiples of `ALIGNMENT`.
    size_bytes: of the arena.
    """

    offsets: Mapping[str, int]
    size_bytes: int


_ORDERS: tuple[Callable[[Buffer], tuple[int, int]], ...] = (
    lambda buffer: (-buffer.size_bytes, buffer.first),
    lambda buffer: (-buffer.size_bytes, -buffer.first),
    lambda buffer: (-buffer.first, -buffer.size_bytes),
)
_MOST_TRIES = 16  # of each order


@dataclass(frozen=True)
class Overlaps:
    """Which buffers may overlap at the step that reads one for the last time, and writes the other: (written, read).

    Attributes:
        leads: where the first begins so many bytes in front of the second, or further (Blacker et al., 'Diagonal Memory
            Optimisation', arXiv 2010.01668).
        same: where both begin at one place.
    """

    leads: Mapping[tuple[str, str], int] = field(default_factory=dict)
    same: Collection[tuple[str, str]] = ()


def plan_arena(buffers: Mapping[str, Buffer], overlaps: Overlaps = Overlaps()) -> ArenaPlan:
    """Buffers that are needed at the same time lie side by side, but for those that may overlap.

    One after the other takes the lowest place that is free: the largest first ('greedy by size' of Pisarchyk and Lee,
    arXiv 2001.03288), or, since what overlaps has to lie in front of what it overlaps, the last that is needed first.
    Then what came to lie on top is placed first, and so on; the smallest arena of all is taken.
    """
    plans = [ArenaPlan({}, 0)] if not buffers else []
    for place_first in _ORDERS:
        order = sorted(buffers, key=lambda name: (*place_first(buffers[name]), name))
        for _ in range(min(len(buffers), _MOST_TRIES)):
            plans.append(plan := _place(buffers, order, overlaps))
            highest = max(order, key=lambda name: plan.offsets[name] + buffers[name].size_bytes)
            order = [highest, *(name for name in order if name != highest)]
    return min(plans, key=lambda plan: plan.size_bytes)


def _place(buffers: Mapping[str, Buffer], order: Sequence[str], overlaps: Overlaps) -> ArenaPlan:
    offsets: dict[str, int] = {}
    for name in order:
        neighbours = [other for other in offsets if buffers[other].meets(buffers[name])]
        barred = sorted(span for other in neighbours for span in _bar(name, other, buffers, offsets[other], overlaps))
        offsets[name] = _find_free(barred)
    end = max((offsets[name] + buffers[name].size_bytes for name in offsets), default=0)
    return ArenaPlan(offsets, _align(end))


def _bar(
    name: str, other: str, buffers: Mapping[str, Buffer], offset: int, overlaps: Overlaps
) -> list[tuple[int, int]]:
    """Between which offsets a buffer must not begin, for another that lies at `offset`; it may at either."""
    first, last = offset - buffers[name].size_bytes, offset + buffers[other].size_bytes
    if (lead := overlaps.leads.get((name, other))) is not None:
        first = max(first, offset - lead)
    if (lead := overlaps.leads.get((other, name))) is not None:
        last = min(last, offset + lead)
    if (name, other) in overlaps.same or (other, name) in overlaps.same:
        return [(first, offset), (offset, last)]
    return [(first, last)]


def _find_free(barred: Sequence[tuple[int, int]]) -> int:
    """The lowest offset that is not between any of these, which are sorted."""
    offset = 0
    for first, last in barred:
        if first < offset < last:
            offset = _align(last)
    return offset


def _align(number: int) -> int:
    return -(-number // ALIGNMENT) * ALIGNMENT
