"""A .tflite file in LiteRT.js."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.runtimes.device_script import join, split
from reflow_tf.runtimes.runtime import SeveralOfEach, make_inputs, run_in_pieces
from reflow_tf.runtimes.web.browser import Browser, PageError


class Web(SeveralOfEach):
    """A .tflite file with float32 or int32 inputs and float32 outputs in LiteRT.js, on the CPU (accelerator 'wasm').

    Args:
        content: a .tflite file.
        browser: the Chromium that it runs in; several files may share one. Left out: one of its own.

    Raises:
        InputError: LiteRT.js cannot run the file, or something that it needs is missing.
    """

    unit = "ms"

    def __init__(self, content: bytes, browser: Browser | None = None):
        self._browser = browser or Browser()
        self._owns_browser = browser is None
        self._number: int | None = None
        self._is_prepared = False
        try:
            self._inputs, self._output_shapes = self._load(content)
            self._input_shapes = [details["shape"] for details in self._inputs]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Web":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """LiteRT.js and Chromium with their versions, the build of LiteRT.js, the threads."""
        return self._browser.name

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Computes float32 outputs (n, *output) of float32 samples (n, *sample), in pieces of the file's own batch.

        Raises:
            InputError: no samples, samples of another shape than the file takes, or LiteRT.js failed.
        """
        return run_in_pieces(batch, self.input_shape, self._run_piece)

    def measure(self) -> float:
        """Milliseconds of one inference inside the page: run() awaited and the output's values copied out of the heap.

        The input lies in LiteRT.js's memory already. Three inferences go before it that are not timed: as in a stream
        of images, the file's weights are in the caches, whatever other files ran meanwhile. The page's clock ticks
        every 5 us; further digits are dropped.
        """
        if not self._is_prepared:
            self._call("prepare", self._encode(self._sample))
            self._is_prepared = True
        return round(float(self._call("measure")), 3)

    def memory_bytes(self) -> int | None:
        """The heap of the LiteRT.js instance, which grows and never shrinks; None if other files share it."""
        return int(self._browser.call("heapBytes")) if self._browser.num_loaded == 1 else None

    def close(self) -> None:
        """Frees the file, and ends the browser if it is its own."""
        if self._owns_browser:
            self._browser.close()
        elif self._number is not None:
            self._browser.unload(self._number)
        self._number = None

    def _load(self, content: bytes) -> tuple[list[dict], tuple[tuple[int, ...], ...]]:
        try:
            self._number, details = self._browser.load(content)
        except PageError as error:
            raise InputError(
                f"A .tflite file must be whole and use only operators and types that LiteRT.js has; int8 "
                f"inputs and outputs are not among them. Received: {len(content)} bytes; {say_why(error)}"
            ) from error
        inputs = [side | {"shape": _read_shape(side, "input", ("float32", "int32"))} for side in details["inputs"]]
        return inputs, tuple(_read_shape(side, "output") for side in details["outputs"])

    def _run_piece(self, piece: np.ndarray) -> np.ndarray:
        texts = self._call("run", self._encode(piece))
        outputs = []
        for text, shape in zip(texts, self._output_shapes, strict=True):
            values = np.frombuffer(base64.b64decode(text), np.float32)
            if values.size != math.prod(shape):  # LiteRT.js tells the file's own shape, not what it computed
                raise InputError(
                    f"LiteRT.js must give outputs of the shape that the file states, {shape}. "
                    f"Received: {values.size} numbers"
                )
            outputs.append(values.reshape(shape))
        return join(outputs)

    @property
    def _sample(self) -> np.ndarray:
        """One batch; nothing negative where an input is of whole numbers, which may be indices."""
        made = make_inputs(self.input_shape)
        return np.abs(made) if any(details["dtype"] == "int32" for details in self._inputs) else made

    def _encode(self, batch: np.ndarray) -> list[str]:
        """Each input of the file as text."""
        parts = zip(split(batch, self._inputs), self._inputs, strict=True)
        return [_encode(part, details["dtype"]) for part, details in parts]

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return self._browser.call(function, self._number, *arguments)
        except PageError as error:
            raise InputError(f"LiteRT.js must be able to run the file. Received: {say_why(error)}") from error


def _read_shape(details: dict, side: str, dtypes: Sequence[str] = ("float32",)) -> tuple[int, ...]:
    if details["dtype"] not in dtypes:
        raise InputError(f"--runtime=web takes files with float32 {side}s. Received: {details['dtype']}")
    shape = tuple(int(size) for size in details["shape"])
    if not shape or min(shape) < 1:
        raise InputError(f"--runtime=web takes files with a fixed batch, as LiteRT.js does. Received: {side} {shape}")
    return shape


def _encode(batch: np.ndarray, dtype: str) -> str:
    values = np.ascontiguousarray(batch, "<f4") if dtype == "float32" else np.rint(batch).astype("<i4")
    return base64.b64encode(values.tobytes()).decode()
