"""LiteRT on this machine's CPU, the runtime that Android and Linux apps embed."""

import importlib.metadata
import os
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.native_stderr import native_stderr_dropped
from reflow_tf.runtimes.device_script import to_floats, to_types
from reflow_tf.runtimes.runtime import SeveralOfEach, check_ends, make_inputs, run_in_pieces

_FILE_IDENTIFIER = b"TFL3"


class LiteRT(SeveralOfEach):
    """A .tflite file in ai_edge_litert's interpreter, XNNPACK delegate included.

    Integer files are fed through their own scale and zero point: q = clip(rint(x / scale) + zero_point), and back
    x = (q - zero_point) * scale. `np.rint` rounds halves to even, TFLite's QUANTIZE operator rounds them away from zero
    (kernels/internal/cppmath.h); the two differ only for values exactly between two steps.

    Args:
        content: a .tflite file.
        num_threads: CPU threads.

    Raises:
        InputError: the bytes are not a whole .tflite file, need an operator that LiteRT lacks, or leave the size of an
            image open.
    """

    unit = "ms"

    def __init__(self, content: bytes, num_threads: int = 2):
        _check_identifier(content)
        self._interpreter = _load(content, num_threads)
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        for details in inputs:
            if any(size < 1 for size in details["shape_signature"][1:]):
                raise InputError(
                    f"A .tflite file must fix every dimension of its input but the batch to be run here. "
                    f"Received: {tuple(map(int, details['shape_signature']))}"
                )
        self._inputs, self._outputs = inputs, outputs
        self._input_shapes, self._output_shapes = (
            [tuple(int(size) for size in details["shape"]) for details in ends] for ends in (inputs, outputs)
        )
        check_ends(self._input_shapes, self._output_shapes)
        self._timed: list[np.ndarray] | None = None

    @property
    def name(self) -> str:
        """'LiteRT' and the version of the package."""
        return f"LiteRT {importlib.metadata.version('ai-edge-litert')}"

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Computes float32 outputs (n, *output) of float32 samples (n, *sample), in pieces of the file's own batch.

        Raises:
            InputError: no samples, or samples of another shape than the file takes.
        """
        return run_in_pieces(batch, self.input_shape, self._run_piece)

    def measure(self) -> float:
        """Milliseconds of one inference, what it takes to hand over the input and to read the output included."""
        if self._timed is None:
            self._timed = to_types(self.make_inputs(), self._inputs)
        start = time.perf_counter()
        self._set(self._timed)
        self._interpreter.invoke()
        for output in self._outputs:
            self._interpreter.get_tensor(output["index"])
        return (time.perf_counter() - start) * 1000

    def make_inputs(self, num_samples: int | None = None, seed: int = 0) -> np.ndarray:
        """So many samples, or the file's own batch, as `runtime.make_inputs`; 0 and 1 where the file takes indices."""
        batch, *sample = self.input_shape
        made = make_inputs((num_samples or batch, *sample), seed)
        rows, start = made.reshape(len(made), -1), 0
        for details in self._inputs:
            part = slice(start, start := start + int(np.prod(details["shape"][1:])))
            if np.dtype(details["dtype"]).kind != "f" and not details["quantization"][0]:
                rows[:, part] = np.abs(rows[:, part])
        return made

    def memory_bytes(self) -> int | None:
        """None: the process holds much else, and the interpreter does not tell its own share."""
        return None

    def _run_piece(self, piece: np.ndarray) -> np.ndarray:
        self._set(to_types(piece, self._inputs))
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise InputError(
                f"Inputs must be such as the file can compute, indices within what an embedding has. "
                f"Received: {say_why(error)}"
            ) from error
        found = [self._interpreter.get_tensor(output["index"]) for output in self._outputs]
        return to_floats(found, self._outputs)

    def _set(self, values: list[np.ndarray]) -> None:
        for details, value in zip(self._inputs, values, strict=True):
            self._interpreter.set_tensor(details["index"], value)


def load_tflite(path: str | os.PathLike[str], num_threads: int = 2) -> LiteRT:
    """Loads a .tflite file from disk.

    Raises:
        InputError: no such file, a folder, unreadable, or anything that `LiteRT` refuses; the message names the path.
    """
    content = read_tflite(path)
    try:
        return LiteRT(content, num_threads)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_tflite(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, whatever they are.

    Raises:
        InputError: no such file, a folder, or unreadable.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"A .tflite file must be a readable file. Received: {path} ({error.strerror})") from error


def _check_identifier(content: bytes) -> None:
    """Says plainly that something is no .tflite file at all; LiteRT itself verifies that one is whole."""
    if len(content) < 8 or content[4:8] != _FILE_IDENTIFIER:
        raise InputError(
            f"A .tflite file must carry the identifier TFL3 at its bytes 4 to 7. "
            f"Received: {len(content)} bytes that begin with {content[:8]!r}"
        )


def _load(content: bytes, num_threads: int) -> Interpreter:
    try:
        with native_stderr_dropped():
            interpreter = Interpreter(model_content=content, num_threads=num_threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"A .tflite file must be whole and use only operators that LiteRT has. "
            f"Received: {len(content)} bytes; {say_why(error)}"
        ) from error
    return interpreter
