"""The file that a tool writes its results to: refused before the work, there whole or not at all after it."""

import json
import os
import pathlib
import tempfile
from typing import Any

from reflow_tf.errors import InputError


def check_output(path: str) -> pathlib.Path:
    """What `--output` names, with ~ expanded.

    Raises:
        InputError: no file can be written there.
    """
    file = pathlib.Path(os.path.expanduser(path)).absolute()
    if file.is_dir() or not os.access(file.parent, os.W_OK) or not file.parent.is_dir():
        raise InputError(f"--output must be a file in a folder that exists and is yours to write. Received: {path}")
    return file


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes it as JSON, as `write_file` does."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def write_file(path: pathlib.Path, content: bytes) -> None:
    """Writes it beside the place where it belongs, and renames it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        try:
            part.write(content)
            part.flush()
            os.chmod(part.name, 0o644)
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise
