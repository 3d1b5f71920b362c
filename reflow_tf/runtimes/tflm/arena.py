"""The smallest arena in which TFLM runs a file, found in child processes: one that is too small can end a process.

Measured on this machine, where pointers have eight bytes. TFLM keeps its own tables in the arena, too, so a 32-bit
microcontroller needs less than this.
"""

import contextlib
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from reflow_tf.errors import InputError
from reflow_tf.runtimes.tflm.interpreter import require_tflm

STEP_BYTES = 16  # TFLM aligns what it allocates to this
AMPLE_BYTES = 1 << 28
_FIRST_BYTES = 1 << 16
_TIMEOUT_SECONDS = 120


def find_arena(content: bytes, decompression_bytes: int = 0) -> int:
    """Bytes of the smallest arena, a multiple of 16, with which the file runs and gives the outputs of an ample one.

    Args:
        content: a .tflite file.
        decompression_bytes: memory beside the arena for what DECODE expands; 0: in the arena.

    Raises:
        InputError: TFLM cannot run the file whatever the arena, or is not installed.
    """
    require_tflm()
    with _prober(content, decompression_bytes) as prober:
        wanted = prober.outputs(AMPLE_BYTES)
        if wanted.startswith("error "):
            raise InputError(wanted.removeprefix("error "))
        low, high = 0, _FIRST_BYTES
        while prober.outputs(high) != wanted:
            low, high = high, 2 * high
        while high - low > STEP_BYTES:
            middle = (low + high) // 2 // STEP_BYTES * STEP_BYTES
            if prober.outputs(middle) == wanted:
                high = middle
            else:
                low = middle
    return high


class _Prober:
    """A child process that runs the file in arenas of any size, started anew when one of them kills it."""

    def __init__(self, path: pathlib.Path, decompression_bytes: int):
        self._command = [sys.executable, "-m", "reflow_tf.runtimes.tflm.probe", str(path), str(decompression_bytes)]
        self._child: subprocess.Popen[str] | None = None

    def outputs(self, arena_bytes: int) -> str:
        """A digest of the outputs, 'error ' and TFLM's words, or 'crashed'."""
        if self._child is None:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(f"{arena_bytes}\n")
            self._child.stdin.flush()
        answer = self._child.stdout.readline().rstrip("\n")
        if not answer:
            self.stop()
        return answer or "crashed"

    def stop(self) -> None:
        """Ends the child, if one runs."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate(timeout=_TIMEOUT_SECONDS)
            self._child = None


@contextlib.contextmanager
def _prober(content: bytes, decompression_bytes: int) -> Iterator[_Prober]:
    with tempfile.TemporaryDirectory(prefix="reflow_tf_arena_") as folder:
        path = pathlib.Path(folder) / "model.tflite"
        path.write_bytes(content)
        prober = _Prober(path, decompression_bytes)
        try:
            yield prober
        finally:
            prober.stop()
