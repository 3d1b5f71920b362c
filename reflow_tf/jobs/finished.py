"""A finished model of any form: how it is run over inputs, how those are prepared for it, and what it gives."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import numpy as np

from reflow_tf.crew import count_threads
from reflow_tf.data.as_stored import IMAGE_RANK, AsStored, Part, Preparation, spell_batch
from reflow_tf.data.loading import load_evaluation
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.errors import InputError
from reflow_tf.export.constants import has_bitmaps
from reflow_tf.export.operators import find_last_kind, read_operators
from reflow_tf.foreign import say_why
from reflow_tf.job_config import EvaluateConfig
from reflow_tf.jobs.scoring import Runner, spread
from reflow_tf.models.carrying import Address, Carried
from reflow_tf.models.inference import name_outputs, unique
from reflow_tf.models.loading import load_model
from reflow_tf.models.observation import OneByOne, run
from reflow_tf.models.packing import count_outputs
from reflow_tf.models.predictions import name_predictions, run_rows
from reflow_tf.runtimes.litert import LiteRT, read_tflite
from reflow_tf.runtimes.runtime import Runtime
from reflow_tf.runtimes.tflm.runtime import TFLM
from reflow_tf.targets.operators import OperatorGraph
from reflow_tf.task import Task

MOST_THREADS = 2
"""Of LiteRT, for one file."""

_RUNTIMES: Mapping[str, Callable[[bytes], Runtime]] = {
    "litert": lambda content: LiteRT(content, min(MOST_THREADS, count_threads())),
    "tflm": TFLM,
}


@dataclasses.dataclass(frozen=True)
class Finished:
    """A model of any form.

    Attributes:
        run_as: what its outputs are taken for -> what runs it.
        preprocessing: what its inputs look like.
        num_classes: length of the output's last axis, 2 for a single sigmoid; None where it is not fixed.
        positions: the output's axes between the first and the last.
        name_outputs: given an input (1, *sample): name of each output -> its shape, without the batch.
        num_outputs: how many there are.
        find_task: what it says of its only output itself; None where that may be anything.
        count_sigmoids: length of the last axis of its only output where that is a sigmoid; else 0.
    """

    run_as: Callable[[Task], Runner]
    preprocessing: Preparation
    num_classes: int | None
    positions: tuple[int | None, ...]
    name_outputs: Callable[[np.ndarray], Mapping[str, tuple[int, ...]]]
    num_outputs: int
    find_task: Callable[[], Task | None]
    count_sigmoids: Callable[[], int]

    def read_as(self, task: Task | None) -> "Finished":
        """The same with classes and positions of what its output is taken for, as far as that is known."""
        num_classes, positions = name_predictions(self.num_classes, self.positions, task)
        return dataclasses.replace(self, num_classes=num_classes, positions=positions)


def open_finished(config: EvaluateConfig) -> Finished:
    """The model that `config` names.

    Raises:
        InputError: it cannot be loaded, or nothing can run it here.
    """
    return _open_file(config) if config.model.endswith(".tflite") else _open_keras(config)


def _open_keras(config: EvaluateConfig) -> Finished:
    loaded = load_model(config.model, preprocess=config.preprocess, **config.model_options)
    carried = Carried(loaded.model, Address.of(config.model, **config.model_options))
    return Finished(
        functools.partial(KerasRunner, carried),
        _recorded_preprocessing(config, isinstance(loaded.preprocessing, AsStored)) or loaded.preprocessing,
        loaded.num_classes,
        loaded.positions,
        functools.partial(name_outputs, loaded.model),
        count_outputs(loaded.model),
        loaded.find_task,
        loaded.count_sigmoids,
    )


def _open_file(config: EvaluateConfig) -> Finished:
    content = read_tflite(pathlib.Path(config.model).expanduser())
    try:
        opened = OpenedFile(content, find_runtime(content))
    except InputError as error:
        raise InputError(f"{config.model}: {error}") from error
    graph = read_operators(content)
    preprocessing = choose_preprocessing(config, opened.input_shape, graph)
    num_outputs = opened.output_shape[-1] if len(opened.output_shape) > 1 else None
    last = find_last_kind(graph)
    num_sigmoids = (num_outputs or 0) if last == "LOGISTIC" else 0
    recorded = _recorded_outputs(config, len(graph.outputs))
    names = unique(recorded or [graph.values[index].name for index in graph.outputs])
    shapes = {name: graph.values[index].shape[1:] for name, index in zip(names, graph.outputs, strict=True)}
    return Finished(
        lambda _: opened,
        preprocessing,
        2 if num_sigmoids == 1 else num_outputs,
        opened.output_shape[1:-1],
        lambda _: shapes,
        len(opened.output_sizes),
        lambda: Task.CLASSIFICATION if last == "SOFTMAX" or num_sigmoids == 1 else None,
        lambda: num_sigmoids,
    )


def find_runtime(content: bytes) -> str:
    """What runs a file here, as `OpenedFile` takes it: nothing but TFLM reads bitmaps."""
    return "tflm" if has_bitmaps(content) else "litert"


class OpenedFile:
    """A .tflite file in what runs a target's files on this machine; pickled, the file.

    Args:
        content: the file.
        runtime: 'litert' or 'tflm'.

    Raises:
        InputError: the runtime is not installed, or cannot run the file.
    """

    def __init__(self, content: bytes, runtime: str):
        self._arguments = content, runtime
        self._runtime = _RUNTIMES[runtime](content)
        self.input_shape, self.output_shape = self._runtime.input_shape, self._runtime.output_shape
        self.output_sizes, self.num_inputs = self._runtime.output_sizes, self._runtime.num_inputs

    def __reduce__(self) -> tuple[type["OpenedFile"], tuple[bytes, str]]:
        return OpenedFile, self._arguments

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Of `Runner`."""
        return self._runtime.run(batch)


