"""Weights that PyTorch saved, brought into a Keras model by name: every tensor used once, every shape checked."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import safetensors
import safetensors.numpy

from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt", ".th")  # .th: the ResNet-20 of akamaster
SUFFIXES = (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)
_NUM_LISTED = 5

_TORCH_NAMES = {
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@dataclasses.dataclass(frozen=True)
class TorchLayout:
    """How one family of PyTorch checkpoints names its tensors, and the Keras network that computes the same.

    Attributes:
        title: what a person would call these checkpoints.
        modules: Keras layer name -> PyTorch module name, for every layer that has weights.
        classifier: the module whose number of outputs is the number of classes.
        build: (image_size, num_classes) -> the Keras network.
        preprocessing: what the weights were trained with.
    """

    title: str
    modules: Mapping[str, str]
    classifier: str
    build: Callable[[int, int], keras.Model]
    preprocessing: Preprocessing


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dict: PyTorch tensor name -> array in PyTorch's axis order.

    A `{'state_dict': ...}` wrapper (PyTorch's own files only) and the `module.` prefix of DataParallel are taken off.

    Raises:
        InputError: unreadable file, not a state dict, or a PyTorch file without PyTorch to read it.
    """
    if path.suffix == SAFETENSORS_SUFFIX:
        try:
            state = safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"--weights must be a readable .safetensors file ({say_why(error)}). Received: {path}"
            ) from error
    else:
        state = _read_pickle(path)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return state


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a `.pth`, `.pt` or `.th` with weights_only=True, which executes no code of the file."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"A {path.suffix} file needs PyTorch to read it: pip install torch, or convert it to .safetensors where "
            f"PyTorch is installed (safetensors.torch.save_file). Received: {path}"
        ) from error
    try:
        state: Any = torch.load(path, weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, EOFError, KeyError, BadZipFile, ...
        # The error's own text is left out: it advises weights_only=False, which would run the file's code.
        raise InputError(
            "--weights must be a complete PyTorch file of plain tensors; reading it with weights_only=True fails "
            f"({type(error).__name__}). Received: {path}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(
            f"--weights must hold a state dict (name -> tensor), alone or under 'state_dict'. Received: {path}"
        )
    return {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in state.items()}


def read_num_classes(state: Mapping[str, np.ndarray], layout: TorchLayout, path: pathlib.Path) -> int:
    """Number of classes, from the classifier's (classes, features) weight.

    Raises:
        InputError: there is no such weight, so the file has another layout.
    """
    name = f"{layout.classifier}.weight"
    if name not in state or state[name].ndim != 2:
        raise InputError(
            f"--weights must be in the layout of {layout.title}, whose classifier is a matrix named {name!r}. "
            f"Received: {path} with tensors {_list_first(sorted(state))}"
        )
    return int(state[name].shape[0])


def assign_state_dict(
    model: keras.Model, state: Mapping[str, np.ndarray], layout: TorchLayout, path: pathlib.Path
) -> None:
    """Writes every tensor of `state` into the variable of its name; nothing is written unless everything fits.

    BatchNorm's `num_batches_tracked` has no counterpart in Keras and is the only tensor that is left out.

    Raises:
        InputError: tensors missing, unexpected, of another shape or not floating point; the message lists the first.
    """
    targets = _name_targets(model, layout)
    counters = {f"{module}.num_batches_tracked" for module in layout.modules.values()}
    problems = [f"missing {name}" for name in targets if name not in state]
    arrays = {}
    for name, (variable, axes) in targets.items():
        if name not in state:
            continue
        array = state[name]
        wanted = tuple(variable.shape[axes.index(axis)] for axis in range(len(axes)))
        if array.shape != wanted:
            problems.append(f"{name} has shape {array.shape} where {wanted} is required")
        elif array.dtype.kind in "iubc":
            problems.append(f"{name} is {array.dtype} where floating point is required")
        else:
            arrays[name] = np.transpose(array.astype(np.float32), axes)
    problems += [f"unexpected {name}" for name in state if name not in targets and name not in counters]
    if problems:
        raise InputError(
            f"--weights must fit {layout.title}; {len(problems)} of its tensors do not: {_list_first(problems)}. "
            f"Received: {path}"
        )
    for name, (variable, _) in targets.items():
        variable.assign(arrays[name])


def _name_targets(model: keras.Model, layout: TorchLayout) -> dict[str, tuple[keras.Variable, tuple[int, ...]]]:
    """PyTorch tensor name -> (variable, axes): `variable` = transpose(tensor, axes)."""
    targets = {}
    for layer in model.layers:
        for variable in layer.weights:
            tensor = "weight" if variable.name == "kernel" else _TORCH_NAMES[variable.name]
            targets[f"{layout.modules[layer.name]}.{tensor}"] = (variable, _transposition(layer, variable))
    return targets


def _transposition(layer: keras.layers.Layer, variable: keras.Variable) -> tuple[int, ...]:
    """Axes that turn PyTorch's tensor into Keras' variable."""
    if variable.name != "kernel":
        return (0,)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return (2, 3, 0, 1)  # (channels, 1, h, w) -> (h, w, channels, 1)
    if isinstance(layer, keras.layers.Conv2D):
        return (2, 3, 1, 0)  # (output, input, h, w) -> (h, w, input, output)
    return (1, 0)  # Dense: (output, input) -> (input, output)


def _list_first(items: list[str]) -> str:
    listed = ", ".join(items[:_NUM_LISTED])
    return listed if len(items) <= _NUM_LISTED else f"{listed}, and {len(items) - _NUM_LISTED} more"
