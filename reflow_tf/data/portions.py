"""Inputs of batches in other portions than they come in: shards of one size, the first few, all as one array."""

import contextlib
import dataclasses
import functools
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from reflow_tf.data.overflow import on_disk
from reflow_tf.errors import InputError


class Counted:
    """Batches whose `len` is the number of inputs in them."""

    def __len__(self) -> int:
        raise NotImplementedError


@runtime_checkable
class Selectable(Protocol):
    """Inputs of which any can be read without the others."""

    @property
    def parts(self) -> tuple[range, ...]:
        """Which of them each batch has, by their positions in the order of iteration."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def select(self, positions: np.ndarray) -> Iterable[np.ndarray]:
        """Those at these positions in the order of iteration, (n,) int."""
        ...


@dataclasses.dataclass(frozen=True)
class Portion:
    """A batch of a set, or which one it is, for whoever reads it there.

    Attributes:
        number: of the batch.
        inputs: float32 (n, ...); None: they are to be read.
    """

    number: int
    inputs: np.ndarray | None = None

    def read(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Its inputs, float32 (n, ...)."""
        if self.inputs is not None:
            return self.inputs
        assert isinstance(batches, Selectable)
        part = batches.parts[self.number]
        (inputs,) = cut(batches.select(np.arange(part.start, part.stop)), len(part))
        return inputs


def read_shards(batches: Iterable[np.ndarray], size: int, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Some of what `cut` gives, and where inputs can be chosen, nothing else is read.

    Args:
        batches: float32 (n, ...).
        size: of `cut`.
        numbers: of its arrays, increasing.

    Raises:
        InputError: there are fewer; or as `cut` does.
    """
    if not numbers:
        return
    if isinstance(batches, Selectable):
        rows = [np.arange(number * size, min((number + 1) * size, len(batches))) for number in numbers]
        yield from cut(batches.select(np.concatenate(rows)), size)
        return
    wanted = list(numbers)
    for number, inputs in enumerate(cut(batches, size)):
        if number == wanted[0]:
            yield inputs
            del wanted[0]
            if not wanted:
                return
    raise InputError("Calibration batches must be the same each time that they are read. Received: fewer")


def take_first(batches: Iterable[np.ndarray], most: int) -> np.ndarray:
    """The first inputs of batches (n, ...), at most so many, as one array; no more batches are read than that takes.

    Raises:
        InputError: inputs of several shapes.
    """
    return next(cut(batches, most), np.empty(0))


def cut(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same inputs, (n, ...), in arrays of exactly `size` but for the last.

    Raises:
        InputError: inputs of several shapes, wherever they are cut.
    """
    waiting: list[np.ndarray] = []
    count = 0
    shape: tuple[int, ...] | None = None
    for batch in batches:
        shape = batch.shape[1:] if shape is None else shape
        if batch.shape[1:] != shape:
            raise InputError(
                "Calibration inputs must all have one shape to be put together. "
                f"Received: {shape} and {batch.shape[1:]}"
            )
        start = 0
        while len(batch) - start:
            taken = batch[start : start + size - count]
            waiting.append(taken)
            start += len(taken)
            count += len(taken)
            if count == size:
                yield np.concatenate(waiting)
                waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)


def count_inputs(batches: Iterable[np.ndarray]) -> int:
    """How many inputs batches (n, ...) hold in all; those that do not know it are read."""
    return len(batches) if isinstance(batches, Counted) else sum(map(len, batches))


@contextlib.contextmanager
def held(batches: Iterable[np.ndarray], most_bytes: float) -> Iterator[np.ndarray]:
    """All inputs of batches (n, ...) as one array, for the time of the block; on disk, in TMPDIR, if there are many.

    Args:
        batches: re-iterable.
        most_bytes: of memory that they may take.

    Raises:
        InputError: inputs of several shapes; fewer of them when they are read again; a disk that is full.
    """
    count = count_inputs(batches)
    with spooled(itertools.islice(cut(batches, 1), count), count, most_bytes) as inputs:
        yield inputs


@contextlib.contextmanager
def spooled(batches: Iterable[np.ndarray], count: int, most_bytes: float) -> Iterator[np.ndarray]:
    """What is passed over once, arrays (n, ...) of `count` rows in all, as one; else as `held`."""
    arrays = iter(batches)
    first = next(arrays, np.empty(0))
    size_bytes = count * first[:1].nbytes
    arrays = itertools.chain([first], arrays)
    if size_bytes <= most_bytes:
        rows = np.concatenate(list(arrays))
        _require_same(count, len(rows))
        yield rows
        return
    writing = functools.partial(on_disk, "Calibration inputs", f"{size_bytes:,} bytes")
    with contextlib.ExitStack() as stack:
        with writing():
            path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="reflow_tf-")), "rows")
        written = 0
        for some in arrays:
            # NumPy's tofile() says nothing of a disk that is full when its file is closed.
            with writing(), open(path, "ab") as file:
                file.write(np.ascontiguousarray(some, first.dtype).data)
            written += len(some)
        _require_same(count, written)
        yield np.memmap(path, first.dtype, "r", shape=(count, *first.shape[1:]))


def _require_same(before: int, now: int) -> None:
    if now < before:
        raise InputError(
            f"Calibration batches must be the same each time that they are read. Received: {before} inputs, then {now}"
        )
