"""From what `--model` says, a zoo name or a file, to one Keras model that is known to be usable."""

import dataclasses
import difflib
import os
import pathlib
import re
import zipfile

import h5py
import keras
import numpy as np

from reflow_tf.data.as_stored import IMAGE_RANK, AsStored, Part, Preparation, spell_batch
from reflow_tf.data.preprocessing import Preprocessing, check_scaling
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.models.channel_order import check_channel_order
from reflow_tf.models.custom_objects import register
from reflow_tf.models.inference import inputs_of, list_output_names
from reflow_tf.models.keras2.files import is_keras2, read_loss, read_version
from reflow_tf.models.keras2.loading import load_keras2
from reflow_tf.models.keras2.saved_model import METADATA
from reflow_tf.models.predictions import count_sigmoids, find_task, name_predictions
from reflow_tf.models.walking import walk
from reflow_tf.models.zoo.architectures import ARCHITECTURES
from reflow_tf.models.zoo.pretrained import build_pretrained, choose_weights
from reflow_tf.models.zoo.resizing import resize_input
from reflow_tf.task import Task

AUTO = "auto"
_NUMBERS = ("float", "bfloat", "int", "uint", "bool")
SUFFIXES = (".keras", ".h5")
_UNKNOWN_CLASS = re.compile(r"(?:Could not locate \w+|Unknown \w+:) '([^']+)'")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model, its weights finite, and what is known about its images.

    Attributes:
        model: usable as `model(x, training=False)`.
        name: the zoo name, or the file's name without its suffix.
        preprocessing: image -> network input, with `size` None where the model leaves it open; for a model that takes
            no images, its own shape; of several inputs a row of numbers.
        num_classes: length of the output's last axis, 2 for a single sigmoid; None where it is not fixed.
        positions: the output's axes between the first and the last, where it is a map of classes; None for open ones.
        default_data: name of embedded data that the weights know, if any.
        weights: what the zoo's network was filled with, as --weights names it; None for a file, which has its own.
        loss: that it was compiled with, as its file spells it; None where nothing is known.
    """

    model: keras.Model
    name: str
    preprocessing: Preparation
    num_classes: int | None
    positions: tuple[int | None, ...] = ()
    default_data: str | None = None
    weights: str | None = None
    loss: object = None

    def read_as(self, task: Task | None) -> "LoadedModel":
        """The same with classes and positions of what its output is taken for, as far as that is known."""
        num_classes, positions = name_predictions(self.num_classes, self.positions, task)
        return dataclasses.replace(self, num_classes=num_classes, positions=positions)

    def find_task(self) -> Task | None:
        """What it says of its only output itself, see `predictions.find_task`."""
        return find_task(self.model, self.sample_shape, self.loss)

    def count_sigmoids(self) -> int:
        """Of its only output, see `predictions.count_sigmoids`."""
        return count_sigmoids(self.model, self.sample_shape)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of each output, in their order."""
        return list_output_names(self.model)

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        """Shape of one input as the network takes it; None for an axis that it leaves open."""
        if isinstance(self.preprocessing, AsStored):
            return self.preprocessing.shape
        height, width = self.preprocessing.size or (None, None)
        return height, width, self.preprocessing.channels


def load_model(
    model: str,
    *,
    weights: str | None = None,
    preprocess: str = AUTO,
    image_size: int | None = None,
    custom_objects: str | None = None,
) -> LoadedModel:
    """Builds a model of the zoo, or loads a model from a file.

    Args:
        model: a name of `ARCHITECTURES`, or the path of a `.keras` or Keras `.h5` file.
        weights: for a zoo name: 'fashion_mnist', 'imagenet', 'random' or a path; see `build_pretrained`.
        preprocess: as `Preprocessing.scaling`, or 'auto': what the zoo knows; for a file, 'none' (nothing is known of
            it) and no crop margin.
        image_size: height and width in pixels, where the input size is free: the zoo, or a file whose model leaves
            height and width open.
        custom_objects: for a file: a module with the user's own layers, as `custom_objects.register` takes it.

    Raises:
        InputError: unknown name, unusable file, options that do not go together, weights that are not finite.
    """
    if preprocess != AUTO:
        check_scaling(preprocess)
    if model in ARCHITECTURES:
        if (order := keras.config.image_data_format()) != "channels_last":
            raise InputError(
                f"The zoo's networks have their channels last: let image_data_format in ~/.keras/keras.json say so. "
                f"Received: {order}"
            )
        if custom_objects is not None:
            raise InputError(
                f"--custom_objects belongs to a model file. Received: {custom_objects}, and --model={model}"
            )
        weights = weights or choose_weights(ARCHITECTURES[model])
        built = build_pretrained(ARCHITECTURES[model], weights, image_size)
        num_classes = built.model.output_shape[-1]
        loaded = LoadedModel(
            built.model, model, built.preprocessing, num_classes, default_data=built.default_data, weights=weights
        )
    elif _is_path(model):
        if weights is not None:
            raise InputError(f"--weights belongs to a zoo name; a model file has its own. Received: {weights}")
        if custom_objects is not None:
            register(custom_objects)
        loaded = _load_file(pathlib.Path(model).expanduser(), image_size)
    else:
        raise InputError(f"--model must be {_list_choices()}.{_suggest(model)} Received: {model}")
    check_finite(loaded.model)
    check_channel_order(loaded.model)
    if isinstance(loaded.preprocessing, AsStored):
        if preprocess not in (AUTO, "none"):
            raise InputError(
                f"--preprocess scales the pixels of images, and {model} takes inputs of shape "
                f"{spell_batch(loaded.preprocessing.shape)}: give it numbers as it takes them. Received: {preprocess}"
            )
    elif preprocess != AUTO:
        scaled = dataclasses.replace(loaded.preprocessing, scaling=preprocess)
        loaded = dataclasses.replace(loaded, preprocessing=scaled)
    return loaded


