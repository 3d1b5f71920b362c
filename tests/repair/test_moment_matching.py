import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import read_bits, write_masks
from reflow_tf.repair.contract import PrunedModel, read_weights
from reflow_tf.repair.moment_matching import match_moments

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(1, 2, (24, 6, 6, 4)).astype(np.float32)


def prune(model, sparsity=0.5, seed=0):
    """Zeroes weights by chance, but never a channel's largest."""
    kernels = find_kernels(model)
    rng = np.random.default_rng(seed)
    sizes = {path: np.abs(kernel).reshape(len(kernel), -1) for path, kernel in kernels.read().items()}
    masks = {
        spec.path: (
            (rng.random(sizes[spec.path].shape) >= sparsity)
            | (sizes[spec.path] == sizes[spec.path].max(1, keepdims=True))
        ).reshape(spec.canonical_shape)
        for spec in kernels.specs
    }
    dense = read_weights(model)
    write_masks(kernels, masks)
    return PrunedModel(model, masks, dense)


def assert_zeros(pruned):
    for path, kernel in find_kernels(pruned.model).read().items():
        assert not kernel[~pruned.masks[path]].any()


def outputs(model, layer, images=IMAGES):
    """Before the activation, of a layer that has none."""
    probe = keras.Model(model.inputs[0], layer.output)
    values = keras.ops.convert_to_numpy(probe(images)).astype(np.float64)
    return values.reshape(-1, values.shape[-1])


def on_images(*stack):
    return keras.Sequential([keras.Input((6, 6, 4)), *stack])


KINDS = {
    "conv": lambda: layers.Conv2D(6, 3),
    "pointwise": lambda: layers.Conv2D(6, 1),
    "grouped": lambda: layers.Conv2D(6, 1, groups=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
    "separable": lambda: layers.SeparableConv2D(5, 3, padding="same"),
    "transposed": lambda: layers.Conv2DTranspose(5, 2),
    "dense": lambda: layers.Dense(6),
}


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.lists(st.sampled_from(sorted(KINDS)).filter(lambda k: k != "grouped"), min_size=1, max_size=2),
    st.integers(0, 99),
    st.sampled_from([24, 12, 7]),
)
def test_every_layer_gets_the_dense_moments(kinds, seed, batch_size):
    keras.utils.set_random_seed(seed)
    stack = [KINDS[kind]() for kind in kinds]
    between = [part for layer in stack for part in (layer, layers.Activation("gelu"))]
    model = on_images(*between)
    expected = [outputs(model, layer) for layer in stack]
    pruned = prune(model, 0.4, seed)
    match_moments(pruned, np.split(IMAGES, range(batch_size, 24, batch_size)))
    for layer, dense in zip(stack, expected, strict=True):
        deviation, values = dense.std(0), outputs(model, layer)
        np.testing.assert_array_less(np.abs(values.mean(0) - dense.mean(0)) / deviation, 1e-4)
        np.testing.assert_array_less(np.abs(values.std(0) / deviation - 1), 1e-4)
    assert_zeros(pruned)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_layer_by_hand(kind):
    layer = KINDS[kind]()
    model = on_images(layer)
    layer.bias.assign(RNG.normal(size=layer.bias.shape))
    dense = outputs(model, layer)
    pruned = prune(model)
    before = outputs(model, layer)
    outcome = match_moments(pruned, np.split(IMAGES, 2))
    scale = dense.std(0) / before.std(0)
    np.testing.assert_allclose(
        outputs(model, layer), (before - before.mean(0)) * scale + dense.mean(0), atol=2e-4 * dense.std()
    )
    assert outcome.repaired == (layer.name,) and outcome.moved == ("kernel", "bias")


def test_the_activation_comes_after():
    layer = layers.Dense(6, activation="relu")
    model = on_images(layer)
    twin = on_images(layers.Dense(6))
    twin.set_weights(model.get_weights())
    pruned = prune(model)
    twin_pruned = prune(twin)
    for one in (pruned, twin_pruned):
        match_moments(one, [IMAGES])
    np.testing.assert_allclose(model.get_weights()[0], twin.get_weights()[0], rtol=1e-5)
    assert layer.activation is keras.activations.relu