class KerasRunner:
    """A Keras model as a `Runner`: its output, or, where outputs are numbers, all of them in one row an input."""

    def __init__(self, carried: Carried, task: Task = Task.CLASSIFICATION):
        self._arguments = carried, task
        passing = _run_output if task.names_classes else run_rows
        self.run = OneByOne(functools.partial(passing, carried.model))

    def __reduce__(self) -> tuple[type["KerasRunner"], tuple[Carried, Task]]:
        return KerasRunner, self._arguments


def _run_output(model: keras.Model, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for outputs in run(model, batches):
        yield outputs.numpy()


def choose_preprocessing(config: EvaluateConfig, input_shape: tuple[int, ...], graph: OperatorGraph) -> Preparation:
    """How images become inputs of a .tflite file: as the config.json beside it says, or as the flags do.

    What is no image is taken as it is, in the shape of the file. Several inputs have the names that the config.json
    says, or those of the file itself.

    Raises:
        InputError: the config.json is not one of the pruning tool, or pixels of what is no image are to be scaled.
    """
    _, *sample = input_shape
    recorded = _recorded_preprocessing(config, len(sample) != IMAGE_RANK)
    scaling = "none" if config.preprocess == "auto" else config.preprocess
    if len(graph.inputs) > 1 and scaling == "none":
        shape, num_inputs = tuple(sample), len(graph.inputs)
        if isinstance(recorded, AsStored) and (recorded.shape, len(recorded.parts)) == (shape, num_inputs):
            return recorded
        return AsStored(shape, _read_parts(graph))
    if len(sample) != IMAGE_RANK:
        if scaling != "none":
            raise InputError(
                f"--preprocess scales the pixels of images, and {config.model} takes inputs of shape "
                f"{spell_batch(tuple(sample))}: give it numbers as it takes them. Received: {scaling}"
            )
        return AsStored(tuple(sample))
    height, width, channels = sample
    return recorded or Preprocessing((height, width), channels, scaling)


def _read_parts(graph: OperatorGraph) -> tuple[Part, ...]:
    """The inputs of a file, in its order, by its own names for them."""
    values = [graph.values[index] for index in graph.inputs]
    names = unique([value.name.removeprefix("serving_default_").removesuffix(":0") for value in values])
    # What is stored in 8 bits is fed through its scale.
    types = ["float32" if value.dtype in ("int8", "uint8") else value.dtype for value in values]
    return tuple(Part(name, value.shape[1:], dtype) for name, value, dtype in zip(names, values, types, strict=True))


def require_preparation(config: EvaluateConfig, *, are_images: bool) -> None:
    """Raises InputError where nothing says how the network of a file wants the pixels of its images."""
    if are_images and config.preprocess == "auto" and _recorded_preprocessing(config, False) is None:
        raise InputError(
            f"--preprocess must say how pixels are scaled where no config.json of the pruning tool is beside the model "
            f"('none' where they are not). Received: {config.model}, alone"
        )


def draw_inputs(source: EvaluateConfig, runtime: Runtime, graph: OperatorGraph, num_inputs: int) -> np.ndarray:
    """Real images as the network of a file takes them, float32 (num_inputs, *sample), drawn evenly from all.

    Args:
        source: the file, and where images are from.
        runtime: the file in what runs it.
        graph: of the file.
        num_inputs: how many.

    Raises:
        InputError: the data cannot be used, or has fewer images; nothing says how the network wants its pixels.
    """
    require_preparation(source, are_images=len(runtime.input_shape) == 1 + IMAGE_RANK)
    images = load_evaluation(
        source.data,
        preprocessing=choose_preprocessing(source, runtime.input_shape, graph),
        num_classes=None,
        class_names_path=None,
        batch_size=num_inputs,
    )
    if len(images) < num_inputs:
        raise InputError(
            f"--num_inputs must be at most the {len(images)} {images.unit}s of --data. Received: {num_inputs}"
        )
    return np.concatenate(list(images.select(spread(len(images), num_inputs))))


def _recorded_preprocessing(config: EvaluateConfig, as_stored: bool) -> Preparation | None:
    """What the pruning tool wrote down beside the file, if it did and nothing else was asked for.

    Args:
        config: the file, and what was asked for.
        as_stored: the network takes no images, which is what must be written there.
    """
    path = _config_beside(config)
    if config.preprocess != "auto" or path is None:
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))["preprocessing"]
        if as_stored:
            parts = [Part(**part | {"shape": tuple(part["shape"])}) for part in recorded.get("parts", [])]
            return AsStored(tuple(recorded["shape"]), tuple(parts))
        size = recorded.pop("size")
        return Preprocessing(size=None if size is None else tuple(size), **recorded)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"The config.json beside a model must be the one that the pruning tool wrote; --preprocess passes it by. "
            f"Received: {path} ({say_why(error)})"
        ) from error


def _recorded_outputs(config: EvaluateConfig, num_outputs: int) -> list[str] | None:
    """What the pruning tool called so many outputs; None where it wrote nothing that could be that."""
    path = _config_beside(config)
    if path is None:
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        names = json.loads(path.read_text(encoding="utf-8"))["outputs"]
        if isinstance(names, list) and len(names) == num_outputs and all(isinstance(name, str) for name in names):
            return names
    return None


def _config_beside(config: EvaluateConfig) -> pathlib.Path | None:
    """The config.json in the folder of a model file, if there is one."""
    model = pathlib.Path(config.model).expanduser()
    path = model.parent / "config.json"
    return path if model.is_file() and path.is_file() else None