def check_kind(model: keras.Model) -> None:
    """Refuses models that are none of those that this package is made for.

    Raises:
        InputError: inputs or outputs that are no numbers, or have no axis of samples; layers that keep a state between
            batches; weights that Keras itself quantized.
    """
    for what, tensors in (("input", inputs_of(model)), ("output", getattr(model, "outputs", None) or [])):
        for tensor in tensors:
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            if not dtype.startswith(_NUMBERS):
                raise InputError(f"Every {what} must be of real numbers. Received: {tensor.name} of {dtype}")
            is_only_input = what == "input" and len(tensors) == 1
            if len(tensor.shape) < (2 if is_only_input else 1):
                raise InputError(
                    f"Every {what} must have an axis of samples"
                    f"{', and the only one another: take keras.Input((1,))' if is_only_input else ''}. "
                    f"Received: {tensor.name} of shape {tuple(tensor.shape)}"
                )
    for placed in walk(model) if model.built else ():  # others are refused where their inputs are read
        if isinstance(placed.layer, keras.layers.RNN) and placed.layer.stateful:
            raise InputError(
                f"Layers must not keep a state from one batch to the next: build the model with stateful=False and "
                f"load the weights into it. Received: {placed.path}"
            )
        if getattr(placed.layer, "quantization_mode", None) is not None:
            raise InputError(
                f"Weights must be floats, which --quantize turns into integers: give the model that Keras had not "
                f"quantized yet. Received: {placed.path}, {placed.layer.quantization_mode}"
            )


def check_finite(model: keras.Model) -> None:
    """Refuses a model with weights that are NaN or infinite.

    Raises:
        InputError: names the first such layer and variable.
    """
    for variable in model.weights:
        values = keras.ops.convert_to_numpy(variable.value)
        num_bad = int(np.count_nonzero(~np.isfinite(values)))
        if num_bad:
            layer, _, name = variable.path.rpartition("/")
            raise InputError(
                f"Every weight must be finite; in layer {layer!r}, variable {name!r} is not. Received: {num_bad} of "
                f"{values.size} values NaN or infinite"
            )


def _list_choices() -> str:
    return f"one of {', '.join(ARCHITECTURES)}, or the path of a .keras or Keras .h5 file, or of a Keras 2 SavedModel"


