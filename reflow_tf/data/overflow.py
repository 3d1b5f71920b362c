"""What does not fit into memory goes into files in TMPDIR; one clear error says where they do not fit there either."""

import contextlib
import tempfile
from collections.abc import Iterator

from reflow_tf.errors import InputError


@contextlib.contextmanager
def on_disk(what: str, size: str) -> Iterator[None]:
    """Around the writing, and nothing else: whatever the disk says is told as what it is there for.

    Args:
        what: is written.
        size: how much that is.

    Raises:
        InputError: a disk that is full or cannot be written to, or no TMPDIR at all.
    """
    try:
        yield
    except OSError as error:
        place = f" at {tempfile.tempdir}" if tempfile.tempdir else ""  # None: no folder was found at all
        raise InputError(
            f"{what} must fit on disk where memory has no room: {size} in TMPDIR; raise --memory_budget, or take fewer "
            f"--calibration_samples. Received: {error.strerror}{place}"
        ) from error
