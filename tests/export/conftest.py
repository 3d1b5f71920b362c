"""Hand-made .tflite files and small Keras models with zeros in known places."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer

keras.config.disable_traceback_filtering()


def _bytes(values):
    return schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8))


def make_conv_file(weights, second=None):
    """One CONV_2D over a float32 or float16 filter (O, h, w, I); `second`: a CONV_2D with that one, too."""
    outputs, height, width, inputs = weights.shape
    half = weights.dtype == np.float16
    kind = schema.TensorType.FLOAT16 if half else schema.TensorType.FLOAT32
    image, result = [1, height, width, inputs], [1, 1, 1, outputs]
    tensors = [
        schema.TensorT(name=b"image", shape=image, type=0, buffer=0),
        schema.TensorT(name=b"bias", shape=[outputs], type=0, buffer=1),
    ]
    buffers = [schema.BufferT(), _bytes(np.linspace(-1, 1, outputs, dtype=np.float32)), _bytes(weights)]
    if second is not None and second is not weights:  # the same array twice: two tensors on one buffer
        buffers.append(_bytes(second))
    operators, ends = [], []
    for copy in range(1 if second is None else 2):
        filter_index = len(tensors)
        buffer = 2 + copy if len(buffers) == 4 else 2
        name = f"filter{copy}".encode()
        tensors.append(schema.TensorT(name=name, shape=list(weights.shape), type=kind, buffer=buffer))
        if half:
            tensors.append(schema.TensorT(name=b"dequantized", shape=list(weights.shape), type=0, buffer=0))
            operators.append(schema.OperatorT(opcodeIndex=1, inputs=[filter_index], outputs=[filter_index + 1]))
            filter_index += 1
        tensors.append(schema.TensorT(name=f"result{copy}".encode(), shape=result, type=0, buffer=0))
        options = schema.Conv2DOptionsT(padding=1, strideW=1, strideH=1)
        operators.append(
            schema.OperatorT(
                opcodeIndex=0,
                inputs=[0, filter_index, 1],
                outputs=[filter_index + 1],
                builtinOptionsType=schema.BuiltinOptions.Conv2DOptions,
                builtinOptions=options,
            )
        )
        ends.append(filter_index + 1)
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=ends, operators=operators)
    codes = [
        schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=version)
        for code, version in ((schema.BuiltinOperator.CONV_2D, 1), (schema.BuiltinOperator.DEQUANTIZE, 2))
    ]
    model = schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers)
    return flatbuffer.serialize(model)


@pytest.fixture(scope="session")
def conv_file():
    return make_conv_file


def make_weights(shape, sparsity, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * (rng.random(shape) >= sparsity)).astype(dtype)


@pytest.fixture(scope="session")
def weights():
    return make_weights


def prune_randomly(model, sparsity, kernels):
    """Zeroes each named kernel at random; returns the masks in the kernels' own (Keras) layout."""
    rng = np.random.default_rng(1)
    masks = {}
    for layer in kernels(model):
        kernel = layer.kernel.numpy()
        masks[layer.name] = rng.random(kernel.shape) >= sparsity
        layer.kernel.assign(kernel * masks[layer.name])
    return masks


@pytest.fixture(scope="session")
def mobilenet():
    """A small MobileNetV2 whose batch norms fold into something, 1x1 convs 80 % zero; and the masks, canonical."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=10)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            signs = rng.choice([-1, 1], size)
            shift, mean, variance = rng.normal(0, 0.3, size), rng.normal(0, 0.3, size), rng.uniform(0.5, 1.5, size)
            layer.set_weights([signs * rng.uniform(0.5, 1.5, size), shift, mean, variance])
    masks = prune_randomly(
        model, 0.8, lambda m: [x for x in m.layers if type(x) is keras.layers.Conv2D and x.kernel_size == (1, 1)]
    )
    return model, {f"{name}/kernel": mask.transpose(3, 0, 1, 2) for name, mask in masks.items()}
