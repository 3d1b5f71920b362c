"""The smallest arena in which TFLM runs a file, found in child processes: one that is too small can end a process.

Measured on this machine, where pointers have eight bytes. TFLM keeps its own tables in the arena, too, so a 32-bit
microcontroller needs less than this.
"""

import contextlib
import pathlib
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from reflow_tf.errors import InputError
from reflow_tf.runtimes.tflm.interpreter import require_tflm

STEP_BYTES = 16  # TFLM aligns what it allocates to this
AMPLE_BYTES = 1 << 28
_FIRST_BYTES = 1 << 16
_TIMEOUT_SECONDS = 60
_CRASHED, _ERROR = "crashed", "error "


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
        if wanted.startswith(_ERROR):
            raise InputError(wanted.removeprefix(_ERROR))
        if wanted == _CRASHED:
            raise _explain_crash()
        low, high = 0, _FIRST_BYTES
        while high < AMPLE_BYTES and prober.outputs(high) != wanted:
            low, high = high, 2 * high
        while high - low > STEP_BYTES:
            middle = (low + high) // 2 // STEP_BYTES * STEP_BYTES
            if prober.outputs(middle) == wanted:
                high = middle
            else:
                low = middle
    return high


def require_survivable(content: bytes) -> None:
    """Checks, in a process of its own, that TFLM does not end the process that runs the file.

    TFLM ends it where one of its checks fails, without a word in the builds that are shipped.

    Raises:
        InputError: it does.
    """
    with _prober(content, 0) as prober:
        if prober.outputs(AMPLE_BYTES) == _CRASHED:
            raise _explain_crash()


def _explain_crash() -> InputError:
    return InputError(
        "TFLM must be able to run the file. Received: one at which it ends the process, as it does where a scale is "
        "out of its range; layers that have lost all their weights have such scales"
    )


class _Prober:
    """A child process that runs the file in arenas of any size, started anew when one of them kills it."""

    def __init__(self, path: pathlib.Path, decompression_bytes: int):
        self._command = [sys.executable, "-m", "reflow_tf.runtimes.tflm.probe", str(path), str(decompression_bytes)]
        self._child: subprocess.Popen[str] | None = None

    def outputs(self, arena_bytes: int) -> str:
        """A digest of the outputs, 'error ' and TFLM's words, or 'crashed': no answer, or none in time."""
        if self._child is None:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(f"{arena_bytes}\n")
            self._child.stdin.flush()
        ready = select.select([self._child.stdout], [], [], _TIMEOUT_SECONDS)[0]
        answer = self._child.stdout.readline().rstrip("\n") if ready else ""
        if not answer:
            self.stop()
        return answer or _CRASHED

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
