import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.surgery import read_bits
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.repair.batchnorm import observe_dense, recalibrate

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(2, 3, (20, 6, 6, 3)).astype(np.float32)


def batches_of(array, *sizes):
    return np.split(array, np.cumsum(sizes)[:-1])


def single(norm, shape=(6, 6, 3)):
    return keras.Sequential([keras.Input(shape), norm])


def assert_moments(norm, values, axis=-1):
    others = tuple(a for a in range(values.ndim) if a != axis % values.ndim)
    np.testing.assert_allclose(norm.moving_mean, values.mean(others, dtype=np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, values.var(others, dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"synchronized": True}, {"axis": 1}])
def test_one_layer_gets_the_moments_of_the_whole_set(options):
    norm = layers.BatchNormalization(**options)
    model = single(norm)
    outcome = recalibrate(model, batches_of(IMAGES, 8, 8, 3, 1))
    assert_moments(norm, IMAGES, options.get("axis", -1))
    assert outcome.repaired == (norm.name,) and outcome.unreached == ()


def test_frozen_layers_are_recalibrated_too():
    norm = layers.BatchNormalization(trainable=False)
    recalibrate(single(norm), [IMAGES])
    assert_moments(norm, IMAGES)


def test_layers_behind_see_a_normalized_signal():
    first, second = layers.BatchNormalization(), layers.BatchNormalization()
    model = keras.Sequential([keras.Input((6, 6, 3)), first, layers.ReLU(), second])
    for norm in (first, second):
        norm.moving_variance.assign([1e6] * 3)  # collapsed
    recalibrate(model, [IMAGES])
    normal = (IMAGES - IMAGES.mean((0, 1, 2))) / np.sqrt(IMAGES.var((0, 1, 2)) + first.epsilon)
    np.testing.assert_allclose(second.moving_mean, np.maximum(normal, 0).mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(second.moving_variance, np.maximum(normal, 0).var((0, 1, 2)), rtol=1e-4)


def test_only_moments_move_and_only_batch_norms_train():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.GaussianNoise(1.0),
            layers.Dropout(0.9),
            layers.Conv2D(4, 3, use_bias=False),
            norm := layers.BatchNormalization(),
        ]
    )
    others = [v for v in model.variables if v is not norm.moving_mean and v is not norm.moving_variance]
    before = read_bits(others)
    recalibrate(model, [IMAGES])
    assert len(before) == len(model.variables) - 2 and read_bits(others) == before
    assert_moments(norm, keras.ops.convert_to_numpy(model.layers[2](IMAGES)))  # neither noise nor dropout


def test_a_shared_layer_pools_both_calls():
    norm = layers.BatchNormalization()
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, layers.Add()([norm(inputs), norm(layers.Rescaling(3.0)(inputs))]))
    recalibrate(model, batches_of(IMAGES, 12, 8))
    assert_moments(norm, np.concatenate([IMAGES, 3 * IMAGES]))


def test_nested_models():
    norm = layers.BatchNormalization()
    inputs = keras.Input((6, 6, 3))
    recalibrate(keras.Model(inputs, single(norm)(inputs)), [IMAGES])
    assert_moments(norm, IMAGES)


@pytest.mark.parametrize("steps", [6, None])
def test_time_distributed(steps):
    norm = layers.BatchNormalization()
    inputs = keras.Input((steps, 6, 3))
    model = keras.Model(inputs, layers.TimeDistributed(norm)(inputs))
    recalibrate(model, batches_of(IMAGES, 12, 8))
    assert_moments(norm, IMAGES)


def test_masked_steps_do_not_count():
    values = RNG.normal(size=(8, 5, 3)).astype(np.float32)
    values[:, 3:] = 0.0
    norm = layers.BatchNormalization()
    model = keras.Sequential([keras.Input((5, 3)), layers.Masking(0.0), norm])
    recalibrate(model, [values])
    assert_moments(norm, values[:, :3])


