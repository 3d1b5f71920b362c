"""A Keras model becomes a dense .tflite file, by TensorFlow's own converter."""

import contextlib
import dataclasses
import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.choices import IOS, QUANTIZATIONS, check_choice
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.models.channel_order import REMEDY, name_channels_first
from reflow_tf.models.inference import infer_parts, input_sizes, inputs_of
from reflow_tf.native_stderr import native_stderr_dropped

_CONTROL_FLOW = frozenset({"While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase"})


@dataclasses.dataclass(frozen=True)
class _Request:
    model: keras.Model
    input_shape: tuple[int, ...]  # with the batch; (batch, numbers) of several inputs
    parts: tuple[tf.TensorSpec, ...]  # each input of the file
    quantize: str
    io: str


def convert_dense(
    model: keras.Model,
    *,
    quantize: str,
    io: str,
    calibration: Iterable[np.ndarray] | None,
    batch_size: int,
    input_shape: tuple[int, ...] | None,
) -> bytes:
    """Converts a built model; its inputs and outputs are in the order of `model.inputs` and `model.outputs`.

    Args:
        model: functional, sequential or subclassed, of any precision: it is traced in float32. It comes back as it was.
        quantize: one of `QUANTIZATIONS`.
        io: one of `IOS`; of account for int8.
        calibration: for int8, batches of float32 (n, *input_shape), of several inputs (n, numbers); iterated once.
        batch_size: the file's fixed batch.
        input_shape: shape of one sample; None: as the model was built.

    Raises:
        InputError: unknown `quantize` or `io`, no calibration samples, a model that is not built, that has a dimension
            left open or is subclassed with several inputs, or that needs an operator that TFLite lacks.
    """
    if quantize not in QUANTIZATIONS:
        raise InputError(f"quantize must be one of {', '.join(QUANTIZATIONS)}. Received: {quantize!r}")
    check_choice("io", io, IOS)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1. Received: {batch_size}")
    shape = (batch_size, *_sample_shape(model, input_shape))
    request = _Request(model, shape, _list_parts(model, shape), quantize, io)
    if quantize != "int8":
        calibration = None
    elif calibration is None:
        raise InputError(
            "int8 needs calibration batches to find the range of every activation. Received: calibration=None"
        )
    function = _trace(request)
    samples = None if calibration is None else _read_samples(calibration, request)
    return _run_converter(function, request, samples)


def _sample_shape(model: keras.Model, given: tuple[int, ...] | None) -> tuple[int, ...]:
    declared = _declared_shape(model)
    shape = declared if given is None else tuple(given)
    fixed = tuple(size for size in shape if size is not None)
    if len(fixed) < len(shape):
        raise InputError(
            f"A .tflite file needs every dimension of its input fixed: build model {model.name!r} with a full "
            f"keras.Input(shape=...), or pass input_shape. Received: {shape}"
        )
    if len(shape) != len(declared) or any(want not in (None, got) for want, got in zip(declared, shape, strict=True)):
        raise InputError(f"input_shape must fit model {model.name!r}, which takes {declared}. Received: {shape}")
    return fixed


def _declared_shape(model: keras.Model) -> tuple[int | None, ...]:
    if not model.built:
        raise InputError(f"The model must be built: call it once on a batch. Received: {model.name}, not built")
    inputs = inputs_of(model)
    if len(inputs) > 1:
        sizes = [size for size in input_sizes(model) if size is not None]
        return (sum(sizes) if len(sizes) == len(inputs) else None,)
    if inputs:
        shapes = [tuple(inputs[0].shape)]
    else:
        # Keras keeps the shapes of a subclassed model's first call only here (its own `Model.export` reads them, too).
        shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if len(shapes) != 1 or not all(size is None or isinstance(size, int) for size in shapes[0]):
        raise InputError(
            f"Model {model.name!r} must have one input tensor to be exported. Received: inputs of shape {shapes}"
        )
    return tuple(shapes[0])[1:]


def _list_parts(model: keras.Model, shape: tuple[int, ...]) -> tuple[tf.TensorSpec, ...]:
    inputs = inputs_of(model)
    if len(inputs) > 1:
        return tuple(tf.TensorSpec((shape[0], *tensor.shape[1:]), _type_of(tensor), tensor.name) for tensor in inputs)
    return (tf.TensorSpec(shape, _type_of(inputs[0]) if inputs else tf.float32, "images"),)


