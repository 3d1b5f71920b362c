"""The child process of `arena`: runs a file in arenas of the sizes that it reads, and answers what came out.

    python -m reflow_tf.runtimes.tflm.probe model.tflite DECOMPRESSION_BYTES

reads a size a line and answers each with a line: a digest of the outputs of one fixed input, or 'error ' and why.
"""

import hashlib
import pathlib
import sys
from typing import Any

import numpy as np

from reflow_tf.foreign import say_why
from reflow_tf.runtimes.tflm.interpreter import describe_ends, invoke, open_interpreter


def answer(content: bytes, arena_bytes: int, decompression_bytes: int) -> str:
    """One line about one arena."""
    try:
        interpreter = open_interpreter(content, arena_bytes, decompression_bytes)
        inputs, outputs = describe_ends(interpreter)
        rng = np.random.default_rng(0)
        found = invoke(interpreter, [_draw(rng, details) for details in inputs], len(outputs))
    except Exception as error:  # whatever it is, it is the answer
        return f"error {say_why(error)}"
    return hashlib.sha256(b"".join(output.tobytes() for output in found)).hexdigest()


def _draw(rng: np.random.Generator, details: dict[str, Any]) -> np.ndarray:
    """Any int8; where the file takes indices, those that every table has."""
    lowest, end = (-128, 128) if details["dtype"] == np.int8 else (0, 2)
    return rng.integers(lowest, end, details["shape"]).astype(details["dtype"])


def main(path: str, decompression_bytes: int) -> None:
    """Answers sizes from standard input until it ends."""
    content = pathlib.Path(path).read_bytes()
    for line in sys.stdin:
        print(answer(content, int(line), decompression_bytes), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
