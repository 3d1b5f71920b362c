"""The block Fisher of a model's kernels, the mean of g g^T over samples for blocks of neighbouring weights; and the
Fisher of what their layers give.

It is the exact Fisher, drawn, and takes no labels: with weights u over the classes for which E u u^T = diag p - p p^T,
g is the gradient of u^T log p of one sample at inference. Every class is in it, of a confident network, too, whose
likeliest class has next to no gradient: nor have true labels of images that it was trained on, with which WoodFisher
(arXiv 2004.14340) takes the empirical Fisher. ResNet-20 at 70 %, blocks of 50, 500 images to calibrate, top-1 of 500
test images, magnitude alone 72.0: magnitude+woodfisher 73.4 with the likeliest class alone, 80.6 with all drawn,
magnitude+chita 80.6 and 84.0. Of outputs, MobileNetV2, single weights at 70 %, 500 images, 1,000 others: 59.3 % and
61.1 % of them classed as by the dense network.

Outputs that are not negative and sum to 1 are taken for probabilities, any others for logits. Numbers that name no
class are taken for the means of normal distributions of one width: the Fisher is J^T J, drawn with E u u^T = 1.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.channel_order import CHANNELS_FIRST, REMEDY
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.inference import infer
from reflow_tf.models.observation import (
    LayerCall,
    Traces,
    find_activation,
    graphs_as_they_are,
    replaced_calls,
    run,
    without_activation,
)
from reflow_tf.models.outputs import are_probabilities
from reflow_tf.models.precision import reading
from reflow_tf.models.predictions import Reading, find_reading
from reflow_tf.models.walking import walk
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.task import Task

_SAMPLES_AT_A_TIME = (
    16  # gradients that are kept until their products are added: a matrix product then, not an outer one
)

_INPUTS_AT_A_TIME = 16  # whose activations are held for the way back, of all layers at once
WORTH_BELIEVED = 0.7
"""Share of the correlations of outputs that least squares believes.

