"""What native code writes to file descriptor 2, kept from the terminal."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def native_stderr_held() -> Iterator[None]:
    """Diverts descriptor 2 into a file that is thrown away.

    TensorFlow's converter and LiteRT log from C++, where Python's logging cannot reach them; what matters comes back
    as an exception. The whole process is affected: what other threads write to stderr meanwhile is lost too.
    """
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as diverted:
            os.dup2(diverted.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
