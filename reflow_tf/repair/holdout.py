"""Calibration inputs that nothing is fitted to, so that it can be judged on them what a fit is worth."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from reflow_tf.data.batches import Counted, count_inputs

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
