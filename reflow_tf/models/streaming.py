"""Shards of inputs on their way through two networks: each led to a step, measured there, and left on the way.

What is measured depends neither on where a shard was left nor on which others are led by the same process: one that
was never led before is led from its images.
"""

import contextlib
import dataclasses
import functools
import operator
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import tensorflow as tf

from reflow_tf.crew import State
from reflow_tf.data.overflow import on_disk
from reflow_tf.data.portions import read_shards
from reflow_tf.models.execution import CHUNK
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.sidebyside import Networks, Pair

SHARD = 64
"""Inputs of a shard."""


class Sums(Protocol):
    """What is measured on some inputs, and can be put together with what was measured on others."""

    def __add__(self, other: Self) -> Self: ...


Measure = Callable[[int, Ledger[Pair], tf.Tensor | None], Sums]
"""Position of a step, what is known before it of a chunk of inputs, and their worth -> what is measured there."""
Weigh = Callable[[np.ndarray, int], Mapping[int, tf.Tensor]]
"""Inputs, (n, ...), and the number of the first -> by the position of a step, the worth of what it gives, (n, ...)."""
Vary = Callable[[np.ndarray, int, int], np.ndarray]
"""A shard of inputs, (n, ...), its number, and that of a view -> as many other ones."""
Values = Sequence[tuple[int, np.ndarray]]
"""Positions in the model's variables, and what each of them is from now on."""


@dataclasses.dataclass(frozen=True)
class Leg:
    """Some shards to be led, and how far.

    Attributes:
        numbers: of the shards, increasing.
        num_views: of each, which are led beside it.
        position: of the step that is measured.
        stop: where they are left, unless they have been led there already.
        is_kept_in_memory: else on disk.
    """

    numbers: tuple[int, ...]
    num_views: int
    position: int
    stop: int
    is_kept_in_memory: bool


@dataclasses.dataclass(frozen=True)
class _Known:
    """Of some inputs, before a step: the tensors that steps from there on take, and the worth of what they give."""

    tensors: Mapping[int, Pair]
    worth: Mapping[int, tf.Tensor]


@dataclasses.dataclass
class _Shard:
    """Some inputs, and how far they have been led: `known` before the step at `position`.

    Attributes:
        measured: the step for which it was led last.
    """

    position: int = 0
    known: "Callable[[], _Known] | None" = None
    measured: int = -1


class Stream(State):
    """Shards on their way, and both networks; for each `Leg`, the sums over its shards and those over their views.

    Weights of steps that shards have passed may not be changed any more.

    Args:
        networks: both.
        measure: what is summed up.
        batches: float arrays (n, ...), re-iterable, the same each time.
        vary: how views are made.
        weigh: says what inputs are worth.
        whole_from: the step from which on a shard is led as a whole, since maps are small there; CHUNK inputs at a
            time before it.
    """

    def __init__(
        self,
        networks: Networks,
        measure: Measure,
        batches: Iterable[np.ndarray],
        vary: Vary,
        weigh: Weigh,
        whole_from: int,
    ):
        self._networks, self._measure, self._batches = networks, measure, batches
        self._vary, self._weigh = vary, weigh
        self._whole_from = whole_from
        self._shards: dict[tuple[int, int | None], _Shard] = {}  # by number and view
        self._measured = -1
        self._folder = contextlib.ExitStack()

    def close(self) -> None:
        self._shards.clear()
        self._folder.close()

    def __call__(self, legs: Iterable[Leg]) -> Iterator[tuple[Any, Any]]:
        """Leads all shards up to the step, the step itself left out, and sums up what is measured there.

        Yields:
            The sums over shards that are taken as they are, and over views; None without any.
        """
        legs = list(legs)
        for leg in legs:
            self._drop_what_others_lead(leg.position)
        unread = [n for leg in legs for n in leg.numbers if any(self._is_new(n, view) for view in _views(leg))]
        reading = read_shards(self._batches, SHARD, unread)
        for leg in legs:
            sums: tuple[list[Any], list[Any]] = [], []  # of shards as they are, of views
            for number in leg.numbers:
                images = next(reading) if unread and number == unread[0] else None
                del unread[: images is not None]
                for view in _views(leg):
                    shard = self._shards.setdefault((number, view), _Shard())
                    sums[view is not None].append(self._lead(leg, shard, (number, view), images))
            own, varied = (functools.reduce(operator.add, part) if part else None for part in sums)
            yield own, varied

    def _is_new(self, number: int, view: int | None) -> bool:
        shard = self._shards.get((number, view))
        return shard is None or shard.known is None

    def _drop_what_others_lead(self, position: int) -> None:
        """What was not led when the last step was measured is somebody else's now."""
        if position == self._measured:
            return
        for key, shard in list(self._shards.items()):
            if shard.measured != self._measured:
                _remove(self._shards.pop(key).known)
        self._measured = position

    def _lead(self, leg: Leg, shard: _Shard, key: tuple[int, int | None], images: np.ndarray | None) -> Any:
        """One shard up to the leg's position; from its stop on it is held there."""
        number, view = key
        shard.measured = leg.position
        if shard.known is not None:
            return self._measure_shard(leg, shard, shard.known())
        assert images is not None
        inputs = images if view is None else self._vary(images, number, view)
        tensor = tf.convert_to_tensor(inputs)
        known = _Known({self._networks.steps.input: Pair(tensor, tensor)}, self._weigh(inputs, number * SHARD))
        return self._measure_shard(leg, shard, known)

    def _measure_shard(self, leg: Leg, shard: _Shard, known: _Known) -> Any:
        """From where it is up to the leg's position; at the leg's stop it is left, unless it has been led there."""
        wanted = leg.stop if leg.stop > shard.position else None
        begin, tensors, worth, sums = shard.position, known.tensors, known.worth.get(leg.position), None
        kept: list[Mapping[int, Pair]] = []
        if begin < self._whole_from <= leg.position:
            chunks = self._open_chunks(begin, tensors)
            tensors = _join([self._advance(ledger, begin, self._whole_from, wanted, kept) for _, ledger in chunks])
            begin = self._whole_from
        for part, ledger in self._open_chunks(begin, tensors):
            reached = self._advance(ledger, begin, leg.position, wanted, kept)
            if leg.position == wanted:
                kept.append(dict(reached))
            found = self._measure(leg.position, ledger, None if worth is None else worth[part])
            sums = found if sums is None else sums + found
        if kept:
            left = {step: each for step, each in known.worth.items() if step >= leg.stop}
            self._keep(leg, shard, _Known(_join(kept), left))
        return sums

    def _open_chunks(self, position: int, tensors: Mapping[int, Pair]) -> Iterator[tuple[slice, Ledger[Pair]]]:
        """What is known before a step, so many inputs at a time as are led on from there together, and which."""
        count = len(next(iter(tensors.values())).pruned)
        size = count if position >= self._whole_from else CHUNK
        for start in range(0, count, size):
            part = slice(start, start + size)
            sliced = {tensor: _slice(pair, part) for tensor, pair in tensors.items()}
            yield part, Ledger(self._networks.steps, sliced, position)

    def _advance(
        self, ledger: Ledger[Pair], begin: int, end: int, wanted: int | None, kept: list[Mapping[int, Pair]]
    ) -> Mapping[int, Pair]:
        """Carries out the steps from `begin` to `end`; what is known at `wanted` on the way there is put down."""
        for index in range(begin, end):
            if index == wanted:
                kept.append(dict(ledger.values))
            step = self._networks.steps.steps[index]
            ledger.enter(step, self._networks.compute(index, ledger))
        return ledger.values

    def _keep(self, leg: Leg, shard: _Shard, known: _Known) -> None:
        before = shard.known
        shard.known = (lambda: known) if leg.is_kept_in_memory else _OnDisk.write(known, lambda: self._directory)
        shard.position = leg.stop
        _remove(before)

    @functools.cached_property
    def _directory(self) -> pathlib.Path:
        return pathlib.Path(self._folder.enter_context(tempfile.TemporaryDirectory(prefix="reflow_tf-")))


