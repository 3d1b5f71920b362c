"""Convolutions padded as PyTorch pads, against sums written out; grouped ones everywhere that a network goes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.zoo.torch_layers import BATCH_NORM_EPSILON, convolve, convolve_depthwise
from reflow_tf.models.zoo.torchvision_resnet import build_torchvision_resnet, list_stages


def convolve_by_hand(x, kernel, stride, groups):
    """PyTorch's Conv2d(padding=k // 2): output o reads group o // (outputs / groups) of the input channels."""
    size, _, inputs, outputs = kernel.shape
    x = np.pad(x.astype(np.float64), ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    rows = (x.shape[1] - size) // stride + 1
    result = np.zeros((len(x), rows, rows, outputs))
    for o in range(outputs):
        start = o // (outputs // groups) * inputs
        for row in range(rows):
            for column in range(rows):
                top, left = row * stride, column * stride
                patch = x[:, top : top + size, left : left + size, start : start + inputs]
                result[:, row, column, o] = (patch * kernel[..., o]).sum((1, 2, 3))
    return result


def build(image_size, stride, groups, kernel_size=3, filters=6, channels=6):
    inputs = keras.Input((image_size, image_size, channels))
    return keras.Model(inputs, convolve(inputs, filters, kernel_size, stride, "x", groups=groups))


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("image_size", [7, 8])
def test_pads_alike_on_all_sides(image_size, kernel_size, stride, groups):
    model = build(image_size, stride, groups, kernel_size)
    x = draw((2, image_size, image_size, 6))
    expected = convolve_by_hand(x, model.get_layer("x_conv").kernel.numpy(), stride, groups)
    assert expected.shape[1] == -(-image_size // stride)
    expected /= np.sqrt(1 + BATCH_NORM_EPSILON)
    np.testing.assert_allclose(model(x, training=False), expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_is_as_many_groups_as_channels(stride):
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, convolve_depthwise(inputs, 3, stride, "x"))
    x, kernel = draw((2, 8, 8, 4)), model.get_layer("x_conv").kernel.numpy()
    expected = convolve_by_hand(x, kernel.transpose(0, 1, 3, 2), stride, 4) / np.sqrt(1 + BATCH_NORM_EPSILON)
    np.testing.assert_allclose(model(x, training=False), expected, atol=1e-5)


def test_canonical_outputs_are_in_the_order_of_their_groups():
    model = build(5, 1, 3)
    (kernel,) = find_kernels(model).read().values()  # (output, h, w, inputs of one group)
    assert kernel.shape == (6, 3, 3, 2)
    x = draw((1, 5, 5, 6))
    centre = np.asarray(model(x, training=False))[0, 2, 2] * np.sqrt(1 + BATCH_NORM_EPSILON)
    groups = x[0, 1:4, 1:4].reshape(3, 3, 3, 2)  # (h, w, group, inputs of one group)
    np.testing.assert_allclose(centre, [(kernel[o] * groups[:, :, o // 2]).sum() for o in range(6)], atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_a_grouped_convolution_is_that_of_its_parts(stride):
    layer, x = build(8, stride, 3).get_layer("x_conv"), draw((2, 8, 8, 6))
    padding = layer.padding.upper()

    def in_parts(x, kernel):
        pairs = zip(tf.split(x, 3, -1), tf.split(kernel, 3, -1), strict=True)
        return tf.concat([tf.nn.conv2d(part, weights, stride, padding) for part, weights in pairs], -1)

    def differentiate(function):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(function(tf.constant(x)) ** 2)
        return tape.gradient(loss, layer.kernel.value)

    expected = differentiate(lambda x: in_parts(x, layer.kernel.value))
    for actual in (differentiate(layer), tf.function(differentiate)(layer)):  # eager, and in a graph
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def small_resnext():
    keras.utils.set_random_seed(3)
    model = build_torchvision_resnet(list_stages((2, 2), 32, 4), 32, 10)  # the first blocks of ResNeXt-50 32x4d
    classifier = model.get_layer("predictions").kernel
    classifier.assign(10 * classifier)  # the classes apart
    return model


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_resnext_is_exported_and_computes_the_same_in_litert(sparsity, small_resnext):
    model = keras.models.clone_model(small_resnext)
    for seed, (new, old) in enumerate(zip(model.weights, small_resnext.weights, strict=True)):
        noise = draw(old.shape, seed)
        mask = noise >= np.quantile(noise, sparsity) if "kernel" in new.path else 1
        new.assign(old.numpy() * mask / np.sqrt(np.mean(mask)))  # as large a signal as before
    x = draw((1, 32, 32, 3))
    exported = export_tflite(model)
    grouped = [t for t in exported.tensors if t.shape[-1] in (4, 8)]
    assert len(grouped) == 4 and all(t.storage == ("sparse" if sparsity else "dense") for t in grouped)
    assert exported.notes == ()
    interpreter = Interpreter(model_content=exported.content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    expected = np.asarray(model(x, training=False))
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
