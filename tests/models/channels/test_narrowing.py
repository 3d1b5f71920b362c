import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflow_tf.models.channels.groups import find_channel_groups
from reflow_tf.models.channels.narrowing import find_masks, narrow
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import write_masks
from reflow_tf.models.zoo.architectures import ARCHITECTURES

SIZE = 6
SAMPLES = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)


def keep_some(model, seed=0):
    """Of every group that is free some channels, at least one; a group of one stays whole."""
    rng = np.random.default_rng(seed)
    return {
        position: np.sort(rng.permutation(group.size)[: rng.integers(1, max(2, group.size))])
        for position, group in enumerate(find_channel_groups(model))
        if group.frozen is None
    }


def assert_narrow_is_masked(model, samples=SAMPLES, seed=0):
    """Narrow and masked give the same; returns both numbers of weights."""
    kept = keep_some(model, seed)
    before = [np.array(weight) for weight in model.weights]
    narrower = narrow(model, kept)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    kernels = find_kernels(model)
    write_masks(kernels, find_masks(kernels, find_channel_groups(model), kept))
    for one, other in zip(
        keras.tree.flatten(model(samples, training=False)),
        keras.tree.flatten(narrower(samples, training=False)),
        strict=True,
    ):
        one, other = np.array(one), np.array(other)
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4 * max(np.abs(one).max(), 1e-3))
    return model.count_params(), narrower.count_params()


@settings(max_examples=25, derandomize=True)
@given(st.data())
def test_any_graph_narrowed_is_what_it_is_masked(build_network, steps, data):
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(steps), st.sampled_from([2, 3, 4])), min_size=1, max_size=5))
    before, after = assert_narrow_is_masked(
        build_network(*zip(*chosen, strict=True)), seed=data.draw(st.integers(0, 9))
    )
    assert after < before


def test_each_step_narrowed_is_what_it_is_masked(build_network, step):
    before, after = assert_narrow_is_masked(build_network(["conv", step, "conv"], [4, 4, 4]))
    assert after < before


APPLICATIONS = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0", "EfficientNetV2B0"),
    *("DenseNet121", "ResNet50", "ResNet50V2", "InceptionV3", "InceptionResNetV2", "Xception", "VGG16"),
    *("NASNetMobile", "ConvNeXtTiny"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_others_narrowed_are_what_they_are_masked(name):
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)
    samples = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    before, after = assert_narrow_is_masked(model, samples)
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet8", "resnet20", "mobilenet_v1_025", "ds_cnn"])
def test_networks_of_the_zoo_narrowed_are_what_they_are_masked(name):
    keras.utils.set_random_seed(0)
    model = ARCHITECTURES[name].build(32, 10)
    samples = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype(np.float32)
    before, after = assert_narrow_is_masked(model, samples)
    assert after < before