def test_without_a_bias_only_the_variance_is_matched():
    layer = layers.Conv2D(6, 3, use_bias=False)
    model = on_images(layer)
    dense = outputs(model, layer)
    outcome = match_moments(prune(model), [IMAGES])
    np.testing.assert_allclose(outputs(model, layer).std(0), dense.std(0), rtol=1e-3)
    assert np.abs(outputs(model, layer).mean(0) - dense.mean(0)).max() > 0.1
    assert "1 without bias: the variance only" in outcome.statement


def test_a_dead_channel_gets_its_mean_only():
    layer = layers.Dense(3)
    model = on_images(layer)
    dense = outputs(model, layer)
    kernels = find_kernels(model)
    weights = read_weights(model)
    mask = np.ones((3, 4), bool)
    mask[1] = False
    write_masks(kernels, {"dense": mask} | {kernels.specs[0].path: mask})
    pruned = PrunedModel(model, {kernels.specs[0].path: mask}, weights)
    match_moments(pruned, [IMAGES])
    values = outputs(model, layer)
    np.testing.assert_allclose(values.mean(0), dense.mean(0), atol=1e-4)
    assert values.std(0)[1] < 1e-6 and np.isfinite(model.get_weights()[0]).all()


def test_layers_before_a_batch_norm_stay():
    conv, norm, dense = layers.Conv2D(4, 1), layers.BatchNormalization(), layers.Dense(3)
    pruned = prune(on_images(conv, norm, layers.ReLU(), dense))
    before = read_bits([*conv.variables, *norm.variables])
    outcome = match_moments(pruned, [IMAGES])
    assert outcome.repaired == (dense.name,)
    assert read_bits([*conv.variables, *norm.variables]) == before


def test_nothing_to_do_is_said():
    pruned = prune(on_images(layers.Conv2D(4, 1), layers.BatchNormalization()))
    outcome = match_moments(pruned, [IMAGES])
    assert outcome.repaired == () and "every pruned kernel" in outcome.statement


def test_kernels_without_a_rule_are_named():
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, layers.Dense(2)(layers.LSTM(3, return_sequences=True, name="lstm")(inputs)))
    outcome = match_moments(prune(model), [RNG.normal(size=(8, 5, 8)).astype(np.float32)])
    assert outcome.repaired == ("dense",) or len(outcome.repaired) == 1
    assert "No rule for lstm/lstm_cell/kernel, lstm/lstm_cell/recurrent_kernel" in outcome.statement


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.unused, self.two = layers.Dense(4, activation="gelu"), layers.Dense(2), layers.Dense(3)

    def build(self, shape):
        for layer in (self.one, self.unused, self.two):
            layer.build((None, 4))

    def call(self, x):
        return self.two(self.one(x))


def test_subclassed_models_and_unreached_layers():
    model = Subclassed()
    model(IMAGES)
    dense = keras.ops.convert_to_numpy(model(IMAGES)).reshape(-1, 3)
    pruned = prune(model)
    outcome = match_moments(pruned, np.split(IMAGES, 3))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(IMAGES)).reshape(-1, 3).std(0), dense.std(0), rtol=3e-3)
    assert outcome.unreached == (model.unused.name,)


def interrupted():
    yield IMAGES
    raise KeyboardInterrupt


class EndsEarly:
    """Whole the first time, for the dense network; then it breaks."""

    def __init__(self, good, bad):
        self.parts = iter([good, bad])

    def __iter__(self):
        return iter(next(self.parts))


@pytest.mark.parametrize(
    ("batches", "error"),
    [
        ([], InputError),
        ([IMAGES[:, :5]], InputError),
        ([IMAGES * np.nan], InputError),
        (interrupted(), KeyboardInterrupt),
        (EndsEarly([IMAGES], interrupted()), KeyboardInterrupt),
        (EndsEarly([IMAGES], []), InputError),
    ],
)
def test_whatever_goes_wrong_the_model_is_what_it_was(batches, error):
    model = on_images(layers.Conv2D(4, 1), layers.ReLU(), layers.Conv2D(4, 1))
    pruned = prune(model)
    before = read_bits(model.variables)
    with pytest.raises(error):
        match_moments(pruned, batches)
    assert read_bits(model.variables) == before
    assert not any("call" in layer.__dict__ for layer in model.layers)
