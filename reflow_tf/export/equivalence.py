"""Do two .tflite files compute the same? Asked of LiteRT itself, bit for bit."""

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from reflow_tf.native_stderr import native_stderr_dropped


def compute_same(first: bytes, second: bytes) -> bool:
    """Whether both files load in LiteRT and give bit-equal outputs for one seeded random input.

    0.0 and -0.0 count as equal, NaN equals NaN. A file that LiteRT cannot run equals nothing.
    """
    with native_stderr_dropped():
        try:
            outputs = [_invoke(content) for content in (first, second)]
        except (ValueError, RuntimeError):  # what LiteRT raises for operators it lacks or cannot prepare
            return False
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*outputs, strict=True))


def _invoke(content: bytes) -> list[np.ndarray]:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for details in interpreter.get_input_details():
        scale = 1 if np.issubdtype(details["dtype"], np.floating) else 40
        values = np.clip(scale * rng.standard_normal(details["shape"]), -128, 127)
        interpreter.set_tensor(details["index"], values.astype(details["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(details["index"]).copy() for details in interpreter.get_output_details()]
