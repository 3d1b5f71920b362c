"""The output folder: checked before the work starts, and there either whole or not at all.

Files are written into a hidden folder beside the final one, which is renamed when all of them are complete.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

from reflow_tf.errors import Breakdown, InputError

PREFIX = ".reflow_tf."
"""Of hidden folders in which results are written before they are whole."""

Content = str | bytes | Callable[[pathlib.Path], None]


class OutputFolder:
    """A place for results that nothing else occupies.

    Args:
        path: the folder to make.
        names: of the files and folders that will be in it.
        overwrite: whether a folder of an earlier run may be replaced.
        optional: names of files that some runs write and others do not.
        former: other sets of names that an earlier run may have left.

    Raises:
        InputError: the path exists and may not be replaced, is a file, or cannot be written to.
    """

    def __init__(
        self,
        path: str,
        names: frozenset[str],
        overwrite: bool = False,
        optional: frozenset[str] = frozenset(),
        former: Sequence[frozenset[str]] = (),
    ):
        self.path = pathlib.Path(path).expanduser().absolute()
        self._names = names
        self._overwrite = overwrite
        self._optional = optional
        self._former = (names, *former)
        self._check()

    def write(self, files: Mapping[str, Content]) -> None:
        """Writes all files, then makes them visible at once; on any error what was there before is untouched.

        Args:
            files: name, perhaps in a folder of `names`, -> text, bytes, or a function that writes to the path it is
                given.

        Raises:
            InputError: the disk is full or refuses to be written to, or somebody put something at the path meanwhile.
        """
        if {name.partition("/")[0] for name in files} - self._optional != self._names:
            raise ValueError(f"the files must be {sorted(self._names)}. Received: {sorted(files)}")
        try:
            with self._workplace() as workplace:
                finished = workplace / "new"
                finished.mkdir()
                for name, content in files.items():
                    (finished / name).parent.mkdir(exist_ok=True)
                    _write_file(finished / name, content)
                self._check()
                _swap(finished, self.path, workplace / "old")
        except OSError as error:
            raise Breakdown(
                f"--output_dir must be where the results can be written ({error.strerror or error}). "
                f"Received: {self.path}"
            ) from error

    def holds(self, path: str) -> bool:
        """Whether something that exists lies inside the folder."""
        inner = pathlib.Path(path).expanduser()
        return inner.exists() and self.path.resolve() in inner.resolve().parents

    def require_outside(self, paths: Mapping[str, str | None]) -> None:
        """Checks that no input would be replaced by the results.

        Args:
            paths: name of a flag -> its value, which need not be a path.

        Raises:
            InputError: one exists and lies inside the folder.
        """
        for name, path in paths.items():
            if path is not None and self.holds(path):
                raise InputError(f"--{name} must not be inside --output_dir, which is replaced. Received: {path}")

    def _check(self) -> None:
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise InputError(f"--output_dir must be a folder. Received: {self.path}, a file or a link")
        if self.path.is_dir():
            self._check_replaceable()
        try:
            # Asked by doing it: permissions tell nothing about read-only disks, and nothing to root.
            os.rmdir(tempfile.mkdtemp(prefix=PREFIX, dir=_nearest_existing(self.path.parent)))
        except OSError as error:
            raise InputError(
                f"--output_dir must be in a folder that can be written to ({error.strerror}). Received: {self.path}"
            ) from error

    def _check_replaceable(self) -> None:
        # The results are renamed into place. A mount point cannot be, and a shell would stay behind in the old folder.
        if os.path.ismount(self.path) or self.path.samefile(os.curdir):
            raise InputError(
                f"--output_dir must not be a mount point or the current folder: name a folder inside it. "
                f"Received: {self.path}"
            )
        found = {entry.name for entry in self.path.iterdir()}
        if found and not self._overwrite:
            raise InputError(f"--output_dir must not exist yet; --overwrite replaces it. Received: {self.path}")
        # --overwrite on somebody's home folder must not empty it, nor take a folder with a model.keras for an old run.
        if found and found - self._optional not in self._former:
            odd = sorted(found - self._optional - self._names or self._names - found)[0]
            raise InputError(
                f"--overwrite replaces only a folder that an earlier run of this tool made; this one "
                f"{'also holds' if odd in found else 'lacks'} {odd}. Received: --output_dir={self.path}"
            )

    @contextlib.contextmanager
    def _workplace(self) -> Iterator[pathlib.Path]:
        """A hidden folder beside the final one, on the same file system, so that a rename is enough."""
        made = [folder for folder in (self.path.parent, *self.path.parent.parents) if not folder.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=PREFIX, dir=self.path.parent, ignore_cleanup_errors=True) as name:
                yield pathlib.Path(name)
        finally:
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
