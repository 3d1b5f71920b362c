"""Going through a model step by step computes what the model computes."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.execution import CHUNK, Stretch, read_steps
from reflow_tf.models.ledger import Ledger


def build():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    shortcut = x
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.5)(x)
    x = layers.Add()([layers.Conv2D(4, 1)(x), shortcut])
    x = keras.ops.relu(x) * 2.0
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    "model", [build(), keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(5)])]
)
def test_the_steps_compute_what_the_model_computes(model):
    images = np.random.default_rng(0).normal(size=(CHUNK + 7, 8, 8, 3)).astype(np.float32)
    kept = images.copy()
    steps = read_steps(model)
    ledger = Ledger(steps, {steps.input: images})
    for step in steps:
        ledger.enter(step, step.compute([ledger[tensor] for tensor in step.inputs]))
    np.testing.assert_allclose(ledger[steps.output], model(images, training=False), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(images, kept)


def test_only_what_is_needed_is_kept():
    steps = read_steps(build())
    ledger = Ledger(steps, {steps.input: 0})
    for step in steps:
        ledger.enter(step, 0)
    assert list(ledger.values) == [steps.output]


def test_a_stretch_reads_the_weights_that_layers_have_when_it_is_called():
    model = build()
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    steps = read_steps(model)
    stretch = Stretch(steps.steps, [steps.input], [steps.output])
    before = stretch([images])[0]
    model.layers[1].kernel.assign(-2 * model.layers[1].kernel)
    np.testing.assert_allclose(stretch([images])[0], model(images, training=False), rtol=1e-5, atol=1e-6)
    assert np.abs(stretch([images])[0] - before).max() > 1e-3


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    model = Own(name="own")
    model(np.zeros((1, 2)))
    with pytest.raises(InputError, match=r"functional or sequential model .* Received: own, of class Own"):
        read_steps(model)


def test_several_outputs_are_refused():
    inputs = keras.Input((4,))
    with pytest.raises(InputError, match="one input and one output"):
        read_steps(keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(3)(inputs)]))


def test_what_gives_several_tensors_is_a_step_for_each_that_is_taken():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    first, _, third = keras.ops.split(inputs, [2, 5], axis=-1)
    sequence, state, _ = layers.LSTM(3, return_sequences=True, return_state=True, name="memory")(third)
    x = layers.Concatenate()([layers.Dense(3)(first), sequence])
    model = keras.Model(inputs, layers.Add()([layers.Dense(3)(layers.Flatten()(x)), state]))
    steps = read_steps(model)
    assert [calls for calls in steps.count_calls().values() if calls > 1] == [2, 2]
    samples = np.random.default_rng(0).normal(size=(CHUNK + 3, 6, 8)).astype(np.float32)
    values = {steps.input: samples}
    for step in steps:
        values[step.output] = step.compute([values[tensor] for tensor in step.inputs])
    np.testing.assert_allclose(values[steps.output], model(samples, training=False), rtol=1e-5, atol=1e-6)
