import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models import gram
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import read_bits

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(1, 2, (6, 7, 8, 4)).astype(np.float32)
SERIES = RNG.normal(1, 2, (6, 9, 4)).astype(np.float32)


def on(inputs, *stack):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(inputs.shape[1:]), *stack])


def gather(model, *batches):
    specs = find_kernels(model).specs
    return specs, gram.gather(model, specs, batches)


VOLUMES = RNG.normal(1, 2, (6, 5, 4, 6, 3)).astype(np.float32)
OF_VOLUMES = [
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (2, 1, 3), "strides": (2, 1, 1), "padding": "same"},
    {"kernel_size": 2, "dilation_rate": (2, 1, 3), "padding": "valid"},
    {"kernel_size": 2, "strides": 2, "padding": "valid"},
    {"kernel_size": 1, "padding": "valid"},
]
CONVOLUTIONS = [
    (IMAGES, layers.Conv2D(6, 3, padding="same", name="layer")),
    (IMAGES, layers.Conv2D(6, (2, 3), strides=(2, 1), padding="same", name="layer")),
    (IMAGES, layers.Conv2D(6, 3, dilation_rate=2, padding="same", name="layer")),
    (IMAGES, layers.Conv2D(6, 3, strides=2, padding="valid", name="layer")),
    (IMAGES, layers.Conv2D(6, 1, strides=2, padding="same", name="layer")),
    (IMAGES, layers.Conv2D(6, 3, groups=2, padding="same", name="layer")),
    (IMAGES, layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="layer")),
    (IMAGES, layers.DepthwiseConv2D(3, strides=2, padding="same", name="layer")),
    (SERIES, layers.Conv1D(6, 3, padding="causal", name="layer")),
    (SERIES, layers.Conv1D(6, 3, strides=2, groups=2, padding="same", name="layer")),
    (SERIES, layers.DepthwiseConv1D(3, padding="same", name="layer")),
    *(
        (IMAGES, layers.Conv2DTranspose(5, size, strides=strides, padding=padding, name="layer"))
        for size in (1, 2, (3, 2), 4)
        for strides in (1, 2, (1, 3))
        for padding in ("same", "valid")
    ),
    (SERIES, layers.Conv1DTranspose(5, 4, strides=2, padding="same", name="layer")),
    (SERIES, layers.Conv1DTranspose(5, 3, strides=4, padding="valid", name="layer")),
    *((VOLUMES, layers.Conv3D(5, name="layer", **options)) for options in OF_VOLUMES),
    (SERIES, layers.EinsumDense("abc,cd->abd", (None, 5), name="layer")),
    (SERIES, layers.EinsumDense("...c,cd->...d", 5, name="layer")),
    (IMAGES, layers.EinsumDense("abcd,cde->abe", (None, 5), name="layer")),
    (IMAGES, layers.Dense(5, name="layer")),
    (SERIES[:, 0], layers.Dense(5, name="layer")),
]


@pytest.mark.parametrize(("inputs", "layer"), CONVOLUTIONS)
def test_the_gram_predicts_the_power_of_every_output(inputs, layer):
    """An output is w . x, so its mean square over images and positions is w^T G w: nothing here knows of patches."""
    without = {} if isinstance(layer, layers.EinsumDense) else {"use_bias": False}
    layer = type(layer).from_config(layer.get_config() | without)
    model = on(inputs, layer)
    (spec,), found = gather(model, inputs[:4], inputs[4:])
    matrices = found[spec.path]
    kernel = find_kernels(model).read()[spec.path].reshape(len(matrices), -1, matrices.shape[-1]).astype(float)
    outputs = layer(inputs).numpy().astype(float)
    power = np.square(outputs).mean(axis=tuple(range(outputs.ndim - 1)))
    np.testing.assert_allclose(np.einsum("goi,gij,goj->go", kernel, matrices, kernel).ravel(), power, rtol=1e-4)


def test_the_patches_lie_as_the_canonical_kernel_does():
    (spec,), found = gather(on(IMAGES, layers.Conv2D(6, 2, groups=2, name="grouped")), IMAGES)
    expected = np.zeros((2, 8, 8))
    for group in range(2):
        for image in IMAGES[..., 2 * group : 2 * group + 2].astype(float):
            for row in range(6):
                for column in range(7):
                    patch = image[row : row + 2, column : column + 2].ravel()  # (spatial, input)
                    expected[group] += np.outer(patch, patch) / (6 * 6 * 7)
    np.testing.assert_allclose(found[spec.path], expected, rtol=1e-5, atol=1e-5)
    assert found[spec.path].dtype == np.float64


@pytest.mark.parametrize("kind", [layers.SeparableConv1D, layers.SeparableConv2D])
def test_both_halves_of_a_separable_convolution(kind):
    inputs = SERIES if kind is layers.SeparableConv1D else IMAGES
    separable = kind(5, 3, depth_multiplier=2, padding="same", use_bias=False, name="both")
    model = on(inputs, separable)
    specs, found = gather(model, inputs)
    size = 3 ** (inputs.ndim - 2)
    assert [found[spec.path].shape for spec in specs] == [(4, size, size), (1, 8, 8)]
    pointwise = find_kernels(model).read()["both/pointwise_kernel"].reshape(5, 8)
    power = np.square(separable(inputs).numpy()).mean(axis=tuple(range(inputs.ndim - 1)))
    np.testing.assert_allclose(
        np.einsum("oi,ij,oj->o", pointwise, found["both/pointwise_kernel"][0], pointwise), power, rtol=1e-4
    )


