"""Where activations lie in one static block of memory, planned before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def plan_arena(buffers: Mapping[str, Buffer]) -> ArenaPlan:
    """Places the largest buffer first, each in the lowest gap between those that are needed at the same time.

    The 'greedy by size' of Pisarchyk and Lee, arXiv 2001.03288.
    """
    offsets: dict[str, int] = {}
    for name in sorted(buffers, key=lambda name: (-buffers[name].size_bytes, buffers[name].first, name)):
        neighbours = [other for other in offsets if buffers[other].meets(buffers[name])]
        taken = sorted((offsets[other], offsets[other] + buffers[other].size_bytes) for other in neighbours)
        offsets[name] = _find_gap(taken, buffers[name].size_bytes)
    end = max((offsets[name] + buffers[name].size_bytes for name in offsets), default=0)
    return ArenaPlan(offsets, _align(end))


def _find_gap(taken: Sequence[tuple[int, int]], size_bytes: int) -> int:
    end = 0
    for start, stop in taken:
        if start - end >= size_bytes:
            return end
        end = max(end, _align(stop))
    return end


def _align(number: int) -> int:
    return -(-number // ALIGNMENT) * ALIGNMENT
