"""Batch norms that were merged into scale and shift: recognised, given moments, and nothing else computed."""

import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.errors import InputError
from reflow_tf.models.surgery import copy_model, read_bits
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.repair.batchnorm import recalibrate
from reflow_tf.repair.unmerging import find_merged, unmerge

CONFIG = reflow_tf.PruneConfig(target="storage", sparsity=0.6)


def draw(seed, count=48):
    return np.random.default_rng(seed).normal(1, 2, (count, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def original():
    """Scales and shifts as after training, and the moments that its inputs have at inference on `draw(0)`."""
    keras.utils.set_random_seed(5)
    inputs, rng = keras.Input((8, 8, 3)), np.random.default_rng(6)
    x = layers.ReLU()(layers.BatchNormalization(name="a")(layers.Conv2D(12, 3, use_bias=False)(inputs)))
    x = layers.ReLU()(layers.BatchNormalization(name="b", epsilon=1e-5)(layers.Conv2D(16, 1)(x)))
    model = keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    for name in "ab":  # one after the other: the second sees what the first gives now
        norm = model.get_layer(name)
        norm.gamma.assign(rng.uniform(0.5, 2, norm.gamma.shape))
        norm.beta.assign(rng.normal(size=norm.beta.shape))
        taken = keras.Model(model.inputs, norm.input)(draw(0)).numpy()
        norm.moving_mean.assign(taken.mean((0, 1, 2)))
        norm.moving_variance.assign(taken.var((0, 1, 2)))
    return model


def merge(model, exactly=True):
    merged = copy_model(model)
    for norm in (place.layer for place in find_batch_norms(merged)):
        slope = norm.gamma / np.sqrt(norm.moving_variance + norm.epsilon)
        norm.beta.assign(norm.beta - slope * norm.moving_mean)
        norm.gamma.assign(slope if exactly else slope * np.sqrt(1 + norm.epsilon))
        norm.moving_mean.assign(np.zeros(norm.moving_mean.shape))
        norm.moving_variance.assign(np.full(norm.moving_variance.shape, 1 - norm.epsilon if exactly else 1.0))
    return merged


@pytest.mark.parametrize("exactly", [True, False])
def test_the_function_stays_and_the_moments_come_back(original, exactly):
    merged = merge(original, exactly)
    before = merged(draw(1)).numpy()
    assert unmerge(merged, [draw(0)]) == ("a", "b") and not find_merged(merged)
    np.testing.assert_allclose(merged(draw(1)).numpy(), before, atol=1e-6)
    for name in "ab":
        for own, expected in zip(merged.get_layer(name).variables, original.get_layer(name).variables, strict=True):
            np.testing.assert_allclose(own.numpy(), expected.numpy(), rtol=2e-3, atol=2e-3)


def test_a_merged_network_is_pruned_and_restored_as_the_one_that_it_was(original):
    merged = merge(original)
    bits = read_bits(merged.variables)
    results = [reflow_tf.prune(model, CONFIG, draw(0)) for model in (original, merged)]
    outputs = [result.model(draw(1)).numpy() for result in results]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-4)
    assert [result.report.unmerged for result in results] == [(), ("a", "b")]
    assert read_bits(merged.variables) == bits, "the model that was given stays"
    as_it_stands = copy_model(merged)
    recalibrate(as_it_stands, [draw(0)])  # without the check that refuses it
    assert np.abs(as_it_stands(draw(1)).numpy() - original(draw(1)).numpy()).max() > 0.05, "it would be another one"


def test_only_what_scales_or_shifts_is_taken_for_merged(original):
    assert not find_merged(original)
    fresh = keras.Sequential(
        [keras.Input((4, 4, 2)), layers.BatchNormalization(), layers.BatchNormalization(scale=False)]
    )
    assert not find_merged(fresh) and unmerge(fresh, []) == ()
    fresh.layers[1].beta.assign([1.0, 2.0])
    assert not find_merged(fresh), "without a scale there is nothing to hold the variance"
    fresh.layers[0].beta.assign([1.0, 2.0])
    assert [place.layer for place in find_merged(fresh)] == [fresh.layers[0]]


def test_a_channel_without_variance_computes_what_it_did(original):
    merged = merge(original)
    merged.layers[1].kernel.assign(merged.layers[1].kernel * (np.arange(12) > 0))
    before = merged(draw(1)).numpy()
    unmerge(merged, [draw(0)])
    np.testing.assert_allclose(merged(draw(1)).numpy(), before, atol=1e-6)


def test_what_was_pruned_by_others_cannot_be_recalibrated(original):
    with pytest.raises(InputError, match=r"they are merged into scale and shift.*Received: 2 such, a, b"):
        reflow_tf.recalibrate(merge(original), draw(0))


def test_activations_that_are_not_finite_leave_the_model_as_it_was(original):
    merged = merge(original)
    bits = read_bits(merged.variables)
    with pytest.raises(InputError, match=r"must be finite"):
        unmerge(merged, [np.full((4, 8, 8, 3), 1e38, np.float32)])
    assert read_bits(merged.variables) == bits


def test_moments_that_the_variables_cannot_hold_leave_the_model_as_it_was():
    inputs = keras.Input((8, 8, 3), dtype="float16")
    options = {"dtype": "float16"}
    x = layers.BatchNormalization(name="a", **options)(layers.Conv2D(4, 1, name="conv", **options)(inputs))
    x = layers.BatchNormalization(name="b", **options)(layers.Conv2D(4, 1, **options)(x))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D(**options)(x))
    for name in "ab":
        model.get_layer(name).gamma.assign(np.full(4, 0.01))
        model.get_layer(name).beta.assign(np.full(4, 0.5))
    model.get_layer("conv").kernel.assign(np.full((1, 1, 3, 4), 300))
    bits = read_bits(model.variables)
    with pytest.raises(InputError, match=r"float16 variable moving_variance of layer a cannot hold"):
        unmerge(model, [draw(0)])
    assert read_bits(model.variables) == bits
