"""Which channels of a group leave first: exact backward elimination on what the kernels that read them compute.

The channel leaves whose loss its readers can make up for best with what is left; then they are refitted, and so on.
With the readers' weights W and the inverse H^-1 of the Gram of what they read, the loss of channel j is
tr(W_j ([H^-1]_jj)^-1 W_j^T), then W -= W_j ([H^-1]_jj)^-1 [H^-1]_j: and H^-1 -= [H^-1]_:j ([H^-1]_jj)^-1 [H^-1]_j:.
That is optimal brain surgery (Hassibi & Stork, 1993) for columns of several outputs and taps together; for one reader,
one tap and one output it is lemma 1 of Frantar & Alistarh, arXiv 2208.11580.

On the inputs that the Gram was summed up over, readers of many channels can make up for nearly anything. So what counts
as loss is what the refitted readers miss on others.

Criteria that look at each channel by itself, as those of the literature do, give another order, and are there to
compare with: what is lost in that order is measured alike.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_FORGOTTEN = 0.85
"""Once so few of the channels that are held are left, those that left are cut off: later steps are shorter."""
_ONE_BY_ONE = 2048
"""Columns of a reader up to which channels leave one by one; of larger ones, whose steps are slow, some at a time."""
_AT_A_TIME = 1 / 64
"""Share of those that are left, which then leave together: the cheapest, each by itself."""
_NUM_LOOKS = 32
"""Widths at which the loss is looked at; between them it is taken to grow evenly."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A kernel that reads a group's channels.

    Attributes:
        weights: (outputs, d) float64, in units in which the square of an error is what it costs.
        judged: the same in the units in which the loss is measured.
        gram: of what they multiply, (d, d) float64, positive definite: that by which channels leave and readers are
            refitted.
        judging: the same of other inputs: that by which the loss is measured.
        places: (channels, taps), the columns of each channel; columns of no channel stay, and are refitted, too.
    """

    weights: np.ndarray
    judged: np.ndarray
    gram: np.ndarray
    judging: np.ndarray
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class Elimination:
    """The order in which channels leave.

    Attributes:
        order: (channels,), the first to leave first; the last one never does.
        losses: (channels,), what readers miss once 0, 1, ... of them have left, never falling.
    """

    order: np.ndarray
    losses: np.ndarray


@dataclasses.dataclass(frozen=True)
class Members:
    """What a criterion that looks at each channel by itself knows of a group.

    Attributes:
        weights: of every kernel that numbers the channels, (channels, anything) float64.
        read: of every kernel that reads them, (outputs, channels, taps) float64.
        powers: E x^2 of what each of those multiplies, (channels, taps) float64.
    """

    weights: tuple[np.ndarray, ...]
    read: tuple[np.ndarray, ...]
    powers: tuple[np.ndarray, ...]


ChannelCriterion = Callable[[Members], np.ndarray]
"""Scores, (channels,), finite and not negative; higher = keep."""


def magnitude(members: Members) -> np.ndarray:
    """The l2 norm of all weights that number the channel (Fang et al., "DepGraph", arXiv 2301.12900, eq. 5)."""
    return np.sqrt(np.sum([np.einsum("cn,cn->c", weights, weights) for weights in members.weights], axis=0))


def activation(members: Members) -> np.ndarray:
    """What the channel, alone, adds to the power of what reads it: sum_j |w_j|^2 E x_j^2 over outputs and taps.

    Of whole columns what Wanda is of single weights (Sun et al., arXiv 2306.11695).
    """
    each = zip(members.read, members.powers, strict=True)
    return np.sum([np.einsum("oct,oct,ct->c", weights, weights, powers) for weights, powers in each], axis=0)


ELIMINATION = "elimination"
"""The name of the criterion that `eliminate` is without scores."""

CHANNEL_CRITERIA: Mapping[str, ChannelCriterion | None] = {
    ELIMINATION: None,
    "magnitude": magnitude,
    "activation": activation,
}


def eliminate(readers: Sequence[Reader], scores: np.ndarray | None = None) -> Elimination:
    """Removes channel after channel, whichever costs all readers together least, until one is left.

    Where a reader has more than _ONE_BY_ONE columns, _AT_A_TIME of the channels leave together.

    Args:
        readers: at least one, all of the same number of channels; they stay as they are.
        scores: (channels,) of a criterion: the lowest leaves first then, whatever it costs.
    """
    states = [_State(reader) for reader in readers]
    count = len(readers[0].places)
    looks = list(np.unique(np.linspace(0, count - 1, min(count, _NUM_LOOKS)).round().astype(int))[1:])
    is_large = max(reader.weights.shape[1] for reader in readers) > _ONE_BY_ONE
    names, alive = np.arange(count), np.ones(count, bool)
    order: list[int] = []
    seen = {0: 0.0}
    while len(order) < count - 1:
        costs = np.sum([state.price(alive) for state in states], axis=0) if scores is None else scores[names]
        together = max(1, int(_AT_A_TIME * (count - len(order)))) if is_large else 1
        leaving = np.argsort(np.where(alive, costs, np.inf), kind="stable")[: min(together, count - 1 - len(order))]
        order += names[leaving].tolist()
        alive[leaving] = False
        for state in states:
            state.remove(leaving)
        if looks and len(order) >= looks[0]:
            seen[len(order)] = sum(state.measure_loss() for state in states)
            looks = [look for look in looks if look > len(order)]
        if alive.sum() < _FORGOTTEN * len(alive):
            for state in states:
                state.forget(alive)
            names, alive = names[alive], np.ones(int(alive.sum()), bool)
    losses = np.interp(np.arange(count), list(seen), np.maximum.accumulate(list(seen.values())))
    return Elimination(np.array([*order, int(names[alive][0])]), losses)


class _State:
    """A reader as it is refitted: the columns of its channels first, one channel behind the other, then all others."""

    def __init__(self, reader: Reader):
        self._count, self._taps = reader.places.shape
        others = np.setdiff1d(np.arange(reader.weights.shape[1]), reader.places)
        self._columns = np.concatenate([reader.places.ravel(), others])  # of the reader
        self._reader = reader
        self._fitted = len(reader.weights)
        self._weights = np.concatenate([reader.weights, reader.judged])[:, self._columns]
        self._inverse = np.linalg.inv(reader.gram)[np.ix_(self._columns, self._columns)]

    def price(self, alive: np.ndarray) -> np.ndarray:
        """What each channel costs if it leaves now, (channels,); of those that left, anything."""
        count, taps = self._count, self._taps
        own = self._inverse[: count * taps, : count * taps].reshape(count, taps, count, taps)
        blocks = np.where(alive[:, None, None], np.einsum("itiu->itu", own), np.eye(taps))
        by_channel = self._weights[: self._fitted, : count * taps].reshape(-1, count, taps).transpose(1, 0, 2)
        if taps == 1:
            return np.einsum("cot,cot->c", by_channel, by_channel) / blocks[:, 0, 0]
        solved = np.linalg.solve(blocks, by_channel.transpose(0, 2, 1))
        return np.einsum("cot,cto->c", by_channel, solved)

    def remove(self, leaving: np.ndarray) -> None:
        """Takes channels out, and refits what is left."""
        places = (leaving[:, None] * self._taps + np.arange(self._taps)).ravel()
        pulls = np.linalg.solve(self._inverse[np.ix_(places, places)], self._inverse[places])
        self._weights -= self._weights[:, places] @ pulls
        self._inverse -= self._inverse[:, places] @ pulls
        self._weights[:, places] = 0.0

    def measure_loss(self) -> float:
        """What is missed on the inputs that judge."""
        moved = -self._reader.judged
        moved[:, self._columns] += self._weights[self._fitted :]
        return float(np.sum((moved @ self._reader.judging) * moved))

    def forget(self, alive: np.ndarray) -> None:
        """Cuts off the channels that have left."""
        stays = np.concatenate(
            [np.repeat(alive, self._taps), np.ones(len(self._columns) - self._count * self._taps, bool)]
        )
        self._count, self._columns = int(alive.sum()), self._columns[stays]
        self._weights = np.ascontiguousarray(self._weights[:, stays])
        self._inverse = np.ascontiguousarray(self._inverse[np.ix_(stays, stays)])
