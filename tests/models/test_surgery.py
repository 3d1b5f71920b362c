import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import copy_model, read_bits, write_masks, write_values


@pytest.fixture
def model():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.5)(x)
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 1)])
    return keras.Model(inputs, inner(inner(x)))


def test_copy_is_equal_and_independent(model):
    copy = copy_model(model)
    assert read_bits(copy.weights) == read_bits(model.weights)
    assert find_kernels(copy).specs == find_kernels(model).specs
    before = read_bits(model.variables)
    for variable in copy.variables:
        variable.assign(variable + 1)
    assert read_bits(model.variables) == before


def test_copy_of_a_shared_layer_is_shared(model):
    assert len(find_kernels(copy_model(model)).specs) == len(find_kernels(model).specs) == 2


def test_copy_of_a_model_with_operations_and_layers_of_one_name():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Add()([layers.Dense(4)(inputs + 3.0), inputs]))
    assert read_bits(copy_model(model).weights) == read_bits(model.weights)


def test_copy_keeps_frozen_layers_frozen(model):
    model.get_layer("conv").trainable = False
    assert not copy_model(model).get_layer("conv").trainable


class Rebuildable(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {"units": self.units, "name": self.name}


class Unrebuildable(Rebuildable):
    def __init__(self, table):
        super().__init__(len(table))
        self.function = lambda x: x

    def get_config(self):
        raise NotImplementedError("no config")


def test_subclassed_models():
    model = Rebuildable(3)
    model(np.zeros((2, 4), np.float32))
    assert read_bits(copy_model(model).weights) == read_bits(model.weights)
    model = Unrebuildable([1, 2])
    model(np.zeros((2, 4), np.float32))
    with pytest.raises(InputError, match=r"inplace=True.*Received: Unrebuildable"):
        copy_model(model)


def test_masked_weights_are_plus_zero_and_kept_ones_bit_identical(model):
    kernels = find_kernels(model)
    rng = np.random.default_rng(0)
    masks = {spec.path: rng.random(spec.canonical_shape) < 0.4 for spec in kernels.specs}
    before = kernels.read()
    biases = [v.numpy().tobytes() for v in model.variables if len(v.shape) < 2]
    write_masks(kernels, masks)
    for path, kernel in kernels.read().items():
        np.testing.assert_array_equal(kernel[masks[path]].view(np.int32), before[path][masks[path]].view(np.int32))
        assert not kernel[~masks[path]].view(np.int32).any()  # -0.0 has a sign bit
    assert [v.numpy().tobytes() for v in model.variables if len(v.shape) < 2] == biases


def test_what_is_no_number_is_not_written(model):
    variable = model.get_layer("conv").bias
    with pytest.raises(InputError, match=r"variable bias of layer .*conv must be finite.* Received: NaN or infinity"):
        write_values(variable, np.array([1, np.inf, 2, 3]))
    assert not np.any(variable)
