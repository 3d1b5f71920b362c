"""Average poolings over whole maps."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs.explanation import explain
from reflow_tf.models.zoo.mlperf_tiny import build_mobilenet_v1_025
from reflow_tf.targets.xnnpack import XNNPack

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
ACTIVATION = schema.ActivationFunctionType


def kinds(content):
    return [operator.kind for operator in read_operators(content).operators]


def pool(sketch, x, window, strides, padding, *, kind="AVERAGE_POOL_2D", activation=ACTIVATION.NONE, name="pool"):
    batch, height, width, channels = sketch.shape(x)
    options = schema.Pool2DOptionsT(padding=padding, strideH=strides[0], strideW=strides[1])
    options.filterHeight, options.filterWidth = window
    options.fusedActivationFunction = activation
    size = [
        -(-n // stride) if padding == SAME else (n - k) // stride + 1
        for n, k, stride in zip((height, width), window, strides, strict=True)
    ]
    return sketch.add(kind, [x], (batch, *size, channels), options, name)


def connect(sketch, x, outputs):
    options = schema.FullyConnectedOptionsT()
    weights = sketch.weights(outputs, sketch.shape(x)[-1])
    return sketch.add("FULLY_CONNECTED", [x, weights, -1], (sketch.shape(x)[0], outputs), options)


@pytest.mark.parametrize("shape", [(1, 17, 17, 3), (1, 17, 25, 3), (2, 16, 16, 3)])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("end", ["reshape", "squeeze", "at once", "output"])
@pytest.mark.parametrize(("padding", "strides"), [(VALID, None), (VALID, (2, 2)), (VALID, (1, 1)), (SAME, None)])
def test_the_last_pooling_becomes_a_mean(draw, shape, half, end, padding, strides):
    sketch = draw.Sketch(*shape, half=half)
    x = sketch.stem()
    batch, height, width, channels = sketch.shape(x)
    x = pool(sketch, x, (height, width), strides or (height, width), padding)
    if end == "reshape":
        x = sketch.dense(sketch.reshape(x, batch, channels), 5)
    elif end == "squeeze":
        options = schema.SqueezeOptionsT(squeezeDims=[1, 2])
        x = sketch.dense(sketch.add("SQUEEZE", [x], (batch, channels), options), 5)
    elif end == "at once":
        x = connect(sketch, x, 5)
    content = sketch.finish(x)
    rewritten = rewrite_exact(content)
    assert (rewritten.applied[0].rewrite, rewritten.applied[0].operators) == ("mean", ("pool",))
    assert rewritten.refused == ()
    assert kinds(rewritten.content)[-2:] == (["MEAN", "RESHAPE"] if end == "output" else ["MEAN", "FULLY_CONNECTED"])
    assert draw.measure(content, rewritten.content) <= 1e-6


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_padding_that_no_window_counts_changes_nothing(draw, extra):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.stem()
    content = sketch.finish(connect(sketch, pool(sketch, x, (9 + extra, 9), (12, 9), SAME), 5))
    rewritten = rewrite_exact(content)
    assert rewritten.applied[0].rewrite == "mean"
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_a_map_may_have_shrunk_to_one_pixel_before(draw):
    sketch = draw.Sketch(1, 5, 5, 3)
    x = sketch.stem()
    x = sketch.conv(sketch.depthwise(sketch.depthwise(x, stride=2), stride=2), 8)
    assert sketch.shape(x) == (1, 1, 1, 8)
    content = sketch.finish(connect(sketch, pool(sketch, x, (1, 1), (1, 1), VALID), 5))
    rewritten = rewrite_exact(content)
    assert rewritten.applied[0].rewrite == "mean" and not rewritten.refused
    assert draw.measure(content, rewritten.content) <= 1e-6
    assert XNNPack().judge(read_operators(rewritten.content)).fits


@pytest.mark.parametrize(
    ("window", "strides", "padding", "kind"),
    [
        ((8, 9), (9, 9), VALID, "AVERAGE_POOL_2D"),  # the last row is left out
        ((8, 8), (9, 9), SAME, "AVERAGE_POOL_2D"),  # one window, a pixel short
        ((9, 9), (4, 9), SAME, "AVERAGE_POOL_2D"),  # three windows
        ((3, 3), (3, 3), VALID, "AVERAGE_POOL_2D"),
        ((9, 9), (9, 9), VALID, "MAX_POOL_2D"),
    ],
)
def test_any_other_pooling_stays(draw, window, strides, padding, kind):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = pool(sketch, sketch.stem(), window, strides, padding, kind=kind)
    content = sketch.finish(sketch.dense(sketch.reshape(x, 1, int(np.prod(sketch.shape(x)))), 5))
    rewritten = rewrite_exact(content)
    assert kind in kinds(rewritten.content)
    assert "mean" not in [each.rewrite for each in (*rewritten.applied, *rewritten.refused)]


@pytest.mark.parametrize("activation", ["RELU", "RELU6", "RELU_N1_TO_1"])
def test_an_activation_in_it_comes_behind(draw, activation):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.binary("SUB", sketch.stem(), sketch.constant(np.full((1, 1, 1, 8), 0.3, np.float32)))
    x = pool(sketch, x, (9, 9), (9, 9), VALID, activation=getattr(ACTIVATION, activation))
    content = sketch.finish(connect(sketch, x, 5))
    rewritten = rewrite_exact(content)
    assert kinds(rewritten.content)[-3:] == ["MEAN", activation, "FULLY_CONNECTED"]
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_an_activation_without_an_operator_is_a_reason(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = pool(sketch, sketch.stem(), (9, 9), (9, 9), VALID, activation=ACTIVATION.SIGN_BIT)
    (refused,) = rewrite_exact(sketch.finish(sketch.reshape(x, 1, 8))).refused
    assert (refused.rewrite, refused.operator) == ("mean", "pool")
    assert "activation" in refused.reason


def test_two_readers_of_two_kinds_each_get_what_they_read(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = pool(sketch, sketch.stem(), (9, 9), (9, 9), VALID)
    content = sketch.finish(connect(sketch, x, 5), sketch.conv(x, 6), sketch.reshape(x, 1, 8))
    rewritten = rewrite_exact(content)
    assert rewritten.applied[0].rewrite == "mean"
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_a_squeeze_and_excitation_of_poolings_runs_sparse(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.stem()
    y = sketch.conv(sketch.conv(pool(sketch, x, (9, 9), (9, 9), VALID), 4), 8)
    x = sketch.binary("MUL", x, y)
    content = sketch.finish(connect(sketch, pool(sketch, sketch.conv(x, 12), (9, 9), (9, 9), VALID, name="last"), 5))
    rewritten = rewrite_exact(content)
    assert rewritten.applied[0].operators == ("pool", "last") and not rewritten.refused
    assert "RESHAPE" not in kinds(rewritten.content)
    assert draw.measure(content, rewritten.content) <= 1e-6
    assert XNNPack().judge(read_operators(rewritten.content)).fits


def test_a_classifier_as_a_convolution_of_the_pooled_pixel(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.conv(pool(sketch, sketch.stem(), (9, 9), (9, 9), VALID), 5, name="logits")
    content = sketch.finish(sketch.reshape(x, 1, 5))
    rewritten = rewrite_exact(content)
    assert kinds(rewritten.content)[-2:] == ["MEAN", "FULLY_CONNECTED"]
    assert draw.measure(content, rewritten.content) <= 1e-6


def build(*end, sparsity=0.0):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(32, 1, activation="relu"),
            layers.Conv2D(64, 1, activation="relu"),
            *end,
            layers.Dense(4),
        ]
    )
    for layer in model.layers[1:3]:
        kernel = np.array(layer.kernel)
        layer.kernel.assign(kernel * (np.random.default_rng(1).random(kernel.shape) >= sparsity))
    return model


@pytest.mark.parametrize("quantize", ["none", "float16"])
def test_a_keras_network_that_pools_and_flattens_runs_sparse(quantize):
    model = build(layers.AveragePooling2D(16), layers.Flatten(), sparsity=0.8)
    file = export_tflite(model, rewrite="exact", quantize=quantize)
    assert [applied.rewrite for applied in file.rewrites] == ["mean", "rotation"]
    assert XNNPack().judge(read_operators(file.content)).eligible


def test_mlperf_tinys_network_fits_by_it():
    """It is the zoo's mobilenet_v1_025."""
    keras.utils.set_random_seed(0)
    content = export_tflite(build_mobilenet_v1_025(64, 2), storage="dense").content
    explained = explain(content)
    assert not explained.as_given.fits and explained.rewritten.fits
    assert explained.rewritten.foreseen_speedups[0.9]["browser"] > 1.2
