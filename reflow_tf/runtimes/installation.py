"""The cache of runtimes that are no Python packages of this machine: each there either whole or not at all.

Nothing outside the cache is touched, so deleting the folder undoes every set-up.
"""

import base64
import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why

_TIMEOUT_SECONDS = 120
_CHUNK_BYTES = 1 << 20
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY)  # POSIX lets rename() say either


def cache_folder() -> pathlib.Path:
    """$REFLOW_TF_CACHE, or ~/.cache/reflow_tf; it need not exist yet."""
    named = os.environ.get("REFLOW_TF_CACHE")
    return pathlib.Path(named or "~/.cache/reflow_tf").expanduser().absolute()


def install(name: str, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns the folder `name` of the cache, built now if it is not there.

    Args:
        name: of the folder; a version or a digest of what goes into it is part of it, so that a cache is never stale.
        build: fills the empty folder that it is given, which is renamed to the final one when it returns; on any error,
            and on Ctrl-C, nothing is left. Paths into that folder must not be written into files.

    Raises:
        InputError: the cache cannot be written to, or whatever `build` raises.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    with _workplace(folder.parent) as workplace:
        finished = workplace / "new"
        finished.mkdir()
        build(finished)
        try:
            finished.rename(folder)
        except OSError as error:
            # Another process was faster: its folder is as good. Anything else is the file system's refusal.
            if error.errno not in _OCCUPIED or not folder.is_dir():
                raise _cannot_write(folder, error) from error
    return folder


def digest_of(*parts: str | bytes) -> str:
    """16 hex digits that change with any of the parts: for the names of folders."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()[:16]


def download(url: str, integrity: str, path: pathlib.Path) -> None:
    """Writes the content of `url` to `path`, which appears when the content is whole and its checksum is right.

    Args:
        url: http, https or file.
        integrity: 'sha256-' or 'sha512-' and the digest in base64, as npm's lock files spell it
            (https://www.w3.org/TR/SRI/).
        path: of the file; its folder exists.

    Raises:
        InputError: no connection, no such file, or other content than the checksum promises.
    """
    algorithm, _, expected = integrity.partition("-")
    if algorithm not in ("sha256", "sha512") or not expected:
        raise ValueError(f"integrity must be sha256-BASE64 or sha512-BASE64. Received: {integrity}")
    digest = hashlib.new(algorithm)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
        try:
            for chunk in _read(url):
                digest.update(chunk)
                part.write(chunk)
            received = base64.b64encode(digest.digest()).decode()
            if received != expected:
                raise InputError(f"{url} must have the checksum {integrity}. Received: {algorithm}-{received}")
            part.flush()
            os.chmod(part.name, 0o644)
            os.replace(part.name, path)
        except BaseException:
            pathlib.Path(part.name).unlink(missing_ok=True)
            raise


def missing_programs(programs: Iterable[str]) -> list[str]:
    """Those that are not on the PATH."""
    return [program for program in programs if shutil.which(program) is None]


def require_programs(packages: Mapping[str, str], purpose: str) -> None:
    """Checks that programs are installed.

    Args:
        packages: name of a program -> the Debian package that brings it.
        purpose: what needs them, for the message.

    Raises:
        InputError: some are not on the PATH; the message holds the line that installs them.
    """
    missing = missing_programs(packages)
    if missing:
        line = " ".join(sorted({packages[program] for program in missing}))
        raise InputError(
            f"{purpose} needs {', '.join(packages)}: apt-get install -y --no-install-recommends {line}. "
            f"Received: no {', no '.join(missing)} on the PATH"
        )


def call(
    arguments: Sequence[str | os.PathLike[str]], purpose: str, scratch: str | os.PathLike[str] | None = None
) -> str:
    """Runs a program to its end and returns what it printed.

    Args:
        arguments: the program first.
        purpose: what it is for, for the message.
        scratch: its folder for temporary files, in case that it is killed before it has cleared them away.

    Raises:
        InputError: it failed; the message ends in the last lines that it printed.
    """
    texts = [os.fspath(argument) for argument in arguments]
    environment = os.environ if scratch is None else {**os.environ, "TMPDIR": os.fspath(scratch)}
    done = subprocess.run(
        texts, env=environment, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = " | ".join((done.stderr + done.stdout).strip().splitlines()[-4:])
        raise InputError(f"{purpose} failed: {texts[0]} must succeed. Received: exit code {done.returncode}; {said}")
    return done.stdout


def _read(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            while chunk := response.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:  # URLError and timeouts are OSErrors
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        said = say_why(reason if isinstance(reason, BaseException) else str(reason))
        raise InputError(f"Setting up needs {url}, once. Received: {said}") from error


@contextlib.contextmanager
def _workplace(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".reflow_tf.", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise _cannot_write(parent, error) from error
    with folder as name:
        yield pathlib.Path(name)


def _cannot_write(path: pathlib.Path, error: OSError) -> InputError:
    return InputError(
        f"The cache must be a folder that can be written to; $REFLOW_TF_CACHE names another one. "
        f"Received: {path} ({error.strerror})"
    )
