"""The block Fisher of a model's kernels: the mean of g g^T over samples, for blocks of neighbouring weights.

g is the gradient of the log-likelihood of one sample at inference. There are no labels: the class is the model's own
prediction, the argmax, which makes this neither the empirical Fisher of the true labels nor the exact one, whose
classes are drawn from the model's distribution; for a model that is mostly right it is near the former, as WoodFisher
(arXiv 2004.14340) uses it. Outputs that are not negative and sum to 1 are
taken for probabilities, any others for logits.
"""

from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.observation import run
from reflow_tf.models.outputs import are_probabilities
from reflow_tf.sparsity.layers import LayerSpec

_SAMPLES_AT_A_TIME = (
    16  # gradients that are kept until their products are added: a matrix product then, not an outer one
)

Gradients = Callable[[tf.Tensor], list[tf.Tensor | None]]


def gather(
    model: keras.Model, specs: Sequence[LayerSpec], batches: Iterable[np.ndarray], block_size: int
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
    for gradients in _each_gradient(model, variables, batches):
        count += 1
        for spec, gradient in zip(specs, gradients, strict=True):
            if gradient is not None:
                pending[spec.path].append(spec.to_canonical(gradient).ravel())
        if count % _SAMPLES_AT_A_TIME == 0:
            _take_in(sums, pending, block_size)
    if count == 0:
        raise InputError("Statistics need at least one calibration batch. Received: none")
    _take_in(sums, pending, block_size)
    for total in sums.values():
        total /= count
    return sums


def _take_in(sums: dict[str, np.ndarray], pending: dict[str, list[np.ndarray]], block_size: int) -> None:
    for path, gradients in pending.items():
        if not gradients:
            continue
        num_blocks = -(-gradients[0].size // block_size)
        samples = np.zeros((len(gradients), num_blocks * block_size), np.float32)
        samples[:, : gradients[0].size] = gradients
        blocks = np.ascontiguousarray(samples.reshape(-1, num_blocks, block_size).transpose(1, 0, 2))
        products = blocks.transpose(0, 2, 1) @ blocks
        sums[path] = sums[path] + products if path in sums else products
        gradients.clear()


def _each_gradient(
    model: keras.Model, variables: Sequence[keras.Variable], batches: Iterable[np.ndarray]
) -> Iterable[list[np.ndarray | None]]:
    """The gradients of the log-likelihood of each sample, one array a variable, None where there is no dependence."""
    by_shape: dict[tuple[int, ...], Gradients] = {}
    for batch in batches:
        samples = tf.convert_to_tensor(batch)
        shape = tuple(samples.shape[1:])
        if shape not in by_shape:
            (outputs,) = run(model, [batch])  # which also checks that the batch fits
            by_shape[shape] = _make_gradients(model, variables, are_probabilities(outputs.numpy()))
        for sample in samples:
            yield [None if g is None else g.numpy() for g in by_shape[shape](sample[None])]


def _make_gradients(model: keras.Model, variables: Sequence[keras.Variable], probabilities: bool) -> Gradients:
    values = [variable.value for variable in variables]

    def differentiate(inputs: tf.Tensor) -> list[tf.Tensor | None]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)  # frozen layers have a Fisher too
            outputs = model(inputs, training=False)
            logs = tf.math.log(tf.maximum(outputs, 1e-30)) if probabilities else tf.nn.log_softmax(outputs)
            likelihood = tf.reduce_sum(tf.reduce_max(logs, axis=-1))
        return tape.gradient(likelihood, values)

    return tf.function(differentiate, autograph=False)
