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


class Sums(Protocol):
    """What is measured on some inputs, and can be put together with what was measured on others."""

    def __add__(self, other: Self) -> Self: ...


Measure = Callable[[int, Ledger[Pair], tf.Tensor | None], Sums]
"""Position of a step, what is known before it of a chunk of inputs, and their worth -> what is measured there."""
Weigh = Callable[[np.ndarray, int, int], Mapping[int, tf.Tensor]]
"""Inputs, (n, ...), the number of the first, and a step's position -> by position, the worth of what that step and
those behind it make of them, (n, ...)."""
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


_Kept = Callable[[], Mapping[str, tf.Tensor]]
"""Tensors by name, in memory or in a file."""


@dataclasses.dataclass
class _Shard:
    """Some inputs, and how far they have been led.

    Attributes:
        position: of the step before which they were left.
        tensors: what lies there; None: nothing, they are led from their images.
        worth: of what steps make of them; None: nobody has asked yet.
        measured: the step for which they were led last.
    """

    position: int = 0
    tensors: _Kept | None = None
    worth: _Kept | None = None
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
        shard: how many inputs one is.
    """

    def __init__(
        self,
        networks: Networks,
        measure: Measure,
        batches: Iterable[np.ndarray],
        vary: Vary,
        weigh: Weigh,
        whole_from: int,
        shard: int,
    ):
        self._networks, self._measure, self._batches = networks, measure, batches
        self._vary, self._weigh = vary, weigh
        self._whole_from, self._size = whole_from, shard
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
        reading = read_shards(self._batches, self._size, unread)
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
        return shard is None or shard.tensors is None

    def _drop_what_others_lead(self, position: int) -> None:
        """What was not led when the last step was measured is somebody else's now."""
        if position == self._measured:
            return
        for key, shard in list(self._shards.items()):
            if shard.measured != self._measured:
                del self._shards[key]
                _remove(shard.tensors, shard.worth)
        self._measured = position

    def _lead(self, leg: Leg, shard: _Shard, key: tuple[int, int | None], images: np.ndarray | None) -> Any:
        """One shard up to the leg's position; from its stop on it is held there."""
        number, view = key
        shard.measured = leg.position
        if shard.tensors is not None:
            return self._measure_shard(leg, shard, _read_pairs(shard.tensors()))
        assert images is not None
        inputs = images if view is None else self._vary(images, number, view)
        if shard.worth is None:
            worth = self._weigh(inputs, number * self._size, leg.position)
            shard.worth = self._store(leg, {str(step): each for step, each in worth.items()})
        tensor = tf.convert_to_tensor(inputs)
        return self._measure_shard(leg, shard, {self._networks.steps.input: Pair(tensor, tensor)})

    def _measure_shard(self, leg: Leg, shard: _Shard, tensors: Mapping[int, Pair]) -> Any:
        """From where it is up to the leg's position; at the leg's stop it is left, unless it has been led there."""
        wanted = leg.stop if leg.stop > shard.position else None
        worth = shard.worth().get(str(leg.position)) if shard.worth is not None else None
        begin, sums = shard.position, None
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
            before, shard.position = shard.tensors, leg.stop
            shard.tensors = self._store(leg, _name_pairs(_join(kept)))
            _remove(before)
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

    def _store(self, leg: Leg, tensors: Mapping[str, tf.Tensor]) -> _Kept:
        return (lambda: tensors) if leg.is_kept_in_memory else _OnDisk.write(tensors, lambda: self._directory)

    @functools.cached_property
    def _directory(self) -> pathlib.Path:
        return pathlib.Path(self._folder.enter_context(tempfile.TemporaryDirectory(prefix="reflow_tf-")))


def _views(leg: Leg) -> tuple[int | None, ...]:
    """The shard itself, and its views."""
    return (None, *range(leg.num_views))


def _name_pairs(tensors: Mapping[int, Pair]) -> dict[str, tf.Tensor]:
    named = {f"{tensor} dense": pair.dense for tensor, pair in tensors.items()}
    return named | {f"{tensor} pruned": pair.pruned for tensor, pair in tensors.items() if not pair.is_same}


def _read_pairs(named: Mapping[str, tf.Tensor]) -> dict[int, Pair]:
    dense = {int(name.split()[0]): value for name, value in named.items() if name.endswith("dense")}
    return {tensor: Pair(value, named.get(f"{tensor} pruned", value)) for tensor, value in dense.items()}


def _remove(*kept: _Kept | None) -> None:
    for each in kept:
        if isinstance(each, _OnDisk):
            each.remove()


@dataclasses.dataclass(frozen=True)
class _OnDisk:
    """Tensors in a file; calling it reads them."""

    path: pathlib.Path

    @classmethod
    def write(cls, tensors: Mapping[str, tf.Tensor], find_directory: Callable[[], pathlib.Path]) -> Self:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        size, num_inputs = sum(array.nbytes for array in arrays.values()), len(next(iter(arrays.values())))
        with (
            on_disk("What lies between layers", f"{size:,} bytes for {num_inputs} inputs"),
            tempfile.NamedTemporaryFile(dir=find_directory(), suffix=".npz", delete=False) as file,
        ):
            np.savez(file, **arrays)
        return cls(pathlib.Path(file.name))

    def __call__(self) -> Mapping[str, tf.Tensor]:
        with np.load(self.path) as arrays:
            return {name: tf.convert_to_tensor(arrays[name]) for name in arrays.files}

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
