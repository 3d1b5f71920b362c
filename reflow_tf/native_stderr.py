"""What native code writes to file descriptor 2, kept from the terminal."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def native_stderr_dropped() -> Iterator[None]:
    """Drops what is written to descriptor 2 during the block, by native code or by Python.

    TensorFlow, its converter and LiteRT log from C++, where Python's logging cannot reach them and before any log level
    is read; what matters comes back as an exception. Whoever must be seen meanwhile, as progress bars must, writes to a
    duplicate of the descriptor that was made before.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