MobileNetV2, every 1x1 kernel in pairs of outputs at 50 %, each fitted to dense inputs of 200 photographs, then REFLOW;
mean divergence from the dense network on 500 other images: 1.49 with none of it, 1.33 with 0.7; in the basis of
`models.channels.rotation` 1.24 with none, 1.12 with 0.7, 1.12 with 0.9.
"""

MOST_OUTPUTS = 8192
"""Of a layer whose outputs are weighed together: half a gigabyte, and the eigenvectors of it take minutes."""

_LEAST_GAIN = 0.1  # of a layer's: outputs that no gradient reached are not taken to be worth nothing

Gradients = Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor | None]]
Reduction = Callable[[tf.Tensor], tuple[tf.Tensor, ...]]
OutputGradients = Callable[[tf.Tensor, tf.Tensor], dict[str, tuple[tf.Tensor, ...]]]


@dataclasses.dataclass(frozen=True)
class OutputErrors:
    """What errors in the outputs of a layer do to the prediction, before an activation of its own.

    Attributes:
        fisher: what errors in two outputs cost together: the mean over inputs of the sum over positions of g g^T,
            (channels, channels) float64; its diagonal are the squares of `gather_output_gains`, but for what those are
            divided by.
        coherence: how many times as much as others errors cost that are the same at all positions of an input: sum
            E (sum over positions of g)^2 / sum E (sum over positions of g^2). 1 where signs are independent, the number
            of positions where all are the same, as before a global average; never less than 1.
    """

    fisher: np.ndarray
    coherence: float


def gather(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    batches: Iterable[np.ndarray],
    block_size: int,
    task: Task = Task.CLASSIFICATION,
) -> dict[str, np.ndarray]:
    """Path of the spec -> (blocks, B, B) float32, for the kernels that the output depends on.

    The last block is filled up with zeros. One backward pass a sample: a batch's gradients would come summed.

    Raises:
        InputError: no batches, or batches that do not fit.
    """
    kernels = find_kernels(model)
    variables = [kernels.variables[spec.path] for spec in specs]
    sums: dict[str, np.ndarray] = {}
    pending: dict[str, list[np.ndarray]] = {spec.path: [] for spec in specs}
    count = 0
    for gradients in _each_gradient(model, variables, batches, task):
        count += 1
        for spec, gradient in zip(specs, gradients, strict=True):
            if gradient is not None:
                pending[spec.path].append(spec.to_canonical(gradient).ravel())
        if count % _SAMPLES_AT_A_TIME == 0:
            _take_in(sums, pending, block_size)
    if count == 0:
        raise InputError("Statistics need at least one calibration batch. Received: none")
    _take_in(sums, pending, block_size)
    for path, total in sums.items():
        sums[path] = (total / count).astype(np.float32)
    return sums


def find_layers(model: keras.Model, paths: Iterable[str]) -> dict[str, keras.Layer]:
    """Path of a layer -> it, for those that have these kernels, each once."""
    placed = {place.path: place.layer for place in walk(model)}
    return {path: placed[path] for path in dict.fromkeys(path.rpartition("/")[0] for path in paths)}


def gather_output_gains(
    model: keras.Model, specs: Sequence[LayerSpec], inputs: np.ndarray, task: Task = Task.CLASSIFICATION
) -> dict[str, np.ndarray]:
    """How much an error in each output of a kernel's layer moves the prediction: the diagonal Fisher of outputs, before
    the layer's own activation.

    For output c with gradient g, sqrt(mean over inputs of the sum over positions of g_c^2): to second order, errors
    that are independent from position to position cost half its square times their mean square.

    Args:
        model: it is not changed.
        specs: whose layers give outputs on the last axis.
        inputs: (n, ...).
        task: what the model's outputs are taken for.

    Returns:
        Path -> (outputs,) float64, over the mean of the layer, at least _LEAST_GAIN; 1 where no gradient arrives.

    Raises:
        InputError: inputs that do not fit; activations or gradients that are not finite.
    """
    watched = find_layers(model, [spec.path for spec in specs])
    (totals,) = _sum_over_inputs(model, watched, [inputs], _sum_squares, task)
    squares = {path: total for path, (total,) in totals.items()}
    return {spec.path: _as_gains(squares.get(spec.path.rpartition("/")[0]), spec.canonical_shape[0]) for spec in specs}


def gather_output_worth(
    model: keras.Model, specs: Sequence[LayerSpec], inputs: np.ndarray, task: Task = Task.CLASSIFICATION
) -> dict[str, np.ndarray]:
    """What errors in two outputs of a kernel's layer cost together: the Fisher of outputs, before its activation.

    Every input has the same share of it: of one of which the network is sure hardly anything would be left otherwise,
    and errors that are large make it unsure. Where errors are small that is not so, and `gather_output_errors` says
    what they cost: MobileNet with 75 % of its multiply-adds, divergence from the dense network on 400 images 0.189
    where channels are chosen by that, 0.203 with the same share for each input.

    Of the correlations WORTH_BELIEVED is believed: what two errors add up to in the prediction is known from few
    inputs, and layers behind change it.

    Args:
        model: it is not changed.
        specs: whose layers give outputs on the last axis.
        inputs: (n, ...).
        task: what the model's outputs are taken for.

    Returns:
        Path -> (outputs, outputs) float64, positive definite; the identity where no gradient arrives.

    Raises:
        InputError: a layer of more than MOST_OUTPUTS, or with its channels first; inputs that do not fit; activations
            or gradients that are not finite.
    """
    for spec in specs:
        if spec.canonical_shape[0] > MOST_OUTPUTS:
            raise InputError(
                f"Least squares and --allocation=auto take layers of at most {MOST_OUTPUTS:,} outputs: leave others "
                f"out with --prunable=REGEX. Received: {spec.canonical_shape[0]:,} outputs of {spec.path}"
            )
    watched = find_layers(model, [spec.path for spec in specs])
    for path, layer in watched.items():
        if getattr(layer, "data_format", None) == CHANNELS_FIRST:
            raise InputError(
                f"Least squares and --allocation=auto take layers with their channels last. {REMEDY}. "
                f"Received: layer {path!r} with data_format='{CHANNELS_FIRST}'"
            )
    (found,) = _sum_over_inputs(model, watched, [inputs], _sum_alike, task)
    fishers = {name: products for name, (products,) in found.items()}
    return {spec.path: _as_worth(fishers.get(spec.path.rpartition("/")[0]), spec.canonical_shape[0]) for spec in specs}


def _as_worth(fisher: np.ndarray | None, num_outputs: int) -> np.ndarray:
    gains = _as_gains(None if fisher is None else np.diag(fisher), num_outputs)
    if fisher is None or len(fisher) != num_outputs:
        return np.diag(gains**2)
    believed = believe(fisher)
    scales = np.sqrt(np.diag(fisher))
    correlations = np.divide(believed, scales[:, None] * scales, out=np.zeros_like(fisher), where=believed != 0)
    np.fill_diagonal(correlations, 1.0)
    return correlations * gains[:, None] * gains


def believe(fisher: np.ndarray) -> np.ndarray:
    """The Fisher of outputs, (outputs, outputs), with WORTH_BELIEVED of what is off its diagonal."""
    return WORTH_BELIEVED * fisher + (1 - WORTH_BELIEVED) * np.diag(np.diag(fisher))


def gather_output_errors(
    model: keras.Model,
    watched: Mapping[str, keras.Layer],
    parts: Sequence[np.ndarray],
    task: Task = Task.CLASSIFICATION,
) -> list[dict[str, OutputErrors]]:
    """What errors in the outputs of layers cost, by each part of the inputs.

    Args:
        model: it is not changed.
        watched: name -> layer that gives channels on the last axis.
        parts: (n, ...) each.
        task: what the model's outputs are taken for.

    Returns:
        Of each part: name -> what is known; a layer that the output does not depend on is missing.

    Raises:
        InputError: inputs that do not fit; activations or gradients that are not finite.
    """
    found = []
    for inputs, totals in zip(parts, _sum_over_inputs(model, watched, parts, _sum_errors, task), strict=True):
        of_part = {}
        for name, (products, same, each) in totals.items():
            of_part[name] = OutputErrors(products / len(inputs), max(1.0, float(same / each)) if each > 0 else 1.0)
        found.append(of_part)
    return found


def _sum_over_inputs(
    model: keras.Model, watched: Mapping[str, keras.Layer], parts: Sequence[np.ndarray], reduce: Reduction, task: Task
) -> list[dict[str, list[np.ndarray]]]:
    """Of each part: name -> the reduced gradients at what a layer gives, before its activation, summed, float64."""
    (outputs,) = run(model, [parts[0][:1]])  # which also checks that inputs fit
    differentiate = differentiate_outputs(model, watched, parts[0].shape[1:], outputs, reduce, task)
    found = []
    for inputs in parts:
        totals: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(inputs), _INPUTS_AT_A_TIME):
            batch = tf.convert_to_tensor(inputs[start : start + _INPUTS_AT_A_TIME])
            for name, reduced in differentiate(batch, tf.constant(start)).items():
                more = [each.numpy().astype(np.float64) for each in reduced]
                totals[name] = [a + b for a, b in zip(totals[name], more, strict=True)] if name in totals else more
        if broken := [name for name, sums in totals.items() if not all(np.isfinite(each).all() for each in sums)]:
            raise InputError(f"Activations and gradients must be finite. Received: NaN or infinity at {broken[0]}")
        found.append(totals)
    return found


def differentiate_outputs(
    model: keras.Model,
    watched: Mapping[str, keras.Layer],
    shape: tuple[int, ...],
    outputs: tf.Tensor,
    reduce: Reduction,
    task: Task,
) -> OutputGradients:
    """What errors in the outputs of layers do to the prediction, by one draw of the Fisher, input by input.

    Args:
        model: differentiated as it is whenever the result is called.
        watched: name -> layer whose outputs are meant, before an activation of its own.
        shape: of one input.
        outputs: of the model for an input, (1, ...).
        reduce: makes of the gradients at what a layer gives what is wanted of them.
        task: what the model's outputs are taken for.

    Returns:
        A function of inputs (n, ...) and the number of a draw that gives, by name, what was wanted; a layer that the
        inputs did not run through is missing.
    """
    read = find_reading(model, shape, outputs.shape, task)
    probabilities = are_probabilities(np.array(read(outputs)))

    def differentiate(inputs: tf.Tensor, draw: tf.Tensor) -> dict[str, tuple[tf.Tensor, ...]]:
        given: dict[str, list[tf.Tensor]] = {path: [] for path in watched}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            calls = {layer: _watched_call(layer, given[path], tape) for path, layer in watched.items()}
            with replaced_calls(calls):
                score = _draw_score(read(infer(model, inputs)), read.task, probabilities, draw)
        gradients = tape.gradient(score, given, unconnected_gradients="zero")
        return {
            path: tuple(tf.add_n(calls) for calls in zip(*map(reduce, of_layer), strict=True))
            for path, of_layer in gradients.items()
            if of_layer
        }

    traces = Traces(tf.function(differentiate, autograph=False), tf.TensorSpec((), tf.int32))

    def call(inputs: tf.Tensor, draw: tf.Tensor) -> dict[str, tuple[tf.Tensor, ...]]:
        with graphs_as_they_are():
            gradients: dict[str, tuple[tf.Tensor, ...]] = traces.find(inputs)(inputs, draw)
        return gradients

    return call


def _sum_squares(gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """(..., channels) -> (channels,)."""
    return (tf.reduce_sum(tf.square(gradients), range(gradients.shape.rank - 1)),)


def _sum_errors(gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """(n, ..., channels) -> (channels, channels), and what errors cost that are the same all over an input, and any."""
    of_input = tf.reshape(gradients, [tf.shape(gradients)[0], -1, gradients.shape[-1]])
    rows = tf.reshape(gradients, [-1, gradients.shape[-1]])
    same, each = tf.reduce_sum(tf.square(tf.reduce_sum(of_input, 1))), tf.reduce_sum(tf.square(of_input))
    return tf.matmul(rows, rows, transpose_a=True), same, each


def _sum_alike(gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """(n, ..., channels) -> (channels, channels), the trace of each input's own being 1, or 0."""
    of_input = tf.reshape(gradients, [tf.shape(gradients)[0], -1, gradients.shape[-1]])
    sizes = tf.sqrt(tf.reduce_sum(tf.square(of_input), axis=[1, 2], keepdims=True))
    rows = tf.reshape(tf.math.divide_no_nan(of_input, sizes), [-1, gradients.shape[-1]])
    return (tf.matmul(rows, rows, transpose_a=True),)


