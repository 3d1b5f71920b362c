"""Networks of any precision compute in float32 for a while, and are what they were afterwards."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.inference import infer
from reflow_tf.models.precision import built_with, computed_in_float32, read_wide, reading
from reflow_tf.models.surgery import copy_model, write_values

POLICIES = ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"]


def build(policy):
    """A nested model, a layer of another policy and an explicit cast."""
    with built_with(policy):
        inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="inner")])
        image = keras.Input((4,))
        x = keras.ops.cast(inner(image), "float16")
        return keras.Model(image, layers.Dense(2, dtype="float32")(layers.Dense(3, name="last")(x)))


@pytest.mark.parametrize("policy", POLICIES)
def test_layers_compute_in_float32_and_come_back(policy):
    model = build(policy)
    inner, x = model.layers[1].get_layer("inner"), np.ones((2, 4), np.float32)
    before = model(x), inner(x)
    with computed_in_float32(model):
        assert inner(x).dtype == "float32" and tf.convert_to_tensor(inner.kernel).dtype == "float32"
    assert infer(model, x).dtype == "float32"
    assert inner.dtype_policy.name == model.get_layer("last").dtype_policy.name == policy
    for one, other in zip(before, (model(x), inner(x)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_policies_come_back_on_an_error():
    model = build("float16")
    with pytest.raises(KeyboardInterrupt), computed_in_float32(model), computed_in_float32(model):
        raise KeyboardInterrupt
    assert model.get_layer("last").dtype_policy.name == "float16"


def test_a_map_of_policies_stays_as_it_is():
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="mixed_float16")
    layer = layers.Dense(2, dtype=policies)
    model = keras.Sequential([keras.Input((4,)), layer])
    assert infer(model, np.ones((1, 4), np.float32)).dtype == "float32"
    assert layer.dtype_policy is policies and layer.compute_dtype == "float16"


def test_gradients_do_not_vanish_in_16_bits():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False, dtype="float16")])
    (kernel,) = model.variables
    value = tf.cast(kernel.value, tf.float32)
    with tf.GradientTape() as tape, reading([(kernel, value)]):
        tape.watch(value)
        loss = 1e-9 * tf.reduce_sum(infer(model, tf.constant([[2.0, 3.0]])))
    np.testing.assert_allclose(tape.gradient(loss, value), [[2e-9], [3e-9]], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "wide"), [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")])
def test_values_are_read_wide_and_rounded_once(dtype, wide):
    variable = keras.Variable(np.zeros(2), dtype=dtype)
    write_values(variable, np.array([0.1, -0.0]))
    assert variable.dtype == dtype and read_wide(variable).dtype == wide
    np.testing.assert_allclose(read_wide(variable), [0.1, 0], rtol=1e-2)


def test_what_does_not_fit_is_refused_and_not_written():
    variable = keras.Variable(np.ones(2), dtype="float16", name="kernel")
    with pytest.raises(InputError, match=r"float16 variable kernel .* Received: 1e\+05"):
        write_values(variable, np.array([1.0, 1e5]))
    np.testing.assert_array_equal(read_wide(variable), 1)


@keras.saving.register_keras_serializable("precision")
class Forgetful(layers.Layer):
    """A layer whose configuration does not say its policy, as many users' do not."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_has_the_policies_of_its_model_and_not_of_the_process(policy):
    with built_with(policy):
        model = keras.Sequential([keras.Input((4,)), Forgetful()])
    copy = copy_model(model)
    assert copy.layers[0].dense.dtype_policy.name == policy
    with built_with("float16"):
        assert copy_model(model).layers[0].dense.dtype_policy.name == policy
    assert keras.config.dtype_policy().name == keras.config.floatx() == "float32"
