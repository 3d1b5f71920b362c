"""Jobs that go on where they were interrupted: what they depend on, and how they write what is done so far."""

import contextlib
import fcntl
import hashlib
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reflow_tf.data.batches import ImageStream
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.models.loading import LoadedModel
from reflow_tf.models.surgery import read_bits
from reflow_tf.report.folder import OutputFolder


def open_folder(job: JobConfig, names: Collection[str]) -> OutputFolder:
    """The job's folder, which may hold what an earlier run wrote, under these names, and nothing else.

    Raises:
        InputError: it holds something else, or something that the user brought.
    """
    folder = OutputFolder(job.output_dir, frozenset(), True, optional=frozenset({*names, *map(name_part, names)}))
    folder.require_outside(job.brought)
    return folder


@contextlib.contextmanager
def locked(folder: pathlib.Path, name: str, what: str) -> Iterator[None]:
    """Two jobs in one folder would write over each other; the lock of one that was killed is free.

    A folder that was made for the lock and holds nothing else in the end goes away again.

    Args:
        folder: the job's.
        name: of the file that is locked in it.
        what: the job is.

    Raises:
        InputError: another one is at work there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, folder, name, made)
        file = stack.enter_context((folder / name).open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"--output_dir must be a folder in which no other {what} is running. Received: {folder}"
            ) from error
        yield


def _remove_empty(folder: pathlib.Path, lock: str, made: Sequence[pathlib.Path]) -> None:
    if not made or list(folder.iterdir()) != [folder / lock]:
        return
    (folder / lock).unlink()
    for path in made:
        with contextlib.suppress(OSError):  # another job's is in it
            path.rmdir()


def write_texts(folder: pathlib.Path, texts: Mapping[str, str]) -> None:
    """Each file is there whole, or as it was: it is written beside its place and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        part = folder / name_part(name)
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)


def name_part(name: str) -> str:
    """What stands where a write was cut off between the two names; the next run writes over it."""
    return f"{name}.part"


def describe_settings(job: JobConfig, loaded: LoadedModel, version: str, *sets: ImageStream) -> dict[str, Any]:
    """All that whatever is measured on these images depends on beside what the job tries.

    Args:
        job: whose model and images they are.
        loaded: the model.
        version: of this package.
        sets: the images.
    """
    own = {"weights": loaded.weights, "data": job.data or loaded.default_data}
    return _describe(job, own, version, _hash_network(loaded), sets)


def describe_file_settings(job: JobConfig, content: bytes, version: str, *sets: ImageStream) -> dict[str, Any]:
    """The same where the job's model is a finished file, `content`."""
    return _describe(job, {}, version, hashlib.sha256(content), sets)


def _describe(
    job: JobConfig, own: dict[str, Any], version: str, digest: "hashlib._Hash", sets: Iterable[ImageStream]
) -> dict[str, Any]:
    """The flags, and SHA-256 of the network, the images and their labels: a file may change behind its name."""
    names = ("model", "data", "eval_data", "class_names", "preprocess", "image_size", "custom_objects")
    numbers = ("calibration_samples", "batch_size", "seed")
    for images in sets:
        for index in images.indices:
            digest.update(images.source.digest(int(index)))
        labels = images.source.labels
        digest.update(b"" if labels is None else np.asarray(labels)[images.indices].tobytes())
    given = {name: getattr(job, name) for name in (*names, *numbers)}
    return {**given, "weights": None, **own, "reflow_tf": version, "sha256": digest.hexdigest()}


def _hash_network(loaded: LoadedModel) -> "hashlib._Hash":
    found = hashlib.sha256()
    if loaded.weights is None:  # a file; what the zoo builds is known by its name, and Keras numbers its layers anew
        try:
            found.update(loaded.model.to_json().encode())
        except Exception:  # whatever a layer's get_config raises: a subclassed model tells its weights alone
            found.update(type(loaded.model).__qualname__.encode())
    for bits in read_bits(loaded.model.weights):
        found.update(bits)
    return found


def require_same(settings: Mapping[str, Any], before: Mapping[str, Any], what: str, folder: pathlib.Path) -> None:
    """Checks that an earlier run had these settings; raises InputError, which names one that it had not.

    Args:
        settings: of this run.
        before: of the earlier one.
        what: is in the folder.
        folder: its place.
    """
    for name in {**settings, **before}:
        if settings.get(name) != before.get(name):
            shown = "another network or other images" if name == "sha256" else f"{name}={before.get(name)}"
            raise InputError(
                f"--output_dir holds {what} with other settings, {shown}: name another folder, or --overwrite to "
                f"start anew. Received: {folder}"
            )
