"""TensorFlow Lite for Microcontrollers as a runtime: its reference kernels, the ones that a microcontroller gets."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.runtimes.device_script import to_floats, to_types
from reflow_tf.runtimes.runtime import SeveralOfEach, check_ends, make_inputs, run_in_pieces
from reflow_tf.runtimes.tflm.arena import AMPLE_BYTES, find_arena, require_survivable
from reflow_tf.runtimes.tflm.interpreter import describe_ends, invoke, name_tflm, open_interpreter, require_tflm


class TFLM(SeveralOfEach):
    """An int8 .tflite file in TFLM's interpreter.

    Floats pass through the file's scales and zero points as they do in `runtimes.litert`; indices are taken as they
    are.

    Args:
        content: a .tflite file for a batch of 1.

    Raises:
        InputError: TFLM is not installed, cannot run the file, or the file takes another batch or is not int8.
    """

    unit = "ms"

    def __init__(self, content: bytes):
        require_tflm()
        require_survivable(content)
        self._content = content
        self._interpreter = open_interpreter(content, AMPLE_BYTES)
        self._inputs, self._outputs = describe_ends(self._interpreter)
        self._input_shapes, self._output_shapes = (
            [details["shape"] for details in ends] for ends in (self._inputs, self._outputs)
        )
        check_ends(self._input_shapes, self._output_shapes)
        for details in self._inputs:
            is_index = details["dtype"].kind in "iu" and not details["quantization"][0]
            if details["shape"][0] != 1 or not (details["dtype"] == np.int8 or is_index):
                raise InputError(
                    f"A file for TFLM takes a batch of 1 in int8. Received: {details['shape']}, {details['dtype']}"
                )

    @property
    def name(self) -> str:
        """'TFLM' and the version of the package."""
        return name_tflm()

    @property
    def inputs(self) -> Sequence[Mapping[str, Any]]:
        """Shape, dtype and quantization of each input, in the order of the file.

        The quantization is a scale and a zero point: real = (stored - zero_point) * scale; a scale of 0 says that the
        numbers are what they are.
        """
        return self._inputs

    @property
    def outputs(self) -> Sequence[Mapping[str, Any]]:
        """The same of each output."""
        return self._outputs

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Computes float32 outputs (n, *output) of float32 samples (n, *sample).

        Raises:
            InputError: no samples, or samples of another shape than the file takes.
        """
        return run_in_pieces(batch, self.input_shape, self._run_piece)

    def run_bytes(self, batch: np.ndarray) -> np.ndarray:
        """The outputs as the file computes them, int8 (n, bytes): of a sample those of all, one after another."""
        return run_in_pieces(batch, self.input_shape, lambda piece: _to_bytes(self._invoke(piece)))

    def to_bytes(self, batch: np.ndarray) -> np.ndarray:
        """The samples as the file takes them, int8 (n, bytes), in the same way."""
        return run_in_pieces(batch, self.input_shape, lambda piece: _to_bytes(to_types(piece, self._inputs)))

    def measure(self) -> float:
        """Milliseconds of one inference on this machine, which say nothing about a microcontroller."""
        start = time.perf_counter()
        self._invoke(np.abs(make_inputs(self.input_shape)))
        return (time.perf_counter() - start) * 1000

    def memory_bytes(self) -> int:
        """The smallest arena, with what DECODE expands in it."""
        return find_arena(self._content)

    def _run_piece(self, piece: np.ndarray) -> np.ndarray:
        return to_floats(self._invoke(piece), self._outputs)

    def _invoke(self, piece: np.ndarray) -> list[np.ndarray]:
        return invoke(self._interpreter, to_types(piece, self._inputs), len(self._outputs))


def _to_bytes(arrays: Sequence[np.ndarray]) -> np.ndarray:
    rows = [np.ascontiguousarray(array).reshape(len(array), -1).view(np.int8) for array in arrays]
    return np.concatenate(rows, axis=1)
