"""What normal equations are made of, against NumPy, and how sums of parts become those of all."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.repair.layer_sums import Samples, sum_inputs, sum_up, take_samples

GROUPS, INPUTS, POSITIONS = 2, 3, 4


def flatten(sums):
    """The arrays of sums, those inside first."""
    values = [getattr(sums, field.name) for field in dataclasses.fields(sums)]
    return [leaf for value in values for leaf in (flatten(value) if dataclasses.is_dataclass(value) else [value])]


def draw(seed, num_inputs=INPUTS):
    rng = np.random.default_rng(seed)
    shape = GROUPS, num_inputs * POSITIONS
    given = (rng.normal(1, 2, (*shape, size)).astype(np.float32) for size in (5, 4))
    return Samples(num_inputs, 1, *(tf.constant(values) for values in given))


def test_finished_they_are_covariances():
    samples = draw(0)
    sums = sum_up(samples).finish("a/kernel")
    for group in range(GROUPS):
        x, t = samples.inputs[group].numpy(), samples.targets[group].numpy()
        together = np.cov(x.T, t.T, bias=True)
        np.testing.assert_allclose(sums.equations.gram[group], together[:5, :5], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(sums.equations.cross[group], together[5:, :5], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(sums.equations.power[group], np.diagonal(together)[5:], rtol=1e-4)
        np.testing.assert_allclose(sums.moments.mean[group], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(sums.moments.target_mean, samples.targets.numpy().mean(1).ravel(), rtol=1e-5)


def test_moments_of_outputs_are_those_of_the_outputs():
    samples = draw(1)
    kernel = np.random.default_rng(2).normal(size=(GROUPS * 3, 1, 1, 5))
    outputs = np.einsum("god,gnd->gon", kernel.reshape(GROUPS, 3, 5), samples.inputs.numpy()).reshape(GROUPS * 3, -1)
    mean, variance = sum_inputs(samples).finish("a/kernel").predict(kernel)
    np.testing.assert_allclose(mean, outputs.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, outputs.var(1), rtol=1e-4)


def test_parts_add_up():
    one, other = draw(3), draw(4, num_inputs=2)
    both = Samples(
        INPUTS + 2, 1, *(tf.concat([getattr(s, n) for s in (one, other)], axis=1) for n in ("inputs", "targets"))
    )
    for mine, theirs in zip(flatten(sum_up(one) + sum_up(other)), flatten(sum_up(both)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-4)


def test_an_average_is_one_sample_of_each_input():
    samples = draw(5)
    means = samples.average()
    expected = samples.inputs.numpy().reshape(GROUPS, INPUTS, POSITIONS, 5).mean(2)
    np.testing.assert_allclose(means.inputs, expected, rtol=1e-5)
    assert means.targets.shape == (GROUPS, INPUTS, 4)
    assert sum_inputs(means).count == INPUTS


@pytest.mark.parametrize("broken", ["inputs", "targets"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused(broken, value):
    samples = draw(6)
    values = getattr(samples, broken).numpy()
    values[0, 0, 0] = value
    sums = sum_up(dataclasses.replace(samples, **{broken: values}))
    with pytest.raises(InputError, match=r"must be finite.*around a/kernel"):
        sums.finish("a/kernel")


@settings(max_examples=20)
@given(st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_a_position_counts_as_often_as_it_is_worth(worth):
    """So many times as much as if it had been there so often."""
    layer = layers.Dense(4)
    model = keras.Sequential([keras.Input((3, 2)), layer])
    (spec,) = find_kernels(model).specs
    rng = np.random.default_rng(0)
    inputs, targets = (rng.normal(size=(2, 3, size)).astype(np.float32) for size in (2, 4))
    weighed = sum_up(take_samples(layer, spec, inputs, targets), tf.constant(worth, tf.float32, (2, 3)))
    repeated = [np.repeat(values.reshape(6, -1), worth, axis=0)[None] for values in (inputs, targets)]
    plain = sum_up(take_samples(layer, spec, *repeated))
    for one, other in zip(flatten(weighed), flatten(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


LAYERS = {
    "a convolution": lambda: layers.Conv2D(4, 3, strides=2, padding="same"),
    "a depthwise one": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
    "a strided depthwise one": lambda: layers.DepthwiseConv2D(3, strides=2),
    "groups": lambda: layers.Conv2D(4, 3, groups=2),
    "a transposed one": lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@settings(max_examples=10)
@given(st.integers(3, 90), st.integers(3, 90))
def test_what_a_kernel_multiplies_and_what_it_gives_are_of_the_same_positions(layer, height, width):
    """However they are thinned out: what the layer itself gave is what its kernel makes of the samples."""
    layer = layer()
    layer.build((None, height, width, 2))
    inputs = np.random.default_rng(height * width).normal(size=(2, height, width, 2)).astype(np.float32)
    layer.bias.assign(np.zeros(layer.bias.shape))
    (spec,) = find_kernels(keras.Sequential([keras.Input((height, width, 2)), layer])).specs
    samples = take_samples(layer, spec, tf.constant(inputs), layer(inputs))
    groups, _, width_of_group = samples.inputs.shape
    kernel = spec.to_canonical(layer.kernel.numpy()).reshape(groups, -1, width_of_group)
    expected = np.einsum("gnd,god->gno", samples.inputs.numpy(), kernel)
    np.testing.assert_allclose(samples.targets.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_of_thinned_positions_those_count_that_are_looked_at():
    layer = layers.Conv2D(2, 1)
    model = keras.Sequential([keras.Input((40, 40, 3)), layer])  # every second row and column is looked at
    (spec,) = find_kernels(model).specs
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 40, 40, 3)).astype(np.float32)
    targets, worth = layer(inputs), rng.uniform(size=(2, 40, 40)).astype(np.float32)
    sums = sum_up(take_samples(layer, spec, inputs, targets), worth)
    assert sums.moments.count == pytest.approx(worth[:, ::2, ::2].sum(), rel=1e-5)
    expected = np.einsum("nhw,nhwc->c", worth[:, ::2, ::2], inputs[:, ::2, ::2])
    np.testing.assert_allclose(sums.moments.inputs[0], expected, rtol=1e-4)