def _suggest(name: str) -> str:
    close = difflib.get_close_matches(name, ARCHITECTURES, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _is_path(model: str) -> bool:
    return os.sep in model or bool(pathlib.Path(model).suffix) or pathlib.Path(model).exists()


def _load_file(path: pathlib.Path, image_size: int | None) -> LoadedModel:
    _check_file(path)
    model = _deserialize(path)
    check_kind(model)
    parts = _read_parts(model, path) if len(inputs_of(model)) > 1 else ()
    shape = (sum(part.size for part in parts),) if parts else _read_input_shape(model, path)
    *positions, num_classes = _read_output_shape(model, shape) or (None,)
    if num_classes == 1 and count_sigmoids(model, shape):
        num_classes = 2
    if image_size is not None:
        if parts:
            raise InputError(f"--image_size is only for models with one input. Received: {image_size}")
        model = _fix_size(model, shape, image_size, path)
    preparation: Preparation = AsStored(shape, parts)
    if len(shape) == IMAGE_RANK:
        height, width, channels = shape
        size = None if height is None or width is None else (height, width)
        size = size if image_size is None else (image_size, image_size)
        preparation = Preprocessing(size, channels=3 if channels is None else channels, crop_fraction=1.0)
    return LoadedModel(model, path.stem, preparation, num_classes, tuple(positions), loss=read_loss(path))


def _read_parts(model: keras.Model, path: pathlib.Path) -> tuple[Part, ...]:
    """The inputs of a model with several, which are one row of numbers a sample."""
    parts = []
    for tensor in inputs_of(model):
        shape = tuple(tensor.shape[1:])
        if None in shape:
            raise InputError(
                f"--model must fix every dimension of its inputs where it has several. "
                f"Received: {path} with {tensor.name} of shape {spell_batch(shape)}"
            )
        parts.append(Part(tensor.name, shape, keras.backend.standardize_dtype(tensor.dtype)))
    return tuple(parts)


def _check_file(path: pathlib.Path) -> None:
    """Refuses, by name and container, what cannot be a Keras model."""
    if path.name.endswith(".weights.h5"):
        raise InputError(
            f"--model must be a whole model; weights alone go with a zoo name: --model=NAME --weights={path}. "
            f"Received: {path}"
        )
    if path.is_dir():
        _check_folder(path)
        return
    if path.suffix == ".tflite":
        raise InputError(
            f"--model must have Keras's layers here, which a .tflite file has no more: explain, evaluate, benchmark, "
            f"frontier, device_kit, firmware and rewrite take it as it is. Received: {path}"
        )
    if path.suffix not in SUFFIXES:
        raise InputError(f"--model must be {_list_choices()}.{_suggest(path.name)} Received: {path}")
    if not path.exists():
        raise InputError(f"--model must be an existing file. Received: {path}")
    if not os.access(path, os.R_OK):
        raise InputError(f"--model must be a readable file. Received: {path}")
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise InputError(
            f"--model must be a complete .keras file, which is a zip archive; this is none. Received: {path}"
        )
    if path.suffix == ".h5" and not h5py.is_hdf5(path):
        raise InputError(f"--model must be a complete HDF5 file; this is none. Received: {path}")


def _check_folder(path: pathlib.Path) -> None:
    """Refuses a folder that is no SavedModel with Keras's layers, as Keras 2 writes them."""
    if not (path / "saved_model.pb").is_file():
        raise InputError(f"--model must be a file, or the folder of a SavedModel; this is neither. Received: {path}")
    if not (path / METADATA).is_file():
        raise InputError(
            f"--model must have Keras's layers, which this SavedModel does not ({METADATA} is missing; Keras 3's "
            f"model.export and TensorFlow's converters write none): save the model as .keras where it was built. A "
            f".tflite made of it goes into explain, evaluate, benchmark, frontier, device_kit and rewrite as it is. "
            f"Received: {path}"
        )


def _deserialize(path: pathlib.Path) -> keras.Model:
    """Loads the file with Keras' safe mode on; what Keras 2 saved is translated."""
    try:
        version = read_version(path)
        if version is not None and is_keras2(version):
            model = load_keras2(path, version)
        else:
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # Keras raises whatever class the part that failed happens to raise
        raise InputError(f"{_explain(error)} Received: {path}") from error
    if not isinstance(model, keras.Model):
        raise InputError(f"--model must hold a Keras model. Received: {path} with {type(model).__name__}")
    return model


def _explain(error: Exception) -> str:
    """One sentence about why Keras did not load a file."""
    reason = " ".join(str(error).split())
    if "lambda" in reason.lower() and ("safe_mode" in reason or "unsafe" in reason):
        return (
            "--model holds a Lambda layer, which is Python code that loading would run. Keras' safe mode refuses it, "
            "and this tool never switches safe mode off: replace the Lambda by a registered layer."
        )
    if unknown := _UNKNOWN_CLASS.search(reason):
        return (
            "--model must be made of Keras' own classes, or of classes registered in this process (in a module that "
            f"--custom_objects names, or by keras.saving.register_keras_serializable); {unknown[1]!r} is neither."
        )
    return f"--model must be a complete Keras model ({say_why(error)})."


def _read_input_shape(model: keras.Model, path: pathlib.Path) -> tuple[int | None, ...]:
    """Shape of the only input, without the batch axis."""
    if inputs := inputs_of(model):
        return tuple(inputs[0].shape[1:])
    shape = (model.get_build_config() or {}).get("input_shape") if model.built else None
    if not isinstance(shape, list | tuple) or not all(axis is None or isinstance(axis, int) for axis in shape):
        raise InputError(
            "--model must have been built on, or called with, exactly one input tensor before it was saved. "
            f"Received: {path}, whose input shape is {shape}"
        )
    return tuple(shape[1:])


def _read_output_shape(model: keras.Model, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Shape of the only output, without the batch axis; () where there are several, which are no classes."""
    outputs = getattr(model, "outputs", None)
    if outputs is None:  # a subclassed model knows its output only when it is called
        outputs = keras.tree.flatten(model.compute_output_spec(keras.KerasTensor((None, *shape))))
        if len(outputs) != 1:
            raise InputError(
                f"--model must have one output, or be functional. Received: {model.name}, of class "
                f"{type(model).__name__}, with {len(outputs)}"
            )
    return tuple(outputs[0].shape[1:]) if len(outputs) == 1 else ()


def _fix_size(model: keras.Model, shape: tuple[int | None, ...], image_size: int, path: pathlib.Path) -> keras.Model:
    """Gives a model that leaves height and width open a fixed size."""
    if image_size < 1:
        raise InputError(f"--image_size must be at least 1 pixel. Received: {image_size}")
    if len(shape) != IMAGE_RANK or shape[:2] != (None, None):
        raise InputError(
            f"--image_size is only for models that leave height and width open; {path} takes inputs of shape {shape}. "
            f"Received: {image_size}"
        )
    if getattr(model, "inputs", None) is None:
        return model  # a subclassed model has no graph to rebuild; it takes whatever size it is called with
    return resize_input(model, image_size)
