"""Weights that Keras saved, read into an architecture of the zoo.

Keras 3 writes them to `.weights.h5` and inside `.keras` archives, Keras 2 and `model.save("....h5")` to `.h5`. Nothing
but arrays is read: the configuration beside them is never deserialized here, so it may be one that Keras 3 rejects.
"""

import contextlib
import io
import math
import pathlib
import zipfile
from collections.abc import Iterator

import h5py
import keras

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.models.keras2.hdf5 import read_layers
from reflow_tf.models.zoo.architectures import Architecture

SUFFIXES = (".weights.h5", ".keras", ".h5")
_ARCHIVE_MEMBER = "model.weights.h5"


def build_from_keras_weights(architecture: Architecture, path: pathlib.Path, image_size: int) -> keras.Model:
    """Builds the architecture with as many classes as the file has, and loads the file.

    Args:
        architecture: what to build.
        path: file that ends in one of `SUFFIXES`.
        image_size: height and width of the input in pixels.

    Raises:
        InputError: unreadable file, or weights of another architecture.
    """
    try:
        with _open(path) as file:
            shapes = _read_legacy_shapes(file) if _is_legacy(path) else _read_shapes(file)
    except Exception as error:  # h5py and zipfile raise OSError, KeyError, RuntimeError, NotImplementedError, ...
        raise InputError(
            f"--weights must be a complete file of Keras weights ({say_why(error)}). Received: {path}"
        ) from error
    model = architecture.build(image_size, architecture.num_classes)
    last = next(reversed(shapes), "") if _is_legacy(path) else f"layers/{_locate_classifier(model)}/vars/1"
    num_classes = (shapes.get(last) or (architecture.num_classes,))[-1]
    if num_classes != architecture.num_classes:
        model = architecture.build(image_size, num_classes)
    stored, wanted = sum(math.prod(shape) for shape in shapes.values()), model.count_params()
    advice = "a whole model of another width or depth belongs in --model"
    if stored != wanted:
        raise InputError(
            f"--weights must hold the {wanted:,} values of {architecture.name} ({advice}). Received: {path} with "
            f"{stored:,} values"
        )
    try:
        model.load_weights(path)
    except Exception as error:  # Keras raises ValueError, KeyError or OSError, depending on where the files part ways
        raise InputError(
            f"--weights must fit {architecture.name} ({advice}): {say_why(error)}. Received: {path}"
        ) from error
    return model


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[h5py.File]:
    """Opens the HDF5 file, or the one inside a `.keras` archive."""
    content: pathlib.Path | io.BytesIO = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(archive.read(_ARCHIVE_MEMBER))
    with h5py.File(content, "r") as file:
        yield file


def _is_legacy(path: pathlib.Path) -> bool:
    """Whether Keras reads the file as Keras 2 wrote it: it goes by the name alone."""
    return path.suffix == ".h5" and not path.name.endswith(".weights.h5")


def _read_legacy_shapes(file: h5py.File) -> dict[str, tuple[int, ...]]:
    """Path inside the file -> shape, of every weight, in the order of the layers."""
    return {weight.name: weight.shape for _, weights in read_layers(file) for weight in weights}


def _read_shapes(file: h5py.File) -> dict[str, tuple[int, ...]]:
    """Path inside the file -> shape, of every weight; seeds and optimizer state are no weights."""
    shapes = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        is_weight = isinstance(item, h5py.Dataset) and not name.startswith("optimizer") and "seed_generator" not in name
        if is_weight:
            shapes[name] = item.shape

    file.visititems(visit)
    return shapes


def _locate_classifier(model: keras.Model) -> str:
    """Name under which Keras stores the last layer with weights: its class, numbered among its like.

    Source: keras.src.saving.saving_lib._save_container_state.
    """
    last = [layer for layer in model.layers if layer.weights][-1]
    alike = [layer for layer in model.layers if type(layer) is type(last)]
    stem = {keras.layers.Dense: "dense", keras.layers.Conv2D: "conv2d"}[type(last)]
    index = alike.index(last)
    return f"{stem}_{index}" if index else stem
