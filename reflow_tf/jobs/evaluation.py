"""Running a finished model over held-out images, whatever form it has."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import numpy as np

from reflow_tf.cluster.opening import open_crew
from reflow_tf.crew import ALONE, Crew, count_threads
from reflow_tf.data.as_stored import IMAGE_RANK, AsStored, Part, Preparation, spell_batch
from reflow_tf.data.batches import EvaluationSet
from reflow_tf.data.classes import are_one_each, describe_labels
from reflow_tf.data.loading import load_evaluation
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.errors import InputError
from reflow_tf.export.constants import has_bitmaps
from reflow_tf.export.operators import ends_in_sigmoid
from reflow_tf.foreign import say_why
from reflow_tf.job_config import EvaluateConfig
from reflow_tf.jobs.scoring import Runner, compare, rank_files, spread
from reflow_tf.models.carrying import Address, Carried
from reflow_tf.models.loading import load_model
from reflow_tf.models.observation import OneByOne
from reflow_tf.models.predictions import run_predictions
from reflow_tf.repair.contract import Progress, show_nothing
from reflow_tf.report.scores import Parity, Score, score_accuracy
from reflow_tf.runtimes.litert import LiteRT, read_tflite
from reflow_tf.runtimes.runtime import Runtime
from reflow_tf.runtimes.tflm.runtime import TFLM
from reflow_tf.task import Task

COMPARED_IMAGES = 256

MOST_THREADS = 2
"""Of LiteRT, for one file."""

_RUNTIMES: Mapping[str, Callable[[bytes], Runtime]] = {
    "litert": lambda content: LiteRT(content, min(MOST_THREADS, count_threads())),
    "tflm": TFLM,
}


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A model of any form: how to run it, and what its images look like."""

    runner: Runner
    preprocessing: Preparation
    num_classes: int
    positions: tuple[int | None, ...]


def require_classifier(num_outputs: int | None, model: str) -> int:
    """Returns the number of classes: the length of the output's last axis, and 2 for a single sigmoid.

    Args:
        num_outputs: that number, as loading gives it.
        model: its name, for the message.

    Raises:
        InputError: it is below two, so that every image would be of the one class there is, or not fixed.
    """
    if num_outputs is None or num_outputs < 2:
        raise InputError(
            f"--model must be a classifier with one output a class, at least two of them, or a single sigmoid (a "
            f"single output that is a logit: append a sigmoid; one that is a number: --task=fidelity). "
            f"Received: {model} with {'no fixed number' if num_outputs is None else num_outputs} of them"
        )
    return num_outputs


def require_label_maps(model: keras.Model, positions: tuple[int | None, ...], images: EvaluationSet) -> None:
    """Where a network leaves the size of its map open: that the labels have the size which it takes for these images.

    Raises:
        InputError: they have another.
    """
    if images.labels is None or None not in positions:
        return
    (outputs,) = run_predictions(model, images.select(np.array([0])))
    if not are_one_each(images.labels.shape[1:], outputs.shape[1:-1]):
        raise InputError(
            f"y must hold {describe_labels(outputs.shape[1:-1])} for each {images.unit}. "
            f"Received: shape {images.labels.shape[1:]}"
        )


def run(config: EvaluateConfig, *, progress: Progress = show_nothing) -> Score:
    """`evaluate` by whoever `config.workers` says.

    Raises:
        InputError: as `evaluate` and `open_crew` do.
    """
    with open_crew(config.workers, config.threads_per_worker) as crew:
        return evaluate(config, progress=progress, crew=crew)


def evaluate(config: EvaluateConfig, *, progress: Progress = show_nothing, crew: Crew = ALONE) -> Score:
    """Scores a `.keras`, `.h5` or `.tflite` file, or a zoo model, on labelled images.

    With preprocess 'auto', the images are prepared as the config.json beside the file says, which the pruning tool
    wrote; without one the network gets the pixels as they are.

    Raises:
        InputError: the model or the data cannot be used, or the data has no labels.
    """
    opened = _open_file(config) if config.model.endswith(".tflite") else _open_keras(config)
    images = load_evaluation(
        config.data,
        preprocessing=opened.preprocessing,
        num_classes=opened.num_classes,
        positions=opened.positions,
        class_names_path=config.class_names,
        batch_size=config.batch_size,
    )
    if images.labels is None:
        raise InputError(f"Evaluation needs labels: a folder of class sub-folders, or y. Received: {config.data}")
    ranked = rank_files(
        {config.model: opened.runner}, {}, images, opened.num_classes, progress, crew=crew, description="Evaluating"
    )
    return score_accuracy(ranked[config.model].classes, images.labels, opened.num_classes)


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
    """A Keras model as a `Runner`, outputs read."""

    def __init__(self, carried: Carried):
        self._carried = carried
        self.run = OneByOne(functools.partial(run_predictions, carried.model))

    def __reduce__(self) -> tuple[type["KerasRunner"], tuple[Carried]]:
        return KerasRunner, (self._carried,)


