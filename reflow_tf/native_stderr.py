"""What native code writes to file descriptor 2, kept from the terminal."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def native_stderr_dropped() -> Iterator[None]:
    """Drops what is written to descriptor 2 during the block; what Python writes to `sys.stderr` still arrives.

    TensorFlow, its converter and LiteRT log from C++, where Python's logging cannot reach them and before any log level
    is read; what matters comes back as an exception.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with _python_stderr_on(kept):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _python_stderr_on(descriptor: int) -> Iterator[None]:
    try:
        redirected = sys.stderr.fileno() == 2
    except (io.UnsupportedOperation, AttributeError):  # a test or a notebook put something else there
        redirected = False
    if not redirected:
        yield
        return
    encoding = sys.stderr.encoding
    with open(descriptor, "w", 1, encoding, closefd=False) as stream, contextlib.redirect_stderr(stream):
        yield
