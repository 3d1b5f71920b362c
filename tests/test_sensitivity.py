"""Sensitivity: a layer that hardly matters is found to, and the model stays as it was."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import read_bits
from reflow_tf.pruning import prune
from reflow_tf.repair.batchnorm import recalibrate
from reflow_tf.repair.contract import show_nothing
from reflow_tf.repair.divergence import measure_divergence
from reflow_tf.sensitivity import SPARSITIES, measure_sensitivity
from reflow_tf.sparsity.layers import Kind
from reflow_tf.sparsity.patterns import Unstructured
from reflow_tf.task import Task


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(inputs)))
    branches = []
    for name, weight in (("loud", 1.0), ("quiet", 0.01)):
        y = layers.BatchNormalization(name=f"{name}_norm")(layers.Conv2D(24, 1, name=name)(x))
        branches.append(layers.Rescaling(weight)(layers.ReLU()(y)))
    x = layers.Concatenate()(branches)
    built = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    recalibrate(built, [images(0)])
    return built


def images(seed, count=96):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 2, 2, 3)).repeat(4, axis=1).repeat(4, axis=2).astype(np.float32)


def test_the_layer_that_hardly_matters_is_found(model):
    specs = [s for s in find_kernels(model).specs if s.kind == Kind.POINTWISE_CONV]
    bits = read_bits(model.variables)
    curves = measure_sensitivity(model, specs, {spec.path: Unstructured() for spec in specs}, [images(1)], show_nothing)
    assert read_bits(model.variables) == bits
    loud, quiet = (np.array(curves[f"{name}/kernel"].divergences) for name in ("loud", "quiet"))
    assert len(loud) == len(SPARSITIES)
    assert (loud[1:] > 20 * quiet[1:]).all()
    assert loud[-1] > loud[0] > 0


def test_auto_prunes_it_most_and_spends_the_budget(model):
    config = PruneConfig(sparsity=0.6, allocation="auto", repair="none")
    result = prune(model, config, images(1))
    layers_of = result.plan.layers
    assert layers_of["quiet/kernel"].sparsity > layers_of["loud/kernel"].sparsity + 0.1
    zeros = sum(int(mask.size - mask.sum()) for mask in result.masks.values())
    assert zeros == pytest.approx(0.6 * sum(mask.size for mask in result.masks.values()), abs=2)


def test_an_activation_of_a_layers_own_changes_nothing():
    found = {}
    for fused in (True, False):
        keras.utils.set_random_seed(3)
        image = keras.Input((8, 8, 3))
        x = layers.Conv2D(16, 3, activation="relu" if fused else None, name="first")(image)
        x = layers.GlobalAveragePooling2D()(x if fused else layers.ReLU()(x))
        x = layers.Dense(5, "softmax" if fused else None, name="last")(x)
        model = keras.Model(image, x if fused else layers.Softmax()(x))
        specs = find_kernels(model).specs
        found[fused] = measure_sensitivity(
            model, specs, {spec.path: Unstructured() for spec in specs}, [images(1)], show_nothing
        )
    for path in ("first/kernel", "last/kernel"):
        np.testing.assert_allclose(found[True][path].divergences, found[False][path].divergences, rtol=1e-3, atol=1e-7)


def test_auto_needs_calibration(model):
    with pytest.raises(InputError, match=r"'auto' needs calibration inputs"):
        prune(model, PruneConfig(allocation="auto", repair="none"))
    with pytest.raises(InputError, match=r"at least 4 calibration inputs\. Received: 3"):
        prune(model, PruneConfig(allocation="auto", repair="none"), images(0, 3))


def measure(layer_or_layers, prunable=lambda spec: True):
    keras.utils.set_random_seed(0)
    image = x = keras.Input((8, 8, 3))
    for layer in layer_or_layers:
        x = layer(x)
    model = keras.Model(image, layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x)))
    specs = [spec for spec in find_kernels(model).specs if prunable(spec)]
    return measure_sensitivity(model, specs, {spec.path: Unstructured() for spec in specs}, [images(1)], show_nothing)


@pytest.mark.parametrize(
    "layer, path",
    [
        (layers.SeparableConv2D(3, 3, padding="same", name="it"), "it/depthwise_kernel"),
        (layers.SeparableConv2D(8, 3, padding="same", name="it"), "it/depthwise_kernel"),
        (layers.Conv2DTranspose(4, 3, strides=2, output_padding=1, name="it"), "it/kernel"),
        (layers.EinsumDense("bhwc,hcd->bhwd", output_shape=(8, 8, 6), name="it"), "it/kernel"),
        (keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 1, name="inner")], name="it"), "it/inner/kernel"),
        (layers.ConvLSTM1D(4, 3, name="it", return_sequences=True), "it/conv_lstm_cell/kernel"),
    ],
)
def test_what_nothing_is_fitted_to_is_measured_as_it_is_masked(layer, path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(3, "softmax")(layers.Flatten()(layer(image))))
    kernels = find_kernels(model)
    spec = next(spec for spec in kernels.specs if spec.path == path)
    bits = read_bits(model.variables)
    curve = measure_sensitivity(model, [spec], {spec.path: Unstructured()}, [images(1)], show_nothing)[spec.path]
    assert read_bits(model.variables) == bits
    judged, variable = images(1)[-32:], kernels.variables[spec.path]
    dense, kernel = model(judged).numpy(), spec.to_canonical(np.array(variable))
    for sparsity, found in zip(SPARSITIES, curve.divergences, strict=True):
        mask = Unstructured().select(np.abs(kernel), sparsity)
        variable.assign(spec.from_canonical(np.where(mask, kernel, 0)))
        expected = measure_divergence(model(judged).numpy(), dense, Task.CLASSIFICATION)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_the_second_half_of_a_separable_layer_is_measured():
    curves = measure([layers.SeparableConv2D(8, 3, name="it")], lambda spec: "depthwise" not in spec.path)
    assert curves["it/pointwise_kernel"].divergences[-1] > 0


def test_a_kernel_that_is_used_twice_is_pruned_in_both_places():
    shared = layers.Dense(3, "tanh", name="shared", kernel_initializer=keras.initializers.Orthogonal(2, seed=1))
    first, second = (
        layers.Dense(3, "tanh", name=name, kernel_initializer=keras.initializers.Orthogonal(2, seed=1))
        for name in ("first", "second")
    )
    both = measure([shared, shared])["shared/kernel"].divergences
    alone = measure([first, second], lambda spec: "second" in spec.path)["second/kernel"].divergences
    assert both[1] > 1.2 * alone[1]
