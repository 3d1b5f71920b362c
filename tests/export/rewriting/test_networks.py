"""Whole networks, as Keras and the zoo build them, with signals that reach the end."""

import keras
import numpy as np
import pytest

from reflow_tf.data.embedded import EmbeddedSource
from reflow_tf.export.equivalence import relative_difference
from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.loading import load_model

SHARED = {"weights": None, "classes": 10, "classifier_activation": None}
REWRITES = {
    "MobileNet": ["head", "rotation"],
    "MobileNetV2": ["rotation"],
    "MobileNetV3Small": ["constants", "head", "rotation"],
    "squeeze-excite": ["kept dimensions", "rotation"],
}
MOST = 1e-4  # largest difference of the logits, relative to the largest logit; measured: at most 2e-5


def settle(model, images):
    """Random weights let every image come out the same; batch norms with the moments of some images prevent that."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
            layer.gamma.assign(rng.uniform(0.7, 1.3, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.2, layer.beta.shape))
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    model(images, training=True)
    return model


def build_squeezing(shape):
    """What EfficientNet is made of, preprocessing included: padding layers, swish, two ways to squeeze and excite."""
    layers = keras.layers
    inputs = keras.Input(shape)
    x = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(layers.Rescaling(1 / 255)(inputs))
    x = layers.Conv2D(16, 3, 2, padding="valid")(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
    for number, kernel in enumerate((3, 5)):
        x = keras.activations.silu(layers.BatchNormalization()(layers.Conv2D(24, 1, use_bias=False)(x)))
        x = layers.ZeroPadding2D(((kernel // 2 - 1, kernel // 2),) * 2)(x)
        x = keras.activations.silu(layers.BatchNormalization()(layers.DepthwiseConv2D(kernel, 2, use_bias=False)(x)))
        squeezed = layers.GlobalAveragePooling2D()(x)
        if number:
            squeezed = layers.Dense(24, "sigmoid")(layers.Dense(6, "silu")(squeezed))
            squeezed = layers.Reshape((1, 1, 24))(squeezed)
        else:
            squeezed = layers.Conv2D(6, 1, activation="silu")(layers.Reshape((1, 1, 24))(squeezed))
            squeezed = layers.Conv2D(24, 1, activation="sigmoid")(squeezed)
        x = layers.Conv2D(16, 1)(layers.Multiply()([x, squeezed]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def build(name, size):
    keras.utils.set_random_seed(0)
    shape = (size, size, 3)
    match name:
        case "MobileNet":
            return keras.applications.MobileNet(shape, alpha=0.25, **SHARED)
        case "MobileNetV2":
            return keras.applications.MobileNetV2(shape, alpha=0.35, **SHARED)
        case "MobileNetV3Small":
            return keras.applications.MobileNetV3Small(shape, alpha=0.75, **SHARED)
        case "squeeze-excite":
            return build_squeezing(shape)


@pytest.fixture(scope="module", params=list(REWRITES))
def network(request, draw):
    name, size = request.param, 64
    images = np.concatenate([draw.make_images((1, size, size, 3), seed) for seed in range(4)])
    if name in ("MobileNetV3Small", "squeeze-excite"):  # they rescale pixels themselves
        images = np.clip(images * 60 + 128, 0, 255)
    model = settle(build(name, size), images)
    return name, export_tflite(model, storage="dense").content, [image[None] for image in images]


@pytest.mark.slow
def test_networks_compute_the_same(draw, network):
    _, content, images = network
    rewritten = rewrite_exact(content)
    assert rewritten.applied and not rewritten.refused
    assert draw.measure(content, rewritten.content, images) <= MOST


def test_nothing_is_left_that_blocks_a_cluster(draw, network):
    """By hand, the rules of XNNPACK's src/subgraph.c as far as these networks touch them."""
    name, content, _ = network
    rewritten = rewrite_exact(content)
    assert [applied.rewrite for applied in rewritten.applied] == REWRITES[name]
    strided = draw.list_strided(rewritten.content)
    assert len(strided) == (3 if name == "squeeze-excite" else 5)
    assert all(paddings == ((kernel // 2,) * 2,) * 2 for kernel, paddings, _ in strided)
    graph = read_operators(rewritten.content)
    stem = next(index for index, operator in enumerate(graph.operators) if operator.kind == "CONV_2D")
    heads = [operator for operator in graph.operators if operator.kind == "MEAN"]
    for operator in graph.operators[stem:]:
        operands = [graph.values[index] for index in operator.inputs]
        if operator.kind == "MEAN" and operator is not heads[-1]:
            assert operator.attributes["keep_dims"]
        elif operator.kind in ("ADD", "MUL"):
            assert all(len(operand.shape) == 4 for operand in operands) and not operands[1].constant
        else:
            assert operator.kind not in ("SUB", "DIV")
    last = [operator.kind for operator in graph.operators[graph.operators.index(heads[-1]) :]]
    assert last.count("FULLY_CONNECTED") == 1 and last[-1] == "FULLY_CONNECTED"


@pytest.mark.slow
def test_the_embedded_network(draw):
    loaded = load_model("mobilenet_v2")
    content = export_tflite(loaded.model, storage="dense").content
    rewritten = rewrite_exact(content)
    source = EmbeddedSource("evaluation")
    tint = np.float32([0.6, 1, 0.8])  # the images are grey, and reversed channels would not show
    images = [loaded.preprocessing(source.image(index))[None] * tint for index in range(8)]
    assert [applied.rewrite for applied in rewritten.applied] == ["rotation"] and not rewritten.refused
    assert draw.measure(content, rewritten.content, images) <= MOST
    assert relative_difference(content, rewritten.content) <= MOST
