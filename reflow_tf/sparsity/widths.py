"""How many channels each group keeps, when it is known what the channels that leave cost the network.

Minimizes the sum over groups of what their missing channels cost, subject to the multiply-adds that are left. A layer's
are a product, of the widths before and behind it, and so no sum over groups that dynamic programming could share out:
for a price of a multiply-add every group in turn takes the width that is cheapest while the others have theirs, until
none moves, and the price is the lowest with which the budget is met (Lagrange; Everett, Operations Research 11, 1963).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from reflow_tf.errors import InputError

_HALVINGS = 40
_PRICES = (-60.0, 20.0)
"""Powers of e, of what all multiply-adds of the network cost together: from nothing to more than any loss."""
_MOST_ROUNDS = 20


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a kernel: so many places that stay, and the groups whose channels are the others, some repeatedly."""

    fixed: int
    groups: tuple[int, ...]

    def size(self, widths: Sequence[int]) -> int:
        return self.fixed + sum(widths[group] for group in self.groups)


@dataclasses.dataclass(frozen=True)
class Workload:
    """Multiply-adds of one kernel: the positions at which it is used times its size.

    Or whatever else is counted so: with one position the kernel's weights, with one axis the numbers in a tensor.
    """

    positions: int
    axes: tuple[Axis, ...]

    def depends_on(self, group: int) -> bool:
        return any(group in axis.groups for axis in self.axes)

    def count(self, widths: Sequence[int]) -> int:
        return self.positions * math.prod(axis.size(widths) for axis in self.axes)


@dataclasses.dataclass(frozen=True)
class Width:
    """What the choice is about in one group.

    Attributes:
        size: channels that it has.
        losses: what it costs the network if 0, 1, ... channels leave, never falling, (size,).
        multiple: of which number its width must be, or else all of `size`.
    """

    size: int
    losses: np.ndarray
    multiple: int = 1

    @property
    def choices(self) -> np.ndarray:
        """Widths, ascending."""
        return np.array([*range(self.multiple, self.size, self.multiple), self.size])


def choose_widths(groups: Sequence[Width], workloads: Sequence[Workload], share: float) -> tuple[int, ...]:
    """The widths of least loss with at most so much of the multiply-adds.

    Args:
        groups: with the numbers that `Axis` knows them by.
        workloads: of all kernels.
        share: of the multiply-adds with all channels, in (0, 1].

    Raises:
        InputError: with the least widths that are allowed there are more.
    """
    check_share(groups, workloads, share)
    full = [group.size for group in groups]
    dense = count_macs(workloads, full)
    low, high = _PRICES
    best = [int(group.choices[0]) for group in groups]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        widths = _settle(groups, workloads, full, math.exp(middle) / dense)
        if count_macs(workloads, widths) > share * dense:
            low = middle
        else:
            high, best = middle, widths
    return tuple(_spend_rest(groups, workloads, best, share * dense))


def check_share(groups: Sequence[Width], workloads: Sequence[Workload], share: float) -> None:
    """Raises InputError where even the least widths that are allowed leave more; losses do not matter."""
    if (least := find_least_share(groups, workloads)) > share:
        raise InputError(
            f"--max_macs must be at least {math.ceil(1000 * least) / 1000:g} here, which leaves every group of "
            f"channels as narrow as it can be. Received: {share:g}"
        )


def find_least_share(groups: Sequence[Width], workloads: Sequence[Workload]) -> float:
    """The share of the multiply-adds that is left where every group is as narrow as it can be."""
    least = count_macs(workloads, [int(group.choices[0]) for group in groups])
    return least / count_macs(workloads, [group.size for group in groups])


def count_macs(workloads: Sequence[Workload], widths: Sequence[int]) -> int:
    """Multiply-adds of a network with these widths."""
    return sum(workload.count(widths) for workload in workloads)


def _settle(groups: Sequence[Width], workloads: Sequence[Workload], widths: Sequence[int], price: float) -> list[int]:
    """From these widths on, each group in turn takes what is cheapest for it, until nothing moves."""
    widths = list(widths)
    own = [[workload for workload in workloads if workload.depends_on(number)] for number in range(len(groups))]
    for _ in range(_MOST_ROUNDS):
        before = list(widths)
        for number, group in enumerate(groups):
            tried = ([*widths[:number], width, *widths[number + 1 :]] for width in (group.size, 1))
            wide, narrow = (count_macs(own[number], each) for each in tried)
            of_channel = (wide - narrow) / max(group.size - 1, 1)
            costs = group.losses[group.size - group.choices] + price * of_channel * group.choices
            widths[number] = int(group.choices[np.argmin(costs)])
        if widths == before:
            break
    return widths


def _spend_rest(groups: Sequence[Width], workloads: Sequence[Workload], widths: list[int], budget: float) -> list[int]:
    """Widens, step by step, the group that gains most for its multiply-adds, as long as one fits."""
    while True:
        offers = []
        spent = count_macs(workloads, widths)
        for number, group in enumerate(groups):
            wider = group.choices[group.choices > widths[number]]
            if not wider.size:
                continue
            tried = [*widths[:number], int(wider[0]), *widths[number + 1 :]]
            more = count_macs(workloads, tried) - spent
            gain = group.losses[group.size - widths[number]] - group.losses[group.size - wider[0]]
            if spent + more <= budget and gain > 0:
                offers.append((gain / max(more, 1), tried))
        if not offers:
            return widths
        widths = max(offers, key=lambda offer: offer[0])[1]