def _type_of(tensor: keras.KerasTensor) -> tf.DType:
    """Of the file's input: floats are float32."""
    dtype = tf.as_dtype(tensor.dtype)
    return tf.float32 if dtype.is_floating else dtype


def _trace(request: _Request) -> tf.types.experimental.ConcreteFunction:
    model = request.model

    def compute(*parts: tf.Tensor) -> list[tf.Tensor]:
        return infer_parts(model, parts)

    try:
        # The names of the specs are those of the file's inputs.
        function = tf.function(compute, autograph=False).get_concrete_function(*request.parts)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of the user's layers, which may raise anything
        raise InputError(
            f"Model {model.name!r} must take inputs of shape {request.input_shape} to be exported ({say_why(error)}). "
            f"Received: a model that does not"
        ) from error
    graph = function.graph.as_graph_def()
    used = {node.op for node in graph.node} | {node.op for body in graph.library.function for node in body.node_def}
    if request.quantize == "int8" and (loops := used & _CONTROL_FLOW):
        raise InputError(
            f"int8 needs a graph without loops and branches, because TensorFlow's calibrator crashes on them: build "
            f"recurrent layers with unroll=True, or quantize to float16. "
            f"Received: model {model.name!r} with {', '.join(sorted(loops))}"
        )
    return function


def _read_samples(calibration: Iterable[np.ndarray], request: _Request) -> Iterator[list[np.ndarray]]:
    """Yields one sample at a time, repeated to fill the file's batch; checks the first before the converter starts."""
    shape = request.input_shape
    if isinstance(calibration, np.ndarray) and calibration.ndim == len(shape):
        calibration = [calibration]
    batches = iter(calibration)
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise InputError("int8 needs at least one calibration image. Received: none")
    if np.shape(first)[1:] != shape[1:]:
        wanted = ", ".join(map(str, shape[1:]))
        raise InputError(
            f"Calibration batches for model {request.model.name!r} must have shape (n, {wanted}). "
            f"Received: {np.shape(first)}"
        )

    def feed() -> Iterator[list[np.ndarray]]:
        sizes = [int(np.prod(part.shape[1:])) for part in request.parts]
        for batch in itertools.chain([first], batches):
            for sample in np.asarray(batch, np.float32):
                pieces = np.split(sample.ravel(), np.cumsum(sizes)[:-1])
                yield [
                    np.broadcast_to(piece.reshape(part.shape[1:]), part.shape).astype(part.dtype.as_numpy_dtype)
                    for piece, part in zip(pieces, request.parts, strict=True)
                ]

    return feed()


def _run_converter(
    function: tf.types.experimental.ConcreteFunction, request: _Request, samples: Iterator[list[np.ndarray]] | None
) -> bytes:
    try:
        with _silence():
            return _make_converter(function, request, samples).convert()
    except (InputError, OSError, MemoryError):  # from the calibration data, which is read meanwhile
        raise
    except Exception as error:  # ConverterError is private, and plain ValueErrors and RuntimeErrors come as well
        first = name_channels_first(request.model)
        remedy = f" {REMEDY}: layer {first!r} computes channels first." if first else ""
        raise InputError(
            f"TensorFlow's converter cannot turn model {request.model.name!r} into a .tflite file with "
            f"quantize={request.quantize!r}: every operator must exist in TFLite.{remedy} Received: {say_why(error)}"
        ) from error


def _make_converter(
    function: tf.types.experimental.ConcreteFunction, request: _Request, samples: Iterator[list[np.ndarray]] | None
) -> tf.lite.TFLiteConverter:
    # Alone, the function is frozen, variables and all. With the model as a second argument, the way that the converter
    # recommends, the variables of a Keras 3 model stay variables: READ_VARIABLE operators and a file without weights.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    if request.quantize == "float16":
        converter.optimizations = {tf.lite.Optimize.DEFAULT}
        converter.target_spec.supported_types = [tf.float16]
    elif request.quantize == "int8":
        converter.optimizations = {tf.lite.Optimize.DEFAULT}
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: samples
        if request.io == "int8":
            converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    loggers = tf.get_logger(), logging.getLogger("absl")
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with native_stderr_dropped(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
