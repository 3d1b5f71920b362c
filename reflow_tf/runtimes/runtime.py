"""What every runtime offers: bytes and a batch in, outputs out; and what one inference costs."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from reflow_tf.errors import InputError


class Runtime(Protocol):
    """A file, loaded and ready to run.

    Attributes:
        name: what runs it, with the version, for reports.
        input_shape: (batch, *sample) as the file fixes it.
        num_inputs: that the file has; of several, those of a sample are one row of numbers, (numbers,).
        output_shape: (batch, *output) as the file fixes it; of a file with several outputs (batch, numbers): those of
            one input are one row, in the order of the outputs.
        output_sizes: numbers that each output has for an input.
        unit: of `measure`: 'ms', which vary from run to run, or 'instructions', which hardly do.
    """

    @property
    def name(self) -> str: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    def num_inputs(self) -> int: ...

    @property
    def output_shape(self) -> tuple[int, ...]: ...

    @property
    def output_sizes(self) -> tuple[int, ...]: ...

    @property
    def unit(self) -> str: ...

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Computes the outputs of any number of samples.

        Args:
            batch: float32 (n, *sample), n at least 1.

        Returns:
            float32 (n, *output).

        Raises:
            InputError: the samples have another shape than the file takes.
        """
        ...

    def measure(self) -> float:
        """The cost of one inference of the file's own batch, in `unit`."""
        ...

    def memory_bytes(self) -> int | None:
        """What running the file takes, as far as it can be told apart from everything else; None if it cannot."""
        ...


class SeveralOfEach:
    """What a runtime says of a file with any number of inputs and outputs, whose shapes it sets, batch included.

    Several inputs are one row of numbers a sample, and so are several outputs, in the order of the file.
    """

    _input_shapes: Sequence[tuple[int, ...]]
    _output_shapes: Sequence[tuple[int, ...]]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(batch, *sample), fixed by the file; (batch, numbers) of several inputs."""
        return join_shapes(self._input_shapes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(batch, *output), fixed by the file; (batch, numbers) of several outputs."""
        return join_shapes(self._output_shapes)

    @property
    def num_inputs(self) -> int:
        """That the file has."""
        return len(self._input_shapes)

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Numbers that each output has for an input."""
        return tuple(math.prod(shape[1:]) for shape in self._output_shapes)


def make_inputs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 inputs in [-1, 1), the same for every runtime."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def join_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of outputs of these shapes, batch included, as one; that of a single output stays what it is."""
    return shapes[0] if len(shapes) == 1 else (shapes[0][0], sum(math.prod(shape[1:]) for shape in shapes))


def check_ends(inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> None:
    """Checks that every input and output of a file has the axis of one batch; raises InputError."""
    firsts = {shape[0] if shape else None for shape in (*inputs, *outputs)}
    if len(firsts) != 1 or None in firsts:
        spelled = " -> ".join(", ".join(map(str, shapes)) for shapes in (inputs, outputs))
        raise InputError(
            f"A .tflite file must have an axis of samples first in every input and output, of one length. "
            f"Received: {spelled}"
        )


def check_batch(batch: np.ndarray, input_shape: tuple[int, ...]) -> None:
    """Checks that there are samples, and of the shape that the file takes; raises InputError."""
    _, *sample = input_shape
    if batch.shape[1:] != tuple(sample) or len(batch) == 0:
        raise InputError(f"The file takes batches of shape (n, {', '.join(map(str, sample))}). Received: {batch.shape}")


def run_in_pieces(
    batch: np.ndarray, input_shape: tuple[int, ...], run_piece: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Runs samples (n, *sample) in pieces of the file's own batch.

    The last piece is filled up with zeros and its outputs are cut.

    Raises:
        InputError: no samples, or samples of another shape than the file takes.
    """
    check_batch(batch, input_shape)
    step, *sample = input_shape
    pieces = []
    for start in range(0, len(batch), step):
        piece = batch[start : start + step]
        missing = step - len(piece)
        if missing:
            piece = np.concatenate([piece, np.zeros((missing, *sample), piece.dtype)])
        pieces.append(run_piece(piece)[: step - missing])
    return np.concatenate(pieces)
