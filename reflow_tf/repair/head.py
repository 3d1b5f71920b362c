"""The repair 'head': the classifier is fitted anew, on what the pruned network gives it, to the dense one's logits.

Least squares in closed form, as `least_squares` does for pruned layers, on the one layer that sees all that was lost
and has the last word. Each image is joined by NUM_VIEWS varied ones (`views`): an image is a single equation here.

It helps some networks and harms others. The last seven 1x1 kernels at 70 % zeros refitted by `least_squares`, images of
other classes judged: MobileNetV2's divergence from the dense network 0.72 -> 0.59 and 0.72 -> 0.62 (two draws),
EfficientNet-Lite0's 0.90 -> 1.00, and more with any stronger pull towards the dense classifier. So `auto` tries it.
"""

from collections.abc import Iterable

import keras
import numpy as np
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.execution import Step, Steps, Stretch, read_steps
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.observation import check_batch
from reflow_tf.repair.contract import Progress, PrunedModel, RepairOutcome
from reflow_tf.repair.layer_fitting import gather_equations
from reflow_tf.repair.views import make_views
from reflow_tf.sparsity.layers import LayerSpec

NAME = "head"
NUM_VIEWS = 3
_PASSED = (layers.Activation, layers.Softmax, layers.Dropout, layers.Flatten, layers.Reshape, layers.Identity)


def refit_head(pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress) -> RepairOutcome:
    """Refits the kernel and the bias of the last layer, in place, where that is a Dense.

    Args:
        pruned: a functional or sequential model; on any error, and on Ctrl-C, it is what it was before.
        batches: float arrays (n, ...).
        progress: wraps the passes over both networks.

    Raises:
        InputError: the model is subclassed; a batch does not fit; no batches; activations that are not finite.
    """
    steps = read_steps(pruned.model)
    head = find_head(steps)
    if head is None:
        return RepairOutcome(NAME, (), (), (), "The head was left alone: no Dense layer gives the outputs.")
    images = np.concatenate(list(batches) or [np.empty(0)])
    if not len(images):
        raise InputError("A refit of the head needs at least one calibration batch. Received: none")
    check_batch(pruned.model, images)
    spec = _find_spec(pruned.model, head.operation)
    with pruned.restored_on_error():
        error = _refit(pruned, steps, head, spec, images, progress)
    statement = (
        f"The head ({spec.path}) was fitted anew to the dense network's logits; {error:.1%} of their variance is lost "
        "on the images that it was fitted to."
    )
    return RepairOutcome(NAME, (spec.path,), (), ("kernel", "bias"), statement)


def find_head(steps: Steps) -> Step | None:
    """The Dense layer whose outputs, perhaps behind an activation, are the model's; None where another gives them."""
    for step in reversed(steps.steps):
        if isinstance(step.operation, layers.Dense):
            return step
        if not isinstance(step.operation, _PASSED):
            return None
    return None


def _find_spec(model: keras.Model, layer: keras.Operation) -> LayerSpec:
    kernels = find_kernels(model)
    own = {id(variable) for variable in layer.variables}
    return next(spec for spec in kernels.specs if id(kernels.variables[spec.path]) in own)


def _refit(
    pruned: PrunedModel, steps: Steps, head: Step, spec: LayerSpec, images: np.ndarray, progress: Progress
) -> float:
    """Writes the head; returns the share of the logits' variance that it misses."""
    layer = head.operation
    before = Stretch(steps.steps[: steps.steps.index(head)], [steps.input], [head.inputs[0]])
    parts = [images, make_views(images, NUM_VIEWS)]
    inputs = np.concatenate([before([part])[0] for part in progress(parts, "Reading the head's inputs") if len(part)])
    with pruned.as_dense():
        kernel, bias = np.array(layer.kernel), 0.0 if layer.bias is None else np.array(layer.bias)
        dense = [before([part])[0] for part in progress(parts, "Reading the dense head's inputs") if len(part)]
    logits = np.concatenate(dense) @ kernel + bias
    sums = gather_equations(layer, spec, inputs, logits)
    problem = sums.regularize(spec.to_canonical(kernel).astype(np.float64))
    shape = problem.equations.cross.shape
    found = problem.regularized.solve(pruned.masks.get(spec.path, np.ones(spec.canonical_shape, bool)).reshape(shape))
    fitted = found.reshape(spec.canonical_shape)
    layer.kernel.assign(spec.from_canonical(fitted).astype(layer.kernel.dtype))
    if layer.bias is not None:  # the mean, over the images alone, since views have another
        own = gather_equations(layer, spec, inputs[: len(images)], logits[: len(images)])
        layer.bias.assign((own.target_mean - own.predict_moments(fitted)[0]).astype(layer.bias.dtype))
    power = float(problem.equations.power.sum())
    return float(problem.equations.errors(found).sum()) / power if power > 0 else 0.0