def _views(leg: Leg) -> tuple[int | None, ...]:
    """The shard itself, and its views."""
    return (None, *range(leg.num_views))


def _remove(known: object) -> None:
    if isinstance(known, _OnDisk):
        known.remove()


@dataclasses.dataclass(frozen=True)
class _OnDisk:
    """What is known of some inputs, in a file; calling it reads it."""

    path: pathlib.Path

    @classmethod
    def write(cls, known: _Known, find_directory: Callable[[], pathlib.Path]) -> Self:
        pairs = known.tensors.items()
        arrays = {f"{tensor} dense": pair.dense.numpy() for tensor, pair in pairs}
        arrays |= {f"{tensor} pruned": pair.pruned.numpy() for tensor, pair in pairs if not pair.is_same}
        arrays |= {f"{step} worth": each.numpy() for step, each in known.worth.items()}
        size = sum(array.nbytes for array in arrays.values())
        with (
            on_disk("What lies between layers", f"{size:,} bytes for {SHARD} inputs"),
            tempfile.NamedTemporaryFile(dir=find_directory(), suffix=".npz", delete=False) as file,
        ):
            np.savez(file, **arrays)
        return cls(pathlib.Path(file.name))

    def __call__(self) -> _Known:
        read: dict[str, dict[int, tf.Tensor]] = {"dense": {}, "pruned": {}, "worth": {}}
        with np.load(self.path) as arrays:
            for name in arrays.files:
                number, kind = name.split()
                read[kind][int(number)] = tf.convert_to_tensor(arrays[name])
        tensors = {tensor: Pair(value, read["pruned"].get(tensor, value)) for tensor, value in read["dense"].items()}
        return _Known(tensors, read["worth"])

    def remove(self) -> None:
        self.path.unlink()


def _slice(pair: Pair, part: slice) -> Pair:
    dense = pair.dense[part]
    return Pair(dense, dense if pair.is_same else pair.pruned[part])


def _join(parts: Sequence[Mapping[int, Pair]]) -> dict[int, Pair]:
    return {tensor: _concatenate([part[tensor] for part in parts]) for tensor in parts[0]}


def _concatenate(pairs: Sequence[Pair]) -> Pair:
    if len(pairs) == 1:
        return pairs[0]
    dense = tf.concat([pair.dense for pair in pairs], 0)
    return Pair(dense, dense if pairs[0].is_same else tf.concat([pair.pruned for pair in pairs], 0))
