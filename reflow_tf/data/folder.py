"""Images in a folder: one sub-folder a class, or plain images without labels.

Names that start with a dot and files that are no images are passed over; symbolic links are followed; the order is the
sorted order of the paths, so it does not depend on the file system.
"""

import hashlib
import os
from pathlib import Path
from typing import Self

import numpy as np

from reflow_tf.data import decoding
from reflow_tf.data.classes import check_labels, index_of_class
from reflow_tf.data.sources import ImageSource, Labels, SourceRequest
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why

IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
_SIZED = 1000  # files whose sizes tell two folders apart


class FolderSource(ImageSource):
    """Image files, decoded when asked for. `digest` hashes the bytes of the file, which needs no decoding.

    Attributes:
        paths: the image files, in the source's order.
    """

    def __init__(self, paths: list[Path], labels: np.ndarray | None, classes: np.ndarray | None = None):
        self.paths = paths
        self.labels = labels
        self.classes = classes

    @classmethod
    def accepts(cls, text: str) -> bool:
        return Path(text).expanduser().is_dir()

    @classmethod
    def open(cls, request: SourceRequest) -> Self:
        """Lists the folder.

        Raises:
            InputError: if the folder is empty or holds no image; mixes plain images and class sub-folders; has images
                of one class only; has a sub-folder that `--class_names` does not name; or, without `--class_names`,
                if the number of sub-folders is not the number of the model's classes.
        """
        folder = Path(request.text).expanduser()
        entries = _visible(folder)
        if not entries:
            raise InputError(f"a data folder must hold images. Received: the empty folder {folder}")
        plain = [entry for entry in entries if _is_image(entry)]
        classes = {entry.name: _find_images(entry) for entry in entries if entry.is_dir()}
        if not any(classes.values()):
            if not plain:
                raise InputError(
                    f"a data folder must hold image files ({' '.join(IMAGE_SUFFIXES)}). Received: {folder}, without any"
                )
            return cls(plain, None)
        if plain:
            raise InputError(
                f"a data folder must hold class sub-folders or plain images, not both. "
                f"Received: {folder}, with the sub-folder {next(iter(classes))!r} and the image {plain[0].name!r}"
            )
        paths = [path for images in classes.values() for path in images]
        counts = [len(images) for images in classes.values()]
        numbers = np.repeat(_class_indices(list(classes), folder, request), counts)
        if request.labels is Labels.NONE:
            return cls(paths, None, numbers)
        return cls(paths, check_labels(numbers, request.num_classes, str(folder)))

    def __len__(self) -> int:
        return len(self.paths)

    def name_of(self, index: int) -> str:
        return str(self.paths[index])

    def image(self, index: int) -> np.ndarray:
        try:
            with self.paths[index].open("rb") as file:
                return decoding.decode_image(file, self.name_of(index))
        except OSError as error:
            raise decoding.unreadable(self.name_of(index), error) from error

    def digest(self, index: int) -> bytes:
        try:
            with self.paths[index].open("rb") as file:
                return hashlib.file_digest(file, "blake2b").digest()
        except OSError as error:
            raise decoding.unreadable(self.name_of(index), error) from error

    def fingerprint(self) -> bytes:
        """All names, and the sizes of some files, evenly spread: nothing is read.

        Names are absolute, as `remember` makes a place: a worker opens by them what was opened here by relative ones.
        """
        names = "\n".join(map(os.path.abspath, self.paths))
        content = hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=16)
        for place in np.linspace(0, len(self.paths) - 1, min(_SIZED, len(self.paths))).astype(int):
            try:
                content.update(self.paths[place].stat().st_size.to_bytes(8))
            except OSError:  # it went away since; who reads it says so
                content.update(b"gone")
        content.update(b"" if self.labels is None else self.labels.tobytes())
        return content.digest()

    def size_of(self, index: int) -> tuple[int, int]:
        try:
            with self.paths[index].open("rb") as file:
                return decoding.read_size(file, self.name_of(index))
        except OSError as error:
            raise decoding.unreadable(self.name_of(index), error) from error


def _class_indices(sub_folders: list[str], folder: Path, request: SourceRequest) -> list[int]:
    """The network's output for each sub-folder; where it names no classes, their order."""
    if request.class_names is not None:
        return [index_of_class(name, request.class_names, str(folder)) for name in sub_folders]
    are_outputs = request.labels is not Labels.NONE
    if are_outputs and request.num_classes is not None and len(sub_folders) != request.num_classes:
        raise InputError(
            f"without --class_names, a data folder must have one sub-folder for each of the model's "
            f"{request.num_classes} classes. A folder with only some of them needs --class_names=FILE, one class "
            f"a line in the order of the model's outputs; a model that names no classes, --task=fidelity. "
            f"Received: {len(sub_folders)} sub-folders in {folder}"
        )
    return list(range(len(sub_folders)))


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"a data folder must be readable ({say_why(error)}). Received: {folder}") from error


def _is_image(path: Path) -> bool:
    # A dangling link counts: it is reported as unreadable by its name instead of being passed over.
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or not path.exists())


def _find_images(folder: Path) -> list[Path]:
    """All image files below `folder`, sorted; each real folder is visited once, so links may form a loop."""
    images: list[Path] = []
    visited: set[str] = set()
    for here, sub_folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(here))
        sub_folders[:] = [
            name
            for name in sub_folders
            if not name.startswith(".") and os.path.realpath(os.path.join(here, name)) not in visited
        ]
        images += [Path(here, name) for name in files if not name.startswith(".") and _is_image(Path(here, name))]
    return sorted(images)
