"""A single sigmoid is read as two classes, wherever outputs are read; what is none stays what it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.models.fisher import gather, gather_output_gains
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.predictions import count_sigmoids, read_outputs, run_predictions
from reflow_tf.signal import measure_signal

X = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)


@keras.saving.register_keras_serializable("test_predictions")
class Subclassed(keras.Model):
    def __init__(self, activation):
        super().__init__()
        self.head = layers.Dense(1, activation=activation)

    def call(self, inputs):
        return self.head(inputs)


def build_subclassed(activation):
    model = Subclassed(activation)
    model(X)
    return model


def build(*after, activation=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential([layers.Input((6,)), layers.Dense(1, activation=activation), *after])


def build_mixed():
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        return build(layers.Activation("sigmoid", dtype="float32"))
    finally:
        keras.mixed_precision.set_dtype_policy(policy)


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(activation="sigmoid"),
        lambda: build(layers.Activation("sigmoid")),
        lambda: build(layers.Activation("sigmoid"), layers.Reshape((1, 1)), layers.Flatten(), layers.Dropout(0.5)),
        lambda: keras.Sequential([layers.Input((6,)), build(activation="sigmoid")]),
        lambda: build_subclassed("sigmoid"),
        build_mixed,
    ],
)
def test_sigmoids_are_found_whatever_they_are_built_of(make):
    assert count_sigmoids(make(), (6,)) == 1


@pytest.mark.parametrize(
    "make",
    [
        build,
        lambda: build(activation="hard_sigmoid"),
        lambda: build(activation="softmax"),
        lambda: build(activation="tanh"),
        lambda: build(layers.Activation("sigmoid"), layers.Rescaling(2.0)),
        lambda: build_subclassed("relu"),
    ],
)
def test_what_is_no_sigmoid_is_not_taken_for_one(make):
    model = make()
    assert count_sigmoids(model, (6,)) == 0
    assert next(run_predictions(model, [X])).shape == (40, 1)


def test_two_classes_are_ranked():
    model = build(activation="sigmoid")
    p = model(X).numpy()[:, 0]
    (read,) = run_predictions(model, [X])
    np.testing.assert_allclose(read, np.stack([1 - p, p], -1), atol=1e-6)
    signal = measure_signal(model, [X[:20], X[20:]])
    assert signal.num_classes == 2 and signal.ranked.shape == (40, 2)
    np.testing.assert_array_equal(signal.ranked[:, 0], p > 0.5)
    np.testing.assert_array_equal(signal.ranked[:, 1], p <= 0.5)


def test_half_is_the_first_class():
    np.testing.assert_array_equal(read_outputs(np.array([[[0.5]]]), 2), [[[0.5, 0.5]]])


def test_the_fisher_is_that_of_a_bernoulli():
    model = build(activation="sigmoid")
    specs = find_kernels(model).specs
    blocks = gather(model, specs, [X], 6)[specs[0].path]
    p = model(X).numpy()
    noise = np.array([tf.random.stateless_normal((1, 2), seed=[0, i])[0] for i in range(len(X))])
    parts = np.sqrt(np.concatenate([1 - p, p], axis=1)) * noise
    gradients = (parts[:, 1:] - p * parts.sum(axis=1, keepdims=True)) * X  # E of its square: p (1 - p) x^2
    np.testing.assert_allclose(blocks[0], gradients.T @ gradients / len(X), rtol=1e-4, atol=1e-7)


def test_gains_of_layers_before_a_sigmoid_arrive():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((6,)), layers.Dense(4), layers.Dense(1, activation="sigmoid")])
    specs = find_kernels(model).specs
    gains = gather_output_gains(model, specs, X)
    head = np.abs(model.layers[1].kernel.numpy()[:, 0])
    np.testing.assert_allclose(gains[specs[0].path], head / head.mean(), rtol=1e-4)
