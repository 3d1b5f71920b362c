"""Channels removed: which groups lose how many, and which ones, for a share of the network's multiply-adds.

What a channel's removal costs is known in nats, of every group (`narrowing.prices`): so widths can be chosen by it
(`sparsity.widths`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import keras
import numpy as np

from reflow_tf.data.portions import take_first
from reflow_tf.errors import InputError
from reflow_tf.models.channels.narrowing import narrow
from reflow_tf.models.observation import check_batch
from reflow_tf.narrowing.candidates import Candidate, find_sizes, find_workloads, require_candidates
from reflow_tf.narrowing.prices import JUDGED_EVERY, Prices
from reflow_tf.repair.contract import Progress
from reflow_tf.sparsity.channels import ELIMINATION, Elimination
from reflow_tf.sparsity.layers import Skipped
from reflow_tf.sparsity.plan import PlannedGroup
from reflow_tf.sparsity.widths import Width, Workload, choose_widths, count_macs, find_least_share
from reflow_tf.task import Task

Measure = Literal["macs", "weights", "values"]
"""What channels are counted in: multiply-adds; weights, which take flash; numbers between layers, which take RAM."""

Complain = Callable[[keras.Model], str | None]
"""What must be otherwise for a model to fit, with numbers: 'X must be at least N. Received: M'; None where it fits."""

NUM_TRIES = 7
MOST_WIDENED = 12
"""Groups that are widened again where they were narrowed in vain."""
MOST_GATHERED = 512
"""Calibration inputs that say what readers can make up for."""


@dataclasses.dataclass(frozen=True)
class NarrowedGroup:
    """Channels that stand and fall together.

    Attributes:
        writers: paths of the kernels that give them.
        readers: of those that take them.
        size: how many there are.
        width: how many stay.
        loss: what that was estimated to cost the prediction, in nats, before anything is refitted to images.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    size: int
    width: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """What is removed.

    Attributes:
        kept: as `models.channels.narrowing` takes it.
        groups: those that could lose channels.
        held: what could not, by the first kernel that gives it, and why.
        macs_before: multiply-adds of the network's kernels.
        macs_after: with the channels that stay.
    """

    kept: Mapping[int, np.ndarray]
    groups: tuple[NarrowedGroup, ...]
    held: tuple[Skipped, ...]
    macs_before: int
    macs_after: int

    def plan(self, candidates: Sequence[Candidate]) -> tuple[PlannedGroup, ...]:
        """The groups that lose channels, with which of them stay; of the candidates that were chosen from."""
        return tuple(
            PlannedGroup(group.writers, group.readers, group.size, tuple(self.kept[candidate.position].tolist()))
            for candidate, group in zip(candidates, self.groups, strict=True)
            if candidate.position in self.kept
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Of each group."""
        return tuple(group.width for group in self.groups)

    @property
    def loss(self) -> float:
        """What was estimated to be lost by all groups together, in nats."""
        return sum(group.loss for group in self.groups)


def weigh_channels(
    model: keras.Model,
    batches: Iterable[np.ndarray],
    progress: Progress,
    task: Task = Task.CLASSIFICATION,
    criterion: str = ELIMINATION,
    prunable: str = "target",
) -> "Weighed":
    """What each group's channels cost to remove, one after the other; the model is left as it was.

    Args:
        model: a functional or sequential model.
        batches: float arrays (n, ...), of which the first MOST_GATHERED inputs are looked at.
        progress: wraps what is done one by one.
        task: what the model's outputs are taken for.
        criterion: a key of `CHANNEL_CRITERIA`: in which order channels leave; the losses are measured alike.
        prunable: as in `find_candidates`.

    Raises:
        InputError: no group may lose channels; the model is subclassed; bad inputs.
    """
    candidates, held = require_candidates(model, prunable)
    images = take_first(batches, MOST_GATHERED)
    if len(images) < JUDGED_EVERY:
        raise InputError(f"--max_macs needs at least {JUDGED_EVERY} calibration inputs. Received: {len(images)}")
    check_batch(model, images)
    workloads = find_workloads(model, candidates)
    counted: dict[Measure, Sequence[Workload]] = {
        "macs": workloads,
        "weights": [dataclasses.replace(workload, positions=1) for workload in workloads],
        "values": find_sizes(model, candidates),
    }
    prices = Prices(model, candidates, images, progress, task, criterion)
    eliminations = [prices.eliminate(candidate) for candidate in progress(candidates, "Weighing channels")]
    return Weighed(candidates, held, eliminations, counted)


@dataclasses.dataclass(frozen=True)
class Weighed:
    """All that is known of the groups before a width is chosen.

    Attributes:
        candidates: the groups.
        held: what is in none of them, and why.
        eliminations: of each group, in which order its channels leave, and what that costs.
        counted: what there is of each, by the groups' widths.
    """

    candidates: Sequence[Candidate]
    held: tuple[Skipped, ...]
    eliminations: Sequence[Elimination]
    counted: Mapping[Measure, Sequence[Workload]]

    def list_widths(self, multiple: int) -> list[Width]:
        """Each group as `sparsity.widths` takes it."""
        each = zip(self.candidates, self.eliminations, strict=True)
        return [Width(candidate.group.size, elimination.losses, multiple) for candidate, elimination in each]

    def narrow(self, share: float, multiple: int = 8, measure: Measure = "macs") -> Narrowing:
        """The best that such a share of the multiply-adds allows, or of something else.

        Args:
            share: in (0, 1].
            multiple: of which number every width is, unless it stays what it is.
            measure: what it is a share of.

        Raises:
            InputError: the share cannot be met.
        """
        return self.keep(choose_widths(self.list_widths(multiple), self.counted[measure], share))

    def keep(self, widths: Sequence[int]) -> Narrowing:
        """So many channels of each group."""
        kept, groups = {}, []
        for candidate, elimination, width in zip(self.candidates, self.eliminations, widths, strict=True):
            gone = candidate.group.size - width
            if gone:
                kept[candidate.position] = np.sort(elimination.order[gone:])
            loss = float(elimination.losses[gone])
            paths = candidate.writer_paths, candidate.reader_paths
            groups.append(NarrowedGroup(*paths, candidate.group.size, width, loss))
        full = [candidate.group.size for candidate in self.candidates]
        macs = count_macs(self.counted["macs"], full), count_macs(self.counted["macs"], widths)
        return Narrowing(kept, tuple(groups), self.held, *macs)


def find_widest(
    model: keras.Model, weighed: Weighed, complain: Complain, progress: Progress, multiple: int = 8
) -> Narrowing:
    """The network of least loss of which nobody complains, whichever of its measures that is a share of.

    For each, the share is found to within 2 ** -NUM_TRIES; those that would lose more than what is found already are
    not built. What a budget is of is seldom a sum over the network: of RAM what counts is the step that needs most. So
    groups that were narrowed in vain are widened again, as far as nobody complains.

    Args:
        model: that was weighed.
        weighed: its channels.
        complain: what must be otherwise for a model to fit, or None where it does.
        progress: wraps the tries.
        multiple: as in `Weighed.narrow`.

    Raises:
        InputError: somebody complains of any.
    """
    if complain(model) is None:
        return weighed.narrow(1.0, multiple)
    widths = weighed.list_widths(multiple)
    best = weighed.narrow(find_least_share(widths, weighed.counted["macs"]), multiple)
    if (complaint := complain(narrow(model, best.kept))) is not None:
        raise InputError(f"With every group of channels as narrow as it can be, {complaint}")
    complained: set[tuple[int, ...]] = set()  # widths
    for measure in progress(list(weighed.counted), "Looking for the width that fits"):
        low, high = find_least_share(widths, weighed.counted[measure]), 1.0
        for _ in range(NUM_TRIES):
            middle = (low + high) / 2
            found = weighed.narrow(middle, multiple, measure)
            if (found.loss, -found.macs_after) >= (best.loss, -best.macs_after):
                low = middle
            elif found.widths not in complained and complain(narrow(model, found.kept)) is None:
                low, best = middle, found
            else:
                complained.add(found.widths)
                high = middle
    return _widen(model, weighed, best, complain, progress, multiple)


def _widen(
    model: keras.Model, weighed: Weighed, found: Narrowing, complain: Complain, progress: Progress, multiple: int
) -> Narrowing:
    """Every group in turn, the one that costs most first, as wide as it may be while the others are what they are."""
    numbers = sorted(range(len(found.groups)), key=lambda number: -found.groups[number].loss)
    choices = [width.choices for width in weighed.list_widths(multiple)]
    for number in progress(numbers[:MOST_WIDENED], "Giving back what fits"):
        wider = choices[number][choices[number] > found.widths[number]]
        fitting, most = 0, len(wider)
        tried = most  # as it was; then by halves
        while fitting < most:
            offer = weighed.keep([*found.widths[:number], int(wider[tried - 1]), *found.widths[number + 1 :]])
            if complain(narrow(model, offer.kept)) is None:
                fitting, found = tried, offer
            else:
                most = tried - 1
            tried = (fitting + most + 1) // 2
    return found
