import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.models.channels.pairing import pair_channels
from reflow_tf.models.graph import find_kernels
from reflow_tf.sparsity.patterns import Block

SIZE = 6
IMAGES = np.random.default_rng(0).normal(size=(12, SIZE, SIZE, 3)).astype(np.float32)


def build():
    """Two blocks with a stream between them, and a head."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    stream = layers.Conv2D(9, 1, name="stem")(inputs)
    for index in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(24, 1, name=f"expand_{index}")(stream)))
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        stream = layers.Add()([stream, layers.Conv2D(9, 1, name=f"project_{index}")(x)])
    x = layers.GlobalAveragePooling2D()(stream)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="classes")(x))


def score_kept(model, path):
    kernel = np.square(find_kernels(model).read()[path])
    return kernel[Block(2, 1).select(kernel, 0.5)].sum() / kernel.sum()


@pytest.mark.parametrize("batches", [None, [IMAGES]], ids=["magnitudes", "activations"])
def test_blocks_keep_more_and_nothing_else_changes(batches):
    model = build()
    specs = find_kernels(model).specs
    before = model(IMAGES, training=False)
    kept = {spec.path: score_kept(model, spec.path) for spec in specs}
    paired = pair_channels(model, specs, {spec.path: 2 for spec in specs}, 0.5, batches)
    np.testing.assert_allclose(model(IMAGES, training=False), before, rtol=1e-4, atol=1e-6)
    assert {"expand_0/kernel", "expand_1/kernel", "stem/kernel", "project_0/kernel", "project_1/kernel"} <= {*paired}
    assert "classes/kernel" not in paired
    for path in ("expand_0/kernel", "expand_1/kernel"):
        assert batches or score_kept(model, path) > kept[path] + 0.01


def test_only_kernels_with_blocks_have_a_say():
    model, plain = build(), build()
    specs = find_kernels(model).specs
    assert pair_channels(model, specs, {"expand_1/kernel": 2, "stem/kernel": 1}, 0.5, None) == ("expand_1/kernel",)
    now, before = find_kernels(model).read(), find_kernels(plain).read()
    np.testing.assert_array_equal(now["stem/kernel"], before["stem/kernel"])
    np.testing.assert_array_equal(now["expand_0/kernel"], before["expand_0/kernel"])
    assert not np.array_equal(now["expand_1/kernel"], before["expand_1/kernel"])


def test_a_model_of_which_nothing_is_known_stays(subclassed):
    specs = find_kernels(subclassed).specs
    assert pair_channels(subclassed, specs, {specs[0].path: 2}, 0.5, [np.zeros((1, 3), np.float32)]) == ()