def _as_gains(squares: np.ndarray | None, num_outputs: int) -> np.ndarray:
    if squares is None or len(squares) != num_outputs or not squares.any():
        return np.ones(num_outputs)
    gains = np.sqrt(squares)
    return np.maximum(gains / gains.mean(), _LEAST_GAIN)


def _watched_call(layer: keras.Layer, outputs: list[tf.Tensor], tape: tf.GradientTape) -> LayerCall:
    activation, inference_call = find_activation(layer), layer.call

    def call(*args: object, **options: object) -> tf.Tensor:
        with without_activation(layer):
            found = inference_call(*args, **options)
        if not tf.is_tensor(found):  # a cell, which also gives what it remembers, from inside a loop
            return found
        tape.watch(found)
        outputs.append(found)
        return found if activation is None else activation(found)

    return call


def _log_probabilities(outputs: tf.Tensor, probabilities: bool) -> tf.Tensor:
    return tf.math.log(tf.maximum(outputs, 1e-30)) if probabilities else tf.nn.log_softmax(outputs)


def _draw_score(outputs: tf.Tensor, task: Task, probabilities: bool, draw: tf.Tensor) -> tf.Tensor:
    """Something whose gradients g have E g g^T = the Fisher: weights u of log-probabilities, E u u^T = diag p - p p^T.

    All classes are in it at once. Of the likeliest class alone, a confident network's gradients are next to nothing,
    and what tells the others apart is not in them at all. Of numbers, u are weights of the numbers, E u u^T = 1.
    """
    noise = tf.random.stateless_normal(tf.shape(outputs), seed=[0, draw], dtype=outputs.dtype)
    if task is Task.FIDELITY:
        return tf.reduce_sum(noise * outputs)
    logs = _log_probabilities(outputs, probabilities)
    probabilities = tf.exp(tf.stop_gradient(logs))
    roots = tf.sqrt(probabilities)
    weights = roots * noise - probabilities * tf.reduce_sum(roots * noise, axis=-1, keepdims=True)
    return tf.reduce_sum(weights * logs)


