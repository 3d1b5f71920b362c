import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.models.channels.rotation import rotate_streams, spread_streams
from reflow_tf.models.channels.streams import change_basis, find_streams
from reflow_tf.models.fisher import gather_output_errors
from reflow_tf.models.graph import find_kernels
from reflow_tf.repair.batchnorm import recalibrate

SIZE = 6
SAMPLES = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)


def turn(model):
    """Puts every stream into a basis of chance; returns their sizes."""
    rng = np.random.default_rng(0)
    streams = find_streams(model)
    for stream in streams:
        change_basis(stream, np.linalg.qr(rng.normal(size=(stream.size,) * 2))[0])
    return [stream.size for stream in streams]


def assert_same_outputs(model, change):
    before = np.array(model(SAMPLES, training=False))
    found = change(model)
    after = np.array(model(SAMPLES, training=False))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * max(np.abs(before).max(), 1e-3))
    return found


def test_each_step_gives_what_it_gave(build_network, step):
    model = build_network(["relu6", "pointwise", step, "pointwise", "relu6"], [4, 4, 4, 4, 4])
    found = assert_same_outputs(model, turn)
    assert found or step not in {"pointwise", "strided", "residual", "pad", "norm"}


@pytest.fixture
def bottlenecks(randomize):
    """Makes two inverted residual blocks."""
    return lambda norms=True: randomize(build_bottlenecks(norms))


def build_bottlenecks(norms):
    """Two inverted residual blocks."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.ReLU()(layers.Conv2D(6, 3, padding="same")(inputs))
    stream = layers.BatchNormalization()(layers.Conv2D(5, 1)(x)) if norms else layers.Conv2D(5, 1)(x)
    for index in range(2):
        x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 1, name=f"expand_{index}")(stream)))
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name=f"depthwise_{index}")(x)
        x = layers.Conv2D(5, 1, name=f"project_{index}")(x)
        x = layers.BatchNormalization(name=f"norm_{index}")(x) if norms else x
        stream = layers.Add()([stream, layers.Dropout(0.1)(x)])
    x = layers.GlobalAveragePooling2D()(stream)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@pytest.mark.parametrize("norms", [True, False])
def test_a_residual_stream_is_one(bottlenecks, norms):
    model = bottlenecks(norms)
    (stream,) = find_streams(model)
    assert (stream.size, len(stream.writers), len(stream.readers)) == (5, 3, 3)
    assert assert_same_outputs(model, turn) == [5]


@pytest.mark.parametrize("norms", [True, False])
def test_the_basis_is_that_of_the_fisher(bottlenecks, norms):
    model = bottlenecks(norms)
    changing = list(find_kernels(model).variables.values())
    assert assert_same_outputs(model, lambda model: rotate_streams(model, SAMPLES, changing)) == 1
    watched = {writer.layer.name: writer.end for writer in find_streams(model)[0].writers}
    (errors,) = gather_output_errors(model, watched, [SAMPLES])
    total = sum(found.fisher for found in errors.values())
    np.testing.assert_allclose(total - np.diag(np.diag(total)), 0, atol=1e-3 * total.max())
    assert (np.diff(np.diag(total)) < 1e-6 * total.max()).all()


def test_reflow_leaves_a_turned_network_as_it_is(bottlenecks):
    """The moments on record are those that its batch norms meet: to meet them again changes nothing."""
    model = bottlenecks()
    recalibrate(model, [SAMPLES])
    before = np.array(model(SAMPLES, training=False))
    rotate_streams(model, SAMPLES, find_kernels(model).variables.values())
    recalibrate(model, [SAMPLES])
    np.testing.assert_allclose(model(SAMPLES, training=False), before, atol=2e-3)


def test_spread_channels_have_about_the_same_range(bottlenecks):
    model = bottlenecks()
    (stream,) = find_streams(model)
    for writer in stream.writers:
        writer.norm.gamma.assign([9.0, 0.1, 0.1, 0.1, 0.1])
    inside = keras.Model(model.input, model.get_layer("norm_1").output)

    def ratio():
        ranges = np.ptp(np.array(inside(SAMPLES, training=False)).reshape(-1, 5), axis=0)
        return ranges.max() / ranges.min()

    before = ratio()
    assert assert_same_outputs(model, lambda model: spread_streams(model, SAMPLES)) == 1
    assert ratio() < 0.5 * before
    sparse = model.get_layer("project_0").kernel
    assert spread_streams(model, SAMPLES, [sparse]) == 0


def test_streams_that_nobody_prunes_stay(bottlenecks):
    model = bottlenecks()
    before = [np.array(variable) for variable in model.weights]
    assert rotate_streams(model, SAMPLES, [model.get_layer("depthwise_0").kernel]) == 0
    for variable, values in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, values)


def test_streams_of_few_digits_stay(bottlenecks):
    model = bottlenecks()
    for layer in model.layers:
        for variable in layer.weights:
            variable._dtype = "bfloat16"  # what a layer of the policy bfloat16 says of itself
    assert rotate_streams(model, SAMPLES, find_kernels(model).variables.values()) == 0


@pytest.mark.parametrize("sizes", [(8, 12), (8, 8)])
def test_streams_of_nested_models_do_not_mix_though_layers_have_one_name(randomize, sizes):
    def build_block(number, channels, size):
        inner = keras.Input((SIZE, SIZE, channels))
        x = layers.ReLU()(layers.BatchNormalization(name="norm_1")(layers.Conv2D(16, 1, name="expand")(inner)))
        x = layers.BatchNormalization(name="norm_2")(layers.Conv2D(size, 1, name="project")(x))
        return keras.Model(inner, x, name=f"block_{number}")

    inputs = x = keras.Input((SIZE, SIZE, 3))
    for number, (channels, size) in enumerate(zip((3, *sizes), sizes, strict=False)):
        x = build_block(number, channels, size)(x)
    x = layers.ReLU()(layers.Conv2D(6, 1)(x))
    model = randomize(keras.Model(inputs, layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x))))
    kernels = find_kernels(model)
    assert assert_same_outputs(model, lambda m: rotate_streams(m, SAMPLES, kernels.variables.values())) == 2
    for number in range(2):  # each has the variances of its own inputs on record, and none the 1 of before
        norm = model.get_layer(f"block_{number}").get_layer("norm_2")
        assert not np.allclose(norm.moving_variance, 1)
