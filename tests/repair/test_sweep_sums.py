"""What a step is settled by: sums over inputs, taken before it in both networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.models.execution import read_steps
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.sidebyside import Pair
from reflow_tf.repair.contract import PrunedModel, read_weights
from reflow_tf.repair.sweep_sums import Meter

HEIGHT, WIDTH, CHANNELS = 6, 5, 8


def build(axis, squeezed):
    """A layer that loses something, and one behind whose batch norm the lossy one's output is added."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((HEIGHT, WIDTH, 3))
    x = layers.Conv2D(CHANNELS, 1, name="lossy")(inputs)
    pixel, vector = (layers.GlobalAveragePooling2D(keepdims=keep)(x) for keep in (True, False))
    # Of a shortcut is known what was computed before the fitted layer: here it takes them all, by gates.
    gated = layers.Multiply()([x, pixel])
    fitted, *added = {
        "none": (x, x),
        "shortcut": (gated, pixel),
        "two shortcuts": (gated, x, pixel),
        "a vector": (layers.Multiply()([x, layers.Reshape((1, 1, CHANNELS))(vector)]), vector),
        "branch": (pixel, x),
    }[squeezed]
    y = layers.Conv2D(CHANNELS, 1, use_bias=False, name="fitted")(fitted)
    norm = layers.BatchNormalization(axis=axis, name="norm")
    model = keras.Model(inputs, layers.Add()([norm(y), *added]))
    norm.gamma.assign(np.linspace(0.5, 5, norm.gamma.shape[0]))
    return model


def measure(model, images):
    """Sums before the fitted layer, the lossy one's kernel halved; what the layer gives, and what the shortcut lost."""
    masks = {path: np.ones_like(kernel, bool) for path, kernel in find_kernels(model).read().items()}
    steps = read_steps(model)
    meter = Meter(PrunedModel(model, masks, read_weights(model)), steps)
    kernel = model.get_layer("lossy").kernel
    kernel.assign(0.5 * kernel)
    tensor = tf.convert_to_tensor(images)
    ledger = Ledger(steps, {steps.input: Pair(tensor, tensor)})
    for position, step in enumerate(steps):
        if step.operation.name == "fitted":
            sums = meter(position, ledger, None).sums
            (sum_step,) = (step for step in steps if type(step.operation).__name__ == "Add")
            lost = [(ledger[t].dense - ledger[t].pruned).numpy() for t in sum_step.inputs[1:]]
            return sums, meter.networks.compute_dense(step, ledger).numpy(), lost
        ledger.enter(step, meter.networks.compute(position, ledger))
    raise AssertionError("no such step")


@pytest.mark.parametrize("axis", [3, -1, 1, -2])
@pytest.mark.parametrize("squeezed", ["none", "shortcut", "two shortcuts", "a vector", "branch"])
def test_what_shortcuts_lost_is_in_the_units_of_the_layer_and_of_its_shape(axis, squeezed):
    model = build(axis, squeezed)
    images = np.random.default_rng(0).normal(size=(4, HEIGHT, WIDTH, 3)).astype(np.float32)
    sums, given, shares = measure(model, images)
    norm, shape = model.get_layer("norm"), [1] * 4
    shape[axis] = -1
    lost = sum(share if share.ndim == 4 else share[:, None, None] for share in shares)
    if squeezed == "branch":  # one output for all positions: what they lost on average is the best that it can make up
        lost = lost.mean((1, 2), keepdims=True)
    lost = lost / np.reshape(norm.gamma / np.sqrt(norm.moving_variance + norm.epsilon), shape)
    expected = (given + lost).reshape(-1, CHANNELS).sum(0)
    np.testing.assert_allclose(sums.moments.targets[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("masked", "fitted"),
    [
        (("first/kernel",), {"first/kernel", "depthwise/kernel"}),
        (
            ("first/kernel", "separable/pointwise_kernel"),
            {"first/kernel", "separable/pointwise_kernel", "depthwise/kernel"},
        ),
        (("separable/depthwise_kernel",), {"depthwise/kernel"}),
        (("separable/pointwise_kernel", "separable/depthwise_kernel"), {"depthwise/kernel"}),
        (("depthwise/kernel",), {"depthwise/kernel"}),
    ],
)
def test_fitted_are_pruned_kernels_that_give_their_layers_output_and_depthwise_ones_behind(masked, fitted):
    inputs = keras.Input((HEIGHT, WIDTH, 3))
    x = layers.DepthwiseConv2D(1, name="before")(inputs)
    x = layers.SeparableConv2D(CHANNELS, 3, name="separable")(layers.Conv2D(CHANNELS, 1, name="first")(x))
    model = keras.Model(inputs, layers.DepthwiseConv2D(3, name="depthwise")(x))
    kernels = find_kernels(model).read()
    masks = {path: np.ones_like(kernels[path], bool) for path in masked}
    meter = Meter(PrunedModel(model, masks, read_weights(model)), read_steps(model))
    assert {spec.path for spec in meter.specs.values()} == fitted