def measure_parity(
    runtime: Runner, images: Iterable[np.ndarray], in_keras: np.ndarray, task: Task = Task.CLASSIFICATION
) -> Parity:
    """Compares the file with Keras, whose outputs for the first of the images are given, as they are read."""
    return compare(runtime.run(first_images(images, len(in_keras))), in_keras, task, in_keras.shape[-1])


def first_images(images: Iterable[np.ndarray], most: int = COMPARED_IMAGES) -> np.ndarray:
    """The first images, in one array: those that files are compared on."""
    return np.concatenate(list(_first(images, most)))


def _open_keras(config: EvaluateConfig) -> _Opened:
    loaded = load_model(config.model, preprocess=config.preprocess, **config.model_options)
    return _Opened(
        KerasRunner(Carried(loaded.model, Address.of(config.model, **config.model_options))),
        _recorded_preprocessing(config, isinstance(loaded.preprocessing, AsStored)) or loaded.preprocessing,
        require_classifier(loaded.num_classes, config.model),
        loaded.positions,
    )


def _open_file(config: EvaluateConfig) -> _Opened:
    content = read_tflite(pathlib.Path(config.model).expanduser())
    try:
        opened = OpenedFile(content, "tflm" if has_bitmaps(content) else "litert")
    except InputError as error:
        raise InputError(f"{config.model}: {error}") from error
    if len(opened.output_sizes) > 1:
        raise InputError(
            f"--model must have one output to be scored. Received: {config.model} with {len(opened.output_sizes)}"
        )
    preprocessing = choose_preprocessing(config, opened.input_shape, opened.num_inputs)
    num_outputs = opened.output_shape[-1] if len(opened.output_shape) > 1 else None
    if num_outputs == 1 and ends_in_sigmoid(content):
        num_outputs = 2
    num_classes = require_classifier(num_outputs, config.model)
    return _Opened(opened, preprocessing, num_classes, opened.output_shape[1:-1])


def choose_preprocessing(config: EvaluateConfig, input_shape: tuple[int, ...], num_inputs: int = 1) -> Preparation:
    """How images become inputs of a .tflite file: as the config.json beside it says, or as the flags do.

    What is no image is taken as it is, in the shape of the file. The names of several inputs are in the config.json.

    Raises:
        InputError: the config.json is not one of the pruning tool, or pixels of what is no image are to be scaled; a
            file with several inputs has none beside it.
    """
    _, *sample = input_shape
    recorded = _recorded_preprocessing(config, len(sample) != IMAGE_RANK)
    scaling = "none" if config.preprocess == "auto" else config.preprocess
    if num_inputs > 1 and scaling == "none":
        if not isinstance(recorded, AsStored) or len(recorded.parts) != num_inputs or recorded.shape != tuple(sample):
            raise InputError(
                f"A file with several inputs needs the config.json that the pruning tool wrote beside it, which has "
                f"their names. Received: {config.model} with {num_inputs} inputs"
            )
        return recorded
    if len(sample) != IMAGE_RANK:
        if scaling != "none":
            raise InputError(
                f"--preprocess scales the pixels of images, and {config.model} takes inputs of shape "
                f"{spell_batch(tuple(sample))}: give it numbers as it takes them. Received: {scaling}"
            )
        return AsStored(tuple(sample))
    height, width, channels = sample
    return recorded or Preprocessing((height, width), channels, scaling)


def draw_inputs(source: EvaluateConfig, runtime: Runtime, num_inputs: int) -> np.ndarray:
    """Real images as the network of a file takes them, float32 (num_inputs, *sample), drawn evenly from all.

    Raises:
        InputError: the data cannot be used, or has fewer images; nothing says how the network wants its pixels.
    """
    are_images = len(runtime.input_shape) == 1 + IMAGE_RANK
    if are_images and source.preprocess == "auto" and _recorded_preprocessing(source, False) is None:
        raise InputError(
            f"--preprocess must say how pixels are scaled where no config.json of the pruning tool is beside the model "
            f"('none' where they are not). Received: {source.model}, alone"
        )
    images = load_evaluation(
        source.data,
        preprocessing=choose_preprocessing(source, runtime.input_shape, runtime.num_inputs),
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
    model = pathlib.Path(config.model).expanduser()
    path = model.parent / "config.json"
    if config.preprocess != "auto" or not model.is_file() or not path.is_file():
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


def _first(batches: Iterable[np.ndarray], num_inputs: int) -> Iterator[np.ndarray]:
    for batch in batches:
        yield batch[:num_inputs]
        num_inputs -= len(batch)
        if num_inputs <= 0:
            return
