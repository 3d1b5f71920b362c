"""Batches that a function of the user's own yields: `python:MODULE:FUNCTION`.

The function is called without arguments and gives something to pass over: a generator, a `tf.data.Dataset`, a list. A
batch is x, or (x, y) as for `keras.Model.fit`; for a network with several inputs x is a dict of their names, or a list
in their order. What x and y are is what they are in an `.npz`, see `arrays`.

A random split needs any input at any time, and a generator is passed over once. So batches are copied to temporary
files, which the operating system removes with the process; nothing of them is held in memory.
"""

import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from reflow_tf.data.arrays import ArraySource, is_read, name_inputs
from reflow_tf.data.batches import is_infinite
from reflow_tf.data.sources import SourceRequest
from reflow_tf.errors import InputError
from reflow_tf.user_code import blamed, find_function

PREFIX = "python:"
MOST_INPUTS = 10_000_000
"""Inputs after which a function is taken to go on for ever."""


class FunctionSource(ArraySource):
    """What one function yields."""

    @classmethod
    def accepts(cls, text: str) -> bool:
        return text.startswith(PREFIX)

    @classmethod
    def open(cls, request: SourceRequest) -> Self:
        """Calls the function and copies its batches.

        Raises:
            InputError: there is no such function; it fails, yields nothing, no batches, or batches that differ in their
                arrays, types or shapes, or does not end; they do not fit the network, see `ArraySource.of`; a full
                disk.
        """
        function = find_function(request.text.removeprefix(PREFIX), "data of python:MODULE:FUNCTION")
        spools: dict[str, _Spool] = {}
        with blamed("data must be a function that yields batches, x or (x, y)", request.text):
            batches = function()
            if not isinstance(batches, Iterable):
                raise InputError(f"it must give something to pass over. Received: {type(batches).__name__}")
            if is_infinite(batches):
                raise InputError("it must end: leave repeat() out. Received: an infinite tf.data.Dataset")
            for batch in batches:
                _copy(_name(batch), request, spools)
        if not spools:
            raise InputError(f"data must yield at least one batch. Received: none from {request.text}")
        return cls.of({name: spool.read() for name, spool in spools.items()}, request, request.text)


def _name(batch: Any) -> dict[str, Any]:
    """The arrays of a batch by the names that they have in an `.npz`; a tf.data.Dataset makes tuples of lists."""
    x, y = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
    if x is batch and isinstance(x, tuple):
        raise InputError(
            f"a batch must be x or (x, y), x a list, a dict or, beside y, a tuple for several inputs. "
            f"Received: a tuple of {len(x)}"
        )
    x = list(x) if isinstance(x, tuple) else x
    return _name_parts("x", x) | ({} if y is None else _name_parts("y", y))


def _name_parts(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"{name}_{part}": array for part, array in value.items()}
    if isinstance(value, list) and np.ndim(value[0] if value else 0):  # and no list of classes
        return {f"{name}_{place}": array for place, array in enumerate(value)}
    return {name: value}


def _copy(named: Mapping[str, Any], request: SourceRequest, spools: "dict[str, _Spool]") -> None:
    arrays = {name: np.asarray(value) for name, value in named.items() if is_read(name, request)}
    if not arrays.keys() & set(inputs := name_inputs(request)):
        raise InputError(f"a batch must have {' or '.join(inputs)}. Received: {', '.join(named)}")
    if spools and arrays.keys() != spools.keys():
        raise InputError(f"all batches must have {', '.join(spools)}. Received: {', '.join(arrays)}")
    sizes = {array.shape[:1] for array in arrays.values()}
    if len(sizes) != 1 or sizes == {()}:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InputError(f"the arrays of a batch must be of as many inputs each. Received: {shapes}")
    for name, array in arrays.items():
        spools.setdefault(name, _Spool(name, array.dtype, array.shape[1:])).append(array)


class _Spool:
    """One array, which grows on disk."""

    def __init__(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]):
        if dtype.kind not in "biuf":
            raise InputError(f"{name} must be of real numbers. Received: {dtype}")
        self._name, self._dtype, self._shape, self._length = name, dtype, shape, 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the array that is read from it

    def append(self, array: np.ndarray) -> None:
        if (array.dtype, array.shape[1:]) != (self._dtype, self._shape):
            raise InputError(
                f"{self._name} must be {self._dtype} of shape (n, {', '.join(map(str, self._shape))}) in all batches, "
                f"as in the first. Received: {array.dtype} of shape {array.shape}"
            )
        self._length += len(array)
        if self._length > MOST_INPUTS:
            raise InputError(f"it must end. Received: more than {MOST_INPUTS:,} inputs")
        try:
            self._file.write(np.ascontiguousarray(array).data)
            self._file.flush()
        except OSError as error:
            place = tempfile.gettempdir()
            raise InputError(
                f"what it yields must fit on disk, in TMPDIR. Received: {error.strerror} at {place}"
            ) from error

    def read(self) -> np.ndarray:
        """All of it, (n, ...), left on disk."""
        shape = (self._length, *self._shape)
        if 0 in shape:
            return np.zeros(shape, self._dtype)
        return np.memmap(self._file, self._dtype, "r", shape=shape)
