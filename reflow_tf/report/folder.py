"""The output folder: checked before the work starts, and there either whole or not at all.

Files are written into a hidden folder beside the final one, which is renamed when all of them are complete.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping

from reflow_tf.errors import InputError

Content = str | bytes | Callable[[pathlib.Path], None]


class OutputFolder:
    """A place for results that nothing else occupies.

    Args:
        path: the folder to make.
        names: of the files that will be in it.
        overwrite: whether a folder of an earlier run may be replaced.

    Raises:
        InputError: the path exists and may not be replaced, is a file, or cannot be written to.
    """

    def __init__(self, path: str, names: frozenset[str], overwrite: bool = False):
        self.path = pathlib.Path(path).absolute()
        self._names = names
        self._overwrite = overwrite
        self._check()

    def write(self, files: Mapping[str, Content]) -> None:
        """Writes all files, then makes them visible at once; on any error what was there before is untouched.

        Args:
            files: name -> text, bytes, or a function that writes to the path it is given.

        Raises:
            OSError: the disk is full or refuses to be written to.
            InputError: somebody put something at the path in the meantime.
        """
        if set(files) != self._names:
            raise ValueError(f"the files must be {sorted(self._names)}. Received: {sorted(files)}")
        with self._workplace() as workplace:
            finished = workplace / "new"
            finished.mkdir()
            for name, content in files.items():
                _write_file(finished / name, content)
            self._check()
            _swap(finished, self.path, workplace / "old")

    def _check(self) -> None:
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise InputError(f"--output_dir must be a folder. Received: {self.path}, a file or a link")
        if self.path.is_dir():
            self._check_replaceable()
        parent = _nearest_existing(self.path.parent)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"--output_dir must be in a folder that can be written to. Received: {self.path}")

    def _check_replaceable(self) -> None:
        found = {entry.name for entry in self.path.iterdir()}
        if found and not self._overwrite:
            raise InputError(f"--output_dir must not exist yet; --overwrite replaces it. Received: {self.path}")
        # --overwrite on somebody's home folder must not empty it.
        if foreign := found - self._names:
            raise InputError(
                f"--overwrite replaces only a folder that an earlier run of this tool made; "
                f"{self.path} also holds {sorted(foreign)[0]}. Received: --output_dir={self.path}"
            )

    @contextlib.contextmanager
    def _workplace(self) -> Iterator[pathlib.Path]:
        """A hidden folder beside the final one, on the same file system, so that a rename is enough."""
        made = [folder for folder in (self.path.parent, *self.path.parent.parents) if not folder.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        workplace = pathlib.Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        try:
            yield workplace
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):  # not empty: the results are in it
                    folder.rmdir()


def _swap(finished: pathlib.Path, final: pathlib.Path, old: pathlib.Path) -> None:
    """Renames `finished` to `final`; what was there is at `old` for the moment between, and comes back on failure."""
    replaces = final.exists()
    try:
        if replaces:
            final.rename(old)
        finished.rename(final)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        raise


def _write_file(path: pathlib.Path, content: Content) -> None:
    match content:
        case str():
            path.write_text(content, encoding="utf-8")
        case bytes():
            path.write_bytes(content)
        case _:
            content(path)


def _nearest_existing(folder: pathlib.Path) -> pathlib.Path:
    return folder if folder.exists() or folder == folder.parent else _nearest_existing(folder.parent)
