"""The file that a tool writes its results to: refused before the work, there whole or not at all after it."""

import json
import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

from reflow_tf.errors import InputError


def check_output(path: str, inputs: Iterable[str | None]) -> pathlib.Path:
    """What `--output` names, with ~ expanded.

    Args:
        path: the value of the flag.
        inputs: paths that are read, or names that are none.

    Raises:
        InputError: no file can be written there, or what is there is no file or an input.
    """
    file = pathlib.Path(os.path.realpath(os.path.expanduser(path)))  # or a link would be replaced
    if not os.access(file.parent, os.W_OK) or not file.parent.is_dir():
        raise InputError(f"--output must be a file in a folder that exists and is yours to write. Received: {path}")
    if not file.exists():
        return file
    if not file.is_file():  # of a pipe or a device nothing would be left
        raise InputError(f"--output must be a file, new or to be replaced. Received: {path}, which is none")
    given = (os.path.expanduser(name) for name in inputs if name is not None)
    if any(os.path.exists(name) and file.samefile(name) for name in given):
        raise InputError(f"--output must not be a file that is read. Received: {path}")
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