class Branching(keras.Model):
    """A subclassed model with a batch norm that inference never reaches, and one inside a while loop."""

    def __init__(self):
        super().__init__()
        self.looped, self.unused = layers.BatchNormalization(), layers.BatchNormalization()

    def build(self, shape):
        self.looped.build(shape)
        self.unused.build(shape)
        self.built = True

    def call(self, x, training=False):
        if training:
            x = self.unused(x, training=True)
        return tf.while_loop(lambda i, x: i < 1, lambda i, x: (i + 1, self.looped(x)), (0, x))[1]


def test_control_flow_and_unreached_layers():
    model = Branching()
    model(IMAGES)
    model.unused.moving_mean.assign([7.0] * 3)
    outcome = recalibrate(model, batches_of(IMAGES, 12, 8))
    assert_moments(model.looped, IMAGES)
    assert outcome.unreached == (model.unused.name,)
    np.testing.assert_array_equal(model.unused.moving_mean, [7.0] * 3)


def test_mixed_precision():
    norm = layers.BatchNormalization(dtype="mixed_float16")
    recalibrate(single(norm), [IMAGES])
    np.testing.assert_allclose(norm.moving_variance, IMAGES.var((0, 1, 2)), rtol=1e-2)


def test_moving_average_follows_the_keras_convention():
    norm = layers.BatchNormalization(momentum=0.8)
    trained = layers.BatchNormalization(momentum=0.8)
    model, reference = single(norm), single(trained)
    parts = batches_of(IMAGES, 8, 8, 4)
    recalibrate(model, parts, mode="moving_average", momentum=0.8)
    for part in parts:
        reference(part, training=True)
    np.testing.assert_allclose(norm.moving_mean, trained.moving_mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, trained.moving_variance, rtol=1e-4)


def test_a_model_without_batch_norms_is_told_so():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    outcome = recalibrate(model, [np.zeros((4, 3), np.float32)])
    assert outcome.repaired == () and "nothing to restore" in outcome.statement


def test_the_model_works_as_before_afterwards():
    norm = layers.BatchNormalization()
    model = single(norm)
    recalibrate(model, [IMAGES])
    assert "call" not in norm.__dict__
    expected = (IMAGES - IMAGES.mean((0, 1, 2))) / np.sqrt(IMAGES.var((0, 1, 2)) + norm.epsilon)
    np.testing.assert_allclose(model(IMAGES), expected, atol=1e-4)


def interrupted():
    yield IMAGES
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("batches", "error"),
    [
        (interrupted(), KeyboardInterrupt),
        ([], InputError),
        ([IMAGES, IMAGES[:, :5]], InputError),
        ([IMAGES * np.nan], InputError),
    ],
)
def test_whatever_goes_wrong_the_moments_are_what_they_were(batches, error):
    norm = layers.BatchNormalization()
    model = single(norm)
    before = read_bits(model.variables)
    with pytest.raises(error):
        recalibrate(model, batches)
    assert read_bits(model.variables) == before
    assert "call" not in norm.__dict__


@pytest.mark.parametrize("options", [{"mode": "best"}, {"mode": "moving_average", "momentum": 1.0}])
def test_bad_options(options):
    with pytest.raises(InputError, match="Received: "):
        recalibrate(single(layers.BatchNormalization()), [IMAGES], **options)


@pytest.mark.slow
def test_every_layer_is_in_the_outcome():
    model = keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=3)
    outcome = recalibrate(model, [RNG.normal(size=(4, 32, 32, 3)).astype(np.float32)])
    assert len(outcome.repaired) == len(find_batch_norms(model)) == 52


def test_an_interrupt_between_two_layers_restores_both(monkeypatch):
    first, second = layers.BatchNormalization(), layers.BatchNormalization()
    model = keras.Sequential([keras.Input((6, 6, 3)), first, second])
    before = read_bits(model.variables)
    assign, calls = second.moving_mean.assign, []

    def interrupt_once(value):
        calls.append(value)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return assign(value)

    monkeypatch.setattr(second.moving_mean, "assign", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, [IMAGES])
    assert len(calls) == 2 and read_bits(model.variables) == before