def test_of_many_positions_every_so_many_rows_and_columns_are_taken(monkeypatch):
    monkeypatch.setattr(gram, "MOST_POSITIONS", 20)  # of 7 x 8: every second row and column, 4 x 4
    monkeypatch.setattr(gram, "MOST_OF_CHANNEL", 9)  # every third
    (spec,), found = gather(on(IMAGES, layers.Conv2D(5, 1, name="layer")), IMAGES)
    taken = IMAGES[:, ::2, ::2].reshape(-1, 4).astype(float)
    np.testing.assert_allclose(found[spec.path][0], taken.T @ taken / len(taken), rtol=1e-5)
    (spec,), found = gather(on(IMAGES, layers.DepthwiseConv2D(1, name="layer")), IMAGES)
    taken = IMAGES[:, ::3, ::3].reshape(-1, 4).astype(float)
    np.testing.assert_allclose(found[spec.path].ravel(), np.square(taken).mean(0), rtol=1e-5)


def test_thinned_out_positions_of_a_transposed_layer_meet_all_taps(monkeypatch):
    """Every second row and column of stride 2 would meet the same taps: here every third of 7 x 8 is taken, times 2."""
    plain, twice = layers.Conv2D(5, 3), layers.Conv2DTranspose(5, 3, strides=2)
    aside = layers.Conv2DTranspose(5, 3, strides=(1, 3))
    assert [gram.find_thinning(each, "kernel", [64, 64]) for each in (plain, twice, aside)] == [2, 3, 2]
    assert gram.find_thinning(twice, "kernel", [8, 8]) == 1
    monkeypatch.setattr(gram, "MOST_POSITIONS", 40)
    layer = layers.Conv2DTranspose(5, 3, strides=2, padding="same", use_bias=False, name="layer")
    (spec,), found = gather(on(IMAGES, layer), IMAGES)
    kernel = layer.kernel.numpy().transpose(2, 0, 1, 3).reshape(5, -1).astype(float)
    power = np.square(layer(IMAGES).numpy()[:, ::3, ::3]).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(np.einsum("oi,ij,oj->o", kernel, found[spec.path][0], kernel), power, rtol=1e-4)


def test_a_shared_layer_pools_its_calls_in_nested_models():
    shared = layers.Dense(4, use_bias=False, name="shared")
    inner = on(SERIES, shared)
    inputs = keras.Input(SERIES.shape[1:])
    model = keras.Model(inputs, inner(layers.Rescaling(3.0)(inner(inputs))))
    (spec,), found = gather(model, SERIES)
    once = SERIES.reshape(-1, 4).astype(float)
    twice = 3 * once @ shared.kernel.numpy()
    np.testing.assert_allclose(found[spec.path][0], (once.T @ once + twice.T @ twice) / (2 * len(once)), rtol=1e-4)


class Branching(keras.Model):
    """A subclassed model with a layer inside a while loop and one that inference never reaches."""

    def __init__(self):
        super().__init__()
        self.looped, self.unused = layers.Dense(4, name="looped"), layers.Dense(4, name="unused")

    def build(self, shape):
        self.looped.build(shape)
        self.unused.build(shape)
        self.built = True

    def call(self, x, training=False):
        if training:
            x = self.unused(x)
        return tf.while_loop(lambda i, x: i < 1, lambda i, x: (i + 1, self.looped(x)), (0, x))[1]


def test_subclassed_models_control_flow_and_unreached_layers():
    model = Branching()
    model(SERIES)
    _, found = gather(model, SERIES)
    assert list(found) == ["looped/kernel"]
    values = SERIES.reshape(-1, 4).astype(float)
    np.testing.assert_allclose(found["looped/kernel"][0], values.T @ values / len(values), rtol=1e-5)


def test_layers_without_a_rule_are_named():
    model = on(SERIES, layers.Dense(4, name="fine"), layers.LSTM(3, name="memory"))
    with pytest.raises(InputError, match=r"Received: .*memory/.*kernel \(LSTMCell\), .*recurrent_kernel \(LSTMCell\)$"):
        gather(model, SERIES)
    for layer in (
        layers.Conv2DTranspose(3, 2, dilation_rate=2, name="up"),
        layers.Conv2DTranspose(3, 2, strides=2, output_padding=1, name="wider"),
        layers.EinsumDense("abcd,ce->abed", (7, 3, 4), name="einsum"),
    ):
        with pytest.raises(InputError, match=rf"Received: {layer.name}/kernel"):
            gather(on(IMAGES, layer), IMAGES)


def test_the_model_is_as_before_afterwards_whatever_happens():
    model = on(IMAGES, layers.Conv2D(5, 1, name="layer"))
    before = read_bits(model.variables)
    gather(model, IMAGES)
    for batches in ([], [IMAGES[:, :5]]):
        with pytest.raises(InputError):
            gather(model, *batches)
    assert "call" not in model.layers[0].__dict__ and read_bits(model.variables) == before
