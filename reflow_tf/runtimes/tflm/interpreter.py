"""A .tflite file in TFLM's interpreter (PyPI `tflite-micro`), which says on descriptor 2 why it fails."""

import contextlib
import importlib
import importlib.metadata
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.native_stderr import native_stderr_dropped, native_stderr_recorded

VERSION = "0.dev20261023182759"


class ArenaTooSmall(InputError):
    """TFLM ran out of memory while it prepared the file."""


def require_tflm() -> Any:
    """The module `runtime` of tflite_micro.

    Raises:
        InputError: the package is not installed.
    """
    try:
        return importlib.import_module("tflite_micro").runtime
    except ImportError as error:
        raise InputError(
            f"TensorFlow Lite for Microcontrollers is needed: pip install '.[tflm]' in the clone (tflite-micro "
            f"{VERSION}, x86-64 Linux). Received: {say_why(error)}"
        ) from error


def name_tflm() -> str:
    """'TFLM' and the version of the package."""
    return f"TFLM {importlib.metadata.version('tflite-micro')}"


def open_interpreter(content: bytes, arena_bytes: int, decompression_bytes: int = 0) -> Any:
    """An interpreter with its tensors allocated.

    Args:
        content: a .tflite file.
        arena_bytes: the arena. One that is too small can crash the process instead of raising: `find_arena` tries sizes
            in processes of their own.
        decompression_bytes: memory beside the arena into which DECODE expands weights; 0: they go into the arena.

    Raises:
        ArenaTooSmall: it is.
        InputError: TFLM cannot run the file; its own words are in the message.
    """
    runtime = require_tflm()
    lines: list[str] = []
    try:
        with contextlib.redirect_stdout(io.StringIO()), native_stderr_recorded() as lines:
            return runtime.Interpreter.from_bytes(
                content, arena_size=arena_bytes, alt_decompression_memory_size=decompression_bytes
            )
    except (RuntimeError, ValueError) as error:
        said = _join_said(lines, error)
        if "Requested:" in said:
            raise ArenaTooSmall(
                f"TFLM needs a larger arena. Received: {arena_bytes} bytes, with which it says: {say_why(said)}"
            ) from error
        sparse = "; it has none that unpacks sparse tensors: --target=tflm or cortex_m writes a file for it"
        sparse = sparse if "DENSIFY" in said else ""
        raise InputError(f"TFLM must have every operator of the file{sparse}. Received: {say_why(said)}") from error


def describe_ends(interpreter: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The inputs and the outputs of the file, in its order, each as LiteRT describes it."""
    return _describe_all(interpreter.get_input_details), _describe_all(interpreter.get_output_details)


def _describe_all(get_details: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with native_stderr_dropped(), contextlib.suppress(IndexError):  # that is how TFLM says that there are no more
        while True:
            details = get_details(len(found))
            quantization = details["quantization_parameters"]
            scales, points = quantization["scales"], quantization["zero_points"]
            found.append(
                {
                    "shape": tuple(int(size) for size in details["shape"]),
                    "dtype": np.dtype(details["dtype"]),
                    "quantization": (float(scales[0]), int(points[0])) if len(scales) else (0.0, 0),
                }
            )
    return found


def invoke(interpreter: Any, sample: Sequence[np.ndarray], num_outputs: int = 1) -> list[np.ndarray]:
    """Outputs (1, *output) of one sample, an array (1, *input) for each input, all in the file's own types.

    Raises:
        InputError: TFLM takes the file and cannot compute it, such as a CAST between types that it does not know.
    """
    lines: list[str] = []
    try:
        with native_stderr_recorded() as lines:
            for index, values in enumerate(sample):
                interpreter.set_input(values, index)
            interpreter.invoke()
            return [interpreter.get_output(index).copy() for index in range(num_outputs)]
    except RuntimeError as error:
        said = _join_said(lines, error)
        raise InputError(
            f"TFLM must be able to compute the file for what it is given: indices within what an embedding has, types "
            f"that its operators know. Received: {say_why(said)}"
        ) from error


def _join_said(lines: Sequence[str], error: Exception) -> str:
    """What TFLM wrote, and its exception, which seldom says why, in one line."""
    return "; ".join(" ".join(line.split()) for line in [*lines, str(error)] if line.strip())
