"""Any number of inputs led through a network, of which memory holds a few numbers each, or a few of them at a time.

Inputs come in *shards* of SHARD. A *pass* leads every shard from where it was left to a step, where something is
summed up; sums of shards are merged in their order, so that what comes of it depends neither on batches nor on what
is held. A shard is left at the last place where what lies between the steps fits into memory for all of them, and
from there the next pass goes on; what does not even fit at the narrowest place is kept on disk.
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

from reflow_tf.data.batches import cut
from reflow_tf.data.overflow import on_disk
from reflow_tf.errors import InputError
from reflow_tf.models.execution import CHUNK
from reflow_tf.models.ledger import Held, Ledger
from reflow_tf.models.sidebyside import Networks, Pair

SHARD = 64
"""Inputs of a shard."""
_ITEM_BYTES = 4  # of a float32


class Sums(Protocol):
    """What is measured on some inputs, and can be put together with what was measured on others."""

    def __add__(self, other: Self) -> Self: ...


Measure = Callable[[int, Ledger[Pair]], Sums]
"""Position of a step, and what is known before it of a chunk of inputs -> what is measured there."""
Vary = Callable[[np.ndarray, int], np.ndarray]
"""A shard of inputs, (n, ...), and its number -> as many other ones."""


@dataclasses.dataclass
class _Shard:
    """Some inputs, and how far they have been led: `tensors` is what lies before the step at `position`."""

    number: int
    vary: Vary | None
    position: int = 0
    tensors: "Callable[[], dict[int, Pair]] | None" = None


class Stream:
    """Shards of inputs on their way through a dense and a pruned network.

    Weights of steps that shards have passed may not be changed any more.

    Args:
        networks: both.
        measure: what is summed up.
        batches: float arrays (n, ...), re-iterable, the same each time.
        held: of the model, as `measure_held` finds it.
        whole_from: the step from which on a shard is led as a whole, since maps are small there; CHUNK inputs at a
            time before it.
        memory_budget: bytes; half of it may hold what lies between steps from one pass to the next.

    Raises:
        InputError: no room for one shard.
    """

    def __init__(
        self,
        networks: Networks,
        measure: Measure,
        batches: Iterable[np.ndarray],
        held: Held,
        whole_from: int,
        memory_budget: int,
    ):
        self._networks, self._measure, self._batches, self._whole_from = networks, measure, batches, whole_from
        self._held, self._most_bytes = held, memory_budget / 2
        needed = _ITEM_BYTES * (SHARD * held.between[0] + 2 * CHUNK * max(held.during))
        if memory_budget < needed:
            raise InputError(
                f"--memory_budget must be at least {needed:,} for this network, which is what {SHARD} inputs and "
                f"what its widest layer makes of {CHUNK} of them take. Received: {memory_budget:,}"
            )
        self._shards: list[_Shard] = []
        self._folder = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shards.clear()
        self._folder.close()

    def add(self, numbers: Iterable[int], vary: Vary | None = None) -> None:
        """More shards, which have not been led anywhere yet.

        Args:
            numbers: of the batches, cut into shards: 0 is the first.
            vary: what is taken in place of them; None: they are taken as they are.
        """
        self._shards += [_Shard(number, vary) for number in numbers]

    def gather(self, position: int) -> tuple[Any, Any]:
        """Leads all shards up to a step, the step itself left out, and sums up what is measured there.

        Returns:
            The sums over shards that are taken as they are, and over those that are varied; None where there are none.
        """
        stop = self._choose_stop(position)
        sums: dict[int, Any] = {}
        for shard, tensors in self._open():
            sums[id(shard)] = self._lead(shard, tensors, position, stop)
        in_order = sorted(self._shards, key=lambda shard: shard.number)
        own = [sums[id(shard)] for shard in in_order if shard.vary is None]
        varied = [sums[id(shard)] for shard in in_order if shard.vary is not None]
        own_sums, varied_sums = (functools.reduce(operator.add, part) if part else None for part in (own, varied))
        return own_sums, varied_sums

    def _open(self) -> Iterator[tuple[_Shard, dict[int, Pair]]]:
        """Every shard with what is known of it; those that were led nowhere are read from the batches."""
        for shard in self._shards:
            if shard.tensors is not None:
                yield shard, shard.tensors()
        waiting: dict[int, list[_Shard]] = {}
        for shard in self._shards:
            if shard.tensors is None:
                waiting.setdefault(shard.number, []).append(shard)
        last = max(waiting, default=-1)
        for number, images in enumerate(cut(self._batches, SHARD)):
            if number > last:
                break
            for shard in waiting.pop(number, ()):
                inputs = images if shard.vary is None else shard.vary(images, number)
                tensor = tf.convert_to_tensor(inputs)
                yield shard, {self._networks.steps.input: Pair(tensor, tensor)}
        if waiting:
            raise InputError("Calibration batches must be the same each time that they are read. Received: fewer")

    def _lead(self, shard: _Shard, tensors: dict[int, Pair], position: int, stop: int) -> Any:
        """One shard up to `position`; at `stop` it is left, unless it has been led there already."""
        wanted = stop if stop > shard.position else None
        begin, sums = shard.position, None
        kept: list[dict[int, Pair]] = []
        if begin < self._whole_from <= position:
            chunks = self._open_chunks(begin, tensors)
            tensors = _join([self._advance(ledger, begin, self._whole_from, wanted, kept) for ledger in chunks])
            begin = self._whole_from
        for ledger in self._open_chunks(begin, tensors):
            known = self._advance(ledger, begin, position, wanted, kept)
            if position == wanted:
                kept.append(dict(known))
            found = self._measure(position, ledger)
            sums = found if sums is None else sums + found
        if kept:
            self._keep(shard, _join(kept), stop)
        return sums

    def _open_chunks(self, position: int, tensors: dict[int, Pair]) -> Iterator[Ledger[Pair]]:
        """What is known before a step, so many inputs at a time as are led on from there together."""
        count = len(next(iter(tensors.values())).pruned)
        size = count if position >= self._whole_from else CHUNK
        for start in range(0, count, size):
            part = {tensor: _slice(pair, slice(start, start + size)) for tensor, pair in tensors.items()}
            yield Ledger(self._networks.steps, part, position)

    def _advance(
        self, ledger: Ledger[Pair], begin: int, end: int, wanted: int | None, kept: list[dict[int, Pair]]
    ) -> Mapping[int, Pair]:
        """Carries out the steps from `begin` to `end`; what is known at `wanted` on the way there is put down."""
        for index in range(begin, end):
            if index == wanted:
                kept.append(dict(ledger.values))
            step = self._networks.steps.steps[index]
            ledger.enter(step.inputs, step.output, self._networks.compute(index, ledger))
        return ledger.values

    def _choose_stop(self, position: int) -> int:
        """Where all shards are left this time: at the last place that fits, else at the narrowest."""
        furthest = max((shard.position for shard in self._shards), default=0)
        places = range(furthest, position + 1)
        fitting = [place for place in places if self._count_bytes(place) <= self._most_bytes]
        return fitting[-1] if fitting else min(places, key=lambda place: (self._held.between[place], -place))

    def _count_bytes(self, position: int) -> int:
        """What is held of all shards before this step."""
        differ = any(self._networks.differ_at(index) for index in range(position))
        return (2 if differ else 1) * _ITEM_BYTES * self._held.between[position] * SHARD * len(self._shards)

    def _keep(self, shard: _Shard, tensors: dict[int, Pair], position: int) -> None:
        before = shard.tensors
        if self._count_bytes(position) <= self._most_bytes:
            shard.tensors = lambda: tensors
        else:
            shard.tensors = _OnDisk.write(tensors, lambda: self._directory)
        shard.position = position
        if isinstance(before, _OnDisk):
            before.remove()

    @functools.cached_property
    def _directory(self) -> pathlib.Path:
        return pathlib.Path(self._folder.enter_context(tempfile.TemporaryDirectory(prefix="reflow_tf-")))


@dataclasses.dataclass(frozen=True)
class _OnDisk:
    """Tensors in a file; calling it reads them."""

    path: pathlib.Path

    @classmethod
    def write(cls, tensors: dict[int, Pair], find_directory: Callable[[], pathlib.Path]) -> Self:
        arrays = {f"{tensor} dense": pair.dense.numpy() for tensor, pair in tensors.items()}
        arrays |= {f"{tensor} pruned": pair.pruned.numpy() for tensor, pair in tensors.items() if not pair.is_same}
        size = sum(array.nbytes for array in arrays.values())
        with (
            on_disk("What lies between layers", f"{size:,} bytes for {SHARD} inputs"),
            tempfile.NamedTemporaryFile(dir=find_directory(), suffix=".npz", delete=False) as file,
        ):
            np.savez(file, **arrays)
        return cls(pathlib.Path(file.name))

    def __call__(self) -> dict[int, Pair]:
        with np.load(self.path) as arrays:
            tensors = {name: tf.convert_to_tensor(arrays[name]) for name in arrays.files}
        dense = {int(name.split()[0]): tensor for name, tensor in tensors.items() if name.endswith("dense")}
        return {tensor: Pair(value, tensors.get(f"{tensor} pruned", value)) for tensor, value in dense.items()}

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
