"""What native code writes to file descriptor 2, kept from the terminal."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def native_stderr_dropped() -> Iterator[None]:
    """Drops what is written to descriptor 2 during the block, by native code or by Python.

    TensorFlow, its converter and LiteRT log from C++, where Python's logging cannot reach them and before any log level
    is read; what matters comes back as an exception. Whoever must be seen meanwhile, as progress bars must, writes to a
    duplicate of the descriptor that was made before.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with _redirected(nowhere):
            yield
    finally:
        os.close(nowhere)


@contextlib.contextmanager
def native_stderr_recorded() -> Iterator[list[str]]:
    """Keeps what is written to descriptor 2 during the block, for a library whose exceptions do not say why.

    Yields:
        A list, empty during the block; after it, also after an exception, the lines that were written.
    """
    lines: list[str] = []
    with tempfile.TemporaryFile() as record:
        try:
            with _redirected(record.fileno()):
                yield lines
        finally:
            record.seek(0)
            lines += record.read().decode("utf-8", "replace").splitlines()


@contextlib.contextmanager
def _redirected(descriptor: int) -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