def _take_in(sums: dict[str, np.ndarray], pending: dict[str, list[np.ndarray]], block_size: int) -> None:
    """Adds what is pending, in float64: of many inputs float32 would lose the later ones."""
    for path, gradients in pending.items():
        if not gradients:
            continue
        num_blocks = -(-gradients[0].size // block_size)
        samples = np.zeros((len(gradients), num_blocks * block_size), np.float32)
        samples[:, : gradients[0].size] = gradients
        blocks = np.ascontiguousarray(samples.reshape(-1, num_blocks, block_size).transpose(1, 0, 2))
        products = blocks.transpose(0, 2, 1) @ blocks
        if path not in sums:
            sums[path] = np.zeros(products.shape, np.float64)
        sums[path] += products
        gradients.clear()


def _each_gradient(
    model: keras.Model, variables: Sequence[keras.Variable], batches: Iterable[np.ndarray], task: Task
) -> Iterable[list[np.ndarray | None]]:
    """The drawn gradients of each sample, one array a variable, None where there is no dependence."""
    by_shape: dict[tuple[int, ...], Gradients] = {}
    draws = itertools.count()
    for batch in batches:
        samples = tf.convert_to_tensor(batch)
        shape = tuple(samples.shape[1:])
        if shape not in by_shape:
            (outputs,) = run(model, [batch])  # which also checks that the batch fits
            read = find_reading(model, shape, outputs.shape, task)
            by_shape[shape] = _make_gradients(model, variables, read, are_probabilities(np.array(read(outputs))))
        for sample in samples:
            gradients = by_shape[shape](sample[None], tf.constant(next(draws)))
            yield [None if g is None else g.numpy() for g in gradients]


def _make_gradients(
    model: keras.Model, variables: Sequence[keras.Variable], read: Reading, probabilities: bool
) -> Gradients:
    def differentiate(inputs: tf.Tensor, draw: tf.Tensor) -> list[tf.Tensor | None]:
        values = [tf.cast(variable.value, tf.float32) for variable in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape, reading(zip(variables, values, strict=True)):
            tape.watch(values)  # frozen layers have a Fisher too
            outputs = read(infer(model, inputs))
            score = _draw_score(outputs, read.task, probabilities, draw)
        return tape.gradient(score, values)

    return tf.function(differentiate, autograph=False)
