"""Calibration inputs that nothing is fitted to, so that it can be judged on them what a fit is worth."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from reflow_tf.data.portions import Counted, Selectable, count_inputs

HELD_OUT_EVERY = 8
"""Every so many inputs one is held out, the last of them: few, since what a fit lacks most is images."""


def is_held_out(positions: np.ndarray) -> np.ndarray:
    """Whether the inputs at these positions, counted from 0 over all batches, are held out; bool, of their shape."""
    return positions % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


@dataclasses.dataclass(frozen=True)
class Part(Counted):
    """The held-out inputs, or the others: a view of batches that is re-iterable as they are.

    Attributes:
        batches: arrays (n, ...).
        held_out: which of the two parts.
    """

    batches: Iterable[np.ndarray]
    held_out: bool

    def __len__(self) -> int:
        chosen = is_held_out(np.arange(count_inputs(self.batches)))
        return int(np.count_nonzero(chosen == self.held_out))

    def __iter__(self) -> Iterator[np.ndarray]:
        position = 0
        for batch in self.batches:
            chosen = batch[is_held_out(np.arange(position, position + len(batch))) == self.held_out]
            position += len(batch)
            if len(chosen):
                yield chosen


@dataclasses.dataclass(frozen=True)
class SelectablePart(Part):
    """Such a part of inputs of which any can be read without the others."""

    batches: Selectable

    def __len__(self) -> int:
        return len(self._positions)

    @functools.cached_property
    def _positions(self) -> np.ndarray:
        """Of its inputs among all."""
        return np.flatnonzero(is_held_out(np.arange(len(self.batches))) == self.held_out)

    @functools.cached_property
    def parts(self) -> tuple[range, ...]:
        """Of `Selectable`: what is left of each batch."""
        edges = np.searchsorted(self._positions, [0, *(part.stop for part in self.batches.parts)])
        return tuple(range(int(start), int(stop)) for start, stop in itertools.pairwise(edges) if start < stop)

    def select(self, positions: np.ndarray) -> Iterable[np.ndarray]:
        """Of `Selectable`."""
        return self.batches.select(self._positions[positions])


def part_of(batches: Iterable[np.ndarray], *, held_out: bool) -> Part:
    """The held-out inputs, or the others."""
    return SelectablePart(batches, held_out) if isinstance(batches, Selectable) else Part(batches, held_out)
