"""What a model file says about itself: the Keras version that saved it, and the configuration of its model."""

import json
import pathlib
import zipfile
from typing import Any

import h5py

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.models.keras2.saved_model import SavedModel

_METADATA, _CONFIG = "metadata.json", "config.json"


def read_version(path: pathlib.Path) -> str | None:
    """The Keras version that saved the file, such as '2.15.0' or '2.3.0-tf'; None where the file does not say.

    Args:
        path: a `.keras` archive, an HDF5 file, or the folder of a SavedModel with Keras's layers.

    Raises:
        OSError, KeyError, ValueError, zipfile.BadZipFile: not a complete file of its kind.
    """
    if path.is_dir():
        version = SavedModel(path).root.get("keras_version")
    elif path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read(_METADATA))
        version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    else:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version")
    return _decode(version) if isinstance(version, bytes | str) else None


def is_keras2(version: str | None) -> bool:
    """Whether a version is one of Keras 2."""
    return version is not None and version.split(".")[0] == "2"


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The model's configuration: 'class_name', 'config', and what else that version of Keras wrote beside them.

    Raises:
        InputError: the file has none, or what it has is no JSON object.
        OSError, KeyError, zipfile.BadZipFile: not a complete file of its kind.
    """
    if path.is_dir():
        return SavedModel(path).root
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            text: bytes | str | None = archive.read(_CONFIG)
    else:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
    if text is None:
        raise InputError(f"--model must be a whole model; this file holds weights alone. Received: {path}")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"--model must hold its configuration as JSON ({say_why(error)}). Received: {path}") from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict | list):
        raise InputError(f"--model must hold the configuration of a Keras model. Received: {path}")
    return config


def read_loss(path: pathlib.Path) -> object:
    """The loss that the model was compiled with, as the file spells it; None where it does not say.

    Raises: as `read_config` does.
    """
    if path.is_dir() or path.suffix == ".keras":
        config = read_config(path)
        compiled = config.get("compile_config") or config.get("training_config")
    else:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("training_config")
        compiled = None if text is None else json.loads(text)
    return compiled.get("loss") if isinstance(compiled, dict) else None


def _decode(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text
