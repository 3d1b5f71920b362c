"""Kernels found again in files that renamed, scaled, mirrored and rounded them."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.export.placement import find_places, holds
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.graph import find_kernels


def kernel(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_kernel_is_itself_each_output_times_a_factor():
    k = kernel(6, 1, 1, 5)
    factors = np.array([2.0, -0.1, 0.0, 1.0, -3.0, 1e-3], np.float32).reshape(6, 1, 1, 1)
    assert holds(k * factors, k), "0: a gamma of a batch norm may be"
    assert holds((k * factors)[:, 0, 0], k), "a fully connected layer"
    assert not holds(k * factors.reshape(1, 1, 1, 6)[..., :5], k)
    assert not holds(kernel(6, 1, 1, 5, seed=1), k) and not holds(k[:5], k)


def test_depthwise_kernels_have_their_outputs_last():
    k = kernel(7, 3, 3, 1)
    assert holds(np.moveaxis(k[..., 0], 0, -1)[np.newaxis] * np.arange(1, 8), k)


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2), (1, 2, 3)])
def test_mirrored_kernels_are_found(axes):
    k = kernel(4, 3, 3, 3)
    assert holds(np.flip(k, axes), k)
    assert not holds(np.flip(k, 0), k)


def test_rounding_to_int8_is_looked_through():
    k = kernel(20, 1, 1, 300)
    rounded = np.round(127 * k / np.abs(k).max(axis=3, keepdims=True)).astype(np.int8)
    assert holds(rounded, k)
    rounded[3, 0, 0, :5] += 10
    assert not holds(rounded, k)


def test_a_kernel_without_anything_in_it_is_nowhere():
    k = kernel(4, 1, 1, 4)
    assert not holds(k, 0 * k) and not holds(0 * k, k) and not holds(0 * k, 0 * k)


@pytest.mark.slow
@pytest.mark.parametrize(("quantize", "rewrite"), [("none", "exact"), ("float16", "none")])
def test_every_kernel_of_a_network_has_its_place(mobilenet, quantize, rewrite):
    model, _ = mobilenet
    content = export_tflite(model, storage="dense", quantize=quantize, rewrite=rewrite).content
    kernels = find_kernels(model).read()
    places = find_places(content, kernels)
    assert list(places) == list(kernels)
    assert all(len(found) == 1 for found in places.values())
    found = [place for (place,) in places.values()]
    assert len({place.tensor for place in found}) == len(found) == 53
    for path, (place,) in places.items():
        assert place.size_bytes == kernels[path].size * (2 if quantize == "float16" else 4)
        assert len(place.values) == (2 if quantize == "float16" else 1)


def test_kernels_of_equal_values_each_get_a_place():
    image = keras.Input((4, 4, 8))
    x = layers.Conv2D(8, 1, use_bias=False, name="first")(image)
    x = layers.Conv2D(8, 1, use_bias=False, name="second")(keras.ops.sin(x))
    model = keras.Model(image, layers.Flatten()(x))
    for layer, factor in (("first", 2.0), ("second", 3.0)):
        layer = model.get_layer(layer)
        layer.kernel.assign(np.full((1, 1, 8, 8), factor))
    places = find_places(export_tflite(model, storage="dense").content, find_kernels(model).read())
    assert [len(found) for found in places.values()] == [1, 1]


def test_a_kernel_that_serves_twice_lies_where_each_batch_norm_left_it():
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 8))
    shared = layers.Conv2D(8, 1, use_bias=False, name="shared")
    norms = [layers.BatchNormalization(), layers.BatchNormalization()]
    x = norms[1](shared(keras.ops.relu(norms[0](shared(image)))))
    model = keras.Model(image, layers.Flatten()(x))
    norms[1].gamma.assign(np.linspace(0.5, 2, 8))
    (found,) = find_places(export_tflite(model, storage="dense").content, find_kernels(model).read()).values()
    assert len(found) == 2
