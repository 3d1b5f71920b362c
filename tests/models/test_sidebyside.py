"""Two sets of values in one model, each computed as if it were the only one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.models.execution import read_steps
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.precision import built_with
from reflow_tf.models.sidebyside import Networks, Pair


def build(dtype="float32"):
    keras.utils.set_random_seed(1)
    with built_with(dtype):
        inputs = keras.Input((6, 6, 3))
        stem = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
        x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 1, activation="relu", name="pruned")(stem))
        x = layers.Add(name="sum")([x, stem])
        x = layers.Dense(5, activation="softmax", name="head")(layers.GlobalAveragePooling2D(name="mean")(x))
        return keras.Model(inputs, x)


def lead(networks, images):
    tensor = tf.convert_to_tensor(images)
    ledger = Ledger(networks.steps, {networks.steps.input: Pair(tensor, tensor)})
    for position, step in enumerate(networks.steps):
        ledger.enter(step, networks.compute(position, ledger))
    return ledger[networks.steps.output]


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "float16", "bfloat16", "mixed_bfloat16"])
def test_each_computes_what_a_model_with_its_weights_does(dtype):
    model = build(dtype)
    images = np.random.default_rng(0).normal(size=(5, 6, 6, 3)).astype(np.float32)
    before = [np.array(v) for v in model.variables]
    steps = read_steps(model)
    unchanged = lead(Networks(steps), images)
    assert unchanged.is_same
    pruned = model.get_layer("pruned").kernel
    networks = Networks(steps, list(zip(model.variables, before, strict=True)), {id(pruned)})
    pruned.assign(0.5 * pruned)
    model.get_layer("norm").moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    pair = lead(networks, images)
    np.testing.assert_array_equal(pair.dense, unchanged.dense)
    np.testing.assert_array_equal(pair.pruned, lead(Networks(steps), images).pruned)
    assert np.abs(pair.pruned.numpy() - pair.dense.numpy()).max() > 1e-3


def test_they_differ_from_the_first_pruned_layer_on_and_not_beside_it():
    model = build()
    steps = read_steps(model)
    networks = Networks(steps, (), {id(model.get_layer("pruned").kernel)})
    differing = {step.operation.name for position, step in enumerate(steps) if networks.differ_at(position)}
    assert differing == {"pruned", "norm", "sum", "mean", "head"}
    taking = {step.operation.name for position, step in enumerate(steps) if networks.differ_before(position)}
    assert taking == {"norm", "sum", "mean", "head"}


def test_a_layer_is_looked_at_before_its_activation():
    model = build()
    steps = read_steps(model)
    networks = Networks(steps)
    image = tf.zeros((1, 6, 6, 3)) - 1.0
    ledger = Ledger(steps, {steps.input: Pair(image, image)})
    stem, pruned = steps.steps[:2]
    ledger.enter(stem, networks.compute(0, ledger))
    plain = networks.compute_dense(pruned, ledger, activated=False).numpy()
    assert plain.min() < 0
    np.testing.assert_array_equal(np.maximum(plain, 0), networks.compute_dense(pruned, ledger))