def trained_elsewhere(seed=3):
    """A network whose batch norms have moments of other inputs than `IMAGES`."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3)(inputs)))
    x = layers.ReLU()(layers.BatchNormalization(epsilon=1e-5)(layers.Conv2D(12, 1, use_bias=False)(x)))
    model = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    recalibrate(model, [1.5 * IMAGES + RNG.normal(1, 2, IMAGES.shape).astype(np.float32)])
    return model


def test_beside_the_dense_network_nothing_changes_where_nothing_was_pruned():
    model = trained_elsewhere()
    before = model(IMAGES).numpy()
    references = observe_dense(model, [IMAGES])
    recalibrate(model, [IMAGES], references=references)
    np.testing.assert_allclose(model(IMAGES).numpy(), before, atol=1e-4)
    recalibrate(model, [IMAGES])
    assert np.abs(model(IMAGES).numpy() - before).max() > 0.1, "moments of other inputs are another function"


def test_beside_the_dense_network_outputs_have_the_moments_that_they_have_there():
    """Whatever became of the inputs: each norm's outputs have the dense ones' mean and variance on these images."""
    model = trained_elsewhere()
    norms = [place.layer for place in find_batch_norms(model)]
    look = keras.Model(model.inputs, [norm.output for norm in norms])
    dense = [outputs.numpy() for outputs in look(IMAGES)]
    references = observe_dense(model, [IMAGES])
    for layer in (model.layers[1], model.layers[4]):
        layer.kernel.assign(layer.kernel * (RNG.random(layer.kernel.shape) > 0.6))
    recalibrate(model, [IMAGES], references=references)
    for pruned, expected, norm in zip(look(IMAGES), dense, norms, strict=True):
        alive = np.asarray(norm.moving_variance) > 0.01
        of_pruned, of_dense = ((values.mean((0, 1, 2)), values.var((0, 1, 2))) for values in (pruned.numpy(), expected))
        assert alive.sum() > 4
        np.testing.assert_allclose(of_pruned[0][alive], of_dense[0][alive], atol=2e-3)
        np.testing.assert_allclose(of_pruned[1][alive], of_dense[1][alive], rtol=0.02)


def test_a_channel_that_died_gives_what_it_gave_in_the_mean():
    model = trained_elsewhere()
    norm = find_batch_norms(model)[0].layer
    look = keras.Model(model.inputs, norm.output)
    expected = look(IMAGES).numpy().mean((0, 1, 2))
    references = observe_dense(model, [IMAGES])
    model.layers[1].kernel.assign(0 * model.layers[1].kernel)
    recalibrate(model, [IMAGES], references=references)
    found = look(IMAGES).numpy()
    np.testing.assert_allclose(found.mean((0, 1, 2)), expected, atol=0.02)
    assert found.std((0, 1, 2)).max() < 1e-3 and np.asarray(norm.moving_variance).min() >= 0


def test_dense_activations_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="Activations must be finite"):
        observe_dense(trained_elsewhere(), [np.full((2, 6, 6, 3), np.inf, np.float32)])


def test_channels_that_never_vary_keep_their_moments_without_an_epsilon():
    inputs = keras.Input((6, 6, 3))
    conv = layers.Conv2D(4, 1, name="conv", kernel_initializer="zeros")
    model = keras.Model(inputs, layers.BatchNormalization(epsilon=0.0, name="norm")(conv(inputs)))
    references = observe_dense(model, [IMAGES])
    recalibrate(model, [IMAGES], references=references)
    np.testing.assert_allclose(model.get_layer("norm").moving_variance, 1, rtol=1e-6)
    np.testing.assert_allclose(model.get_layer("norm").moving_mean, 0, atol=1e-6)
