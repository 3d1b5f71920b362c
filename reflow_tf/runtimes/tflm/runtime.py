"""TensorFlow Lite for Microcontrollers as a runtime: its reference kernels, the ones that a microcontroller gets."""

import time

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.runtimes.device_script import to_float, to_type
from reflow_tf.runtimes.runtime import OneOfEach, make_inputs, run_in_pieces
from reflow_tf.runtimes.tflm.arena import AMPLE_BYTES, find_arena, require_survivable
from reflow_tf.runtimes.tflm.interpreter import invoke, name_tflm, open_interpreter, require_tflm


class TFLM(OneOfEach):
    """An int8 .tflite file with one input and one output in TFLM's interpreter.

    Floats pass through the file's scales and zero points as they do in `runtimes.litert`.

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
        self._input, self._output = (
            _describe(details)
            for details in (self._interpreter.get_input_details(0), self._interpreter.get_output_details(0))
        )
        if self.input_shape[0] != 1 or self._input["dtype"] != np.int8:
            raise InputError(
                f"A file for TFLM takes a batch of 1 in int8. Received: {self.input_shape}, {self._input['dtype']}"
            )

    @property
    def name(self) -> str:
        """'TFLM' and the version of the package."""
        return name_tflm()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, *sample)."""
        return self._input["shape"]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(1, *output)."""
        return self._output["shape"]

    @property
    def input_quantization(self) -> tuple[float, int]:
        """Scale and zero point: real = (stored - zero_point) * scale."""
        return self._input["quantization"]

    @property
    def output_quantization(self) -> tuple[float, int]:
        """Scale and zero point of the output."""
        return self._output["quantization"]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Computes float32 outputs (n, *output) of float32 samples (n, *sample).

        Raises:
            InputError: no samples, or samples of another shape than the file takes.
        """
        return run_in_pieces(batch, self.input_shape, lambda piece: to_float(self._invoke(piece), self._output))

    def run_int8(self, batch: np.ndarray) -> np.ndarray:
        """The outputs (n, *output) themselves, as the file computes them."""
        return run_in_pieces(batch, self.input_shape, self._invoke)

    def measure(self) -> float:
        """Milliseconds of one inference on this machine, which say nothing about a microcontroller."""
        start = time.perf_counter()
        self._invoke(make_inputs(self.input_shape))
        return (time.perf_counter() - start) * 1000

    def memory_bytes(self) -> int:
        """The smallest arena, with what DECODE expands in it."""
        return find_arena(self._content)

    def _invoke(self, piece: np.ndarray) -> np.ndarray:
        return invoke(self._interpreter, to_type(piece, self._input))


def _describe(details: dict) -> dict:
    """TFLM's description of a tensor, as LiteRT's says the same."""
    quantization = details["quantization_parameters"]
    scales, points = quantization["scales"], quantization["zero_points"]
    return {
        "shape": tuple(int(size) for size in details["shape"]),
        "dtype": np.dtype(details["dtype"]),
        "quantization": (float(scales[0]), int(points[0])) if len(scales) else (0.0, 0),
    }
