"""Layers without weights, one at a time: C computes what TFLite's reference kernels compute, bit for bit."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.errors import InputError
from reflow_tf.export.c_kernels.generation import generate_c

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
ACTIVATIONS = {name: getattr(schema.ActivationFunctionType, name) for name in ("NONE", "RELU", "RELU6")}


def draw_addition(drawing, scales, points, activation):
    """Two different rescalings of the input, by ReLUs whose limits reach beyond int8 or not, and their sum."""
    source = drawing.activation((1, 4, 5, 3), 0.05, points[0])
    other = drawing.operator("RELU", [source], drawing.activation((1, 4, 5, 3), scales[0], points[1]))
    output = drawing.activation((1, 4, 5, 3), scales[1], points[2])
    options = schema.AddOptionsT(fusedActivationFunction=ACTIVATIONS[activation])
    drawing.operator("ADD", [source, other], output, options, version=2)
    return drawing.finish(source, output)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("scales", "points"),
    [((0.03, 0.08), (3, -9, -20)), ((0.05, 0.1), (-128, -128, -128)), ((0.4, 0.02), (127, -60, 127))],
)
def test_additions(drawing, compare, scales, points, activation):
    compare(draw_addition(drawing, scales, points, activation))


def test_a_tensor_is_added_to_itself(drawing, compare):
    source = drawing.activation((1, 2, 2, 3), 0.1, 5)
    relu = drawing.operator("RELU", [source], drawing.activation((1, 2, 2, 3), 0.07, -128))
    output = drawing.activation((1, 2, 2, 3), 0.15, -128)
    drawing.operator("ADD", [relu, relu], output, schema.AddOptionsT(), version=2)
    compare(drawing.finish(source, output))


@pytest.mark.parametrize("kind", ["RELU", "RELU6"])
@pytest.mark.parametrize("scale", [0.01, 0.05, 0.3])
def test_relus_as_operators(drawing, compare, kind, scale):
    source = drawing.activation((1, 3, 4, 5), 0.05, 3)
    output = drawing.operator(kind, [source], drawing.activation((1, 3, 4, 5), scale, -100), version=2)
    compare(drawing.finish(source, output))


@pytest.mark.parametrize("kind", ["MAX_POOL_2D", "AVERAGE_POOL_2D"])
@pytest.mark.parametrize(
    ("padding", "window", "strides", "size"),
    [(SAME, (3, 3), (2, 2), (3, 4)), (VALID, (2, 3), (1, 2), (5, 3)), (VALID, (6, 7), (6, 7), (1, 1))],
)
@pytest.mark.parametrize("activation", ["NONE", "RELU"])
def test_pooling(drawing, compare, kind, padding, window, strides, size, activation):
    source = drawing.activation((1, 6, 7, 5), 0.05, 3)
    output = drawing.activation((1, *size, 5), 0.05, 3)
    options = schema.Pool2DOptionsT(
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        filterHeight=window[0],
        filterWidth=window[1],
        fusedActivationFunction=ACTIVATIONS[activation],
    )
    drawing.operator(kind, [source], output, options, version=2)
    compare(drawing.finish(source, output))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("scales", [(0.05, 0.05), (0.05, 0.031), (0.05, 0.2)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 7), (1,), (40,)])
def test_means(drawing, compare, keep, scales, size):
    source = drawing.activation((1, *size, 6), scales[0], -17)
    output = drawing.activation((1, *[1] * len(size), 6) if keep else (1, 6), scales[1], 9)
    axes = drawing.constant(np.arange(1, 1 + len(size), dtype=np.int32))
    drawing.operator("MEAN", [source, axes], output, schema.ReducerOptionsT(keepDims=keep), version=2)
    compare(drawing.finish(source, output))


@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (1, 100), (1, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("scale", [0.004, 0.05, 0.2, 1.5])
def test_softmaxes(drawing, compare, shape, scale):
    source = drawing.activation(shape, scale, 11)
    output = drawing.activation(shape, 1 / 256, -128)
    drawing.operator("SOFTMAX", [source], output, schema.SoftmaxOptionsT(beta=1.0), version=2)
    compare(drawing.finish(source, output))


@pytest.mark.parametrize("zero_point", [-128, -5, 0, 127])
@pytest.mark.parametrize("scale", [1e-4, 0.004, 0.05, 0.11, 0.9, 4.0])
def test_logistics(drawing, compare, scale, zero_point):
    """Of every int8 that there is. Where a step is as large as 4, TFLite itself is off by more than one of 1/256."""
    source = drawing.activation((1, 4, 8), scale, zero_point)
    output = drawing.activation((1, 4, 8), 1 / 256, -128)
    drawing.operator("LOGISTIC", [source], output)
    every = np.arange(-128, 128).astype(np.int8).reshape(8, 4, 8)
    sources, outputs = compare(drawing.finish(source, output), inputs=every)
    real = 1 / (1 + np.exp(np.clip((zero_point - every.reshape(8, -1).astype(float)) * scale, -99, 99)))
    assert np.abs((outputs + 128.0) / 256 - real).max() < (1.6 if scale < 1 else 5) / 256
    assert sources.weight_bytes == 256


def test_a_logistic_whose_scale_is_next_to_nothing_is_refused(drawing):
    source, output = drawing.activation((1, 4), 2.0**-30, 0), drawing.activation((1, 4), 1 / 256, -128)
    drawing.operator("LOGISTIC", [source], output)
    with pytest.raises(InputError, match=r"scale of the input above 2\^-27: change layer 'tensor1'"):
        generate_c(drawing.finish(source, output))


def draw_padding(drawing, source, shape):
    paddings = drawing.constant(np.array([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32))
    output = drawing.activation((1, shape[1] + 3, shape[2] + 3, shape[3]), 0.05, 3)
    return drawing.operator("PAD", [source, paddings], output, schema.PadOptionsT(), version=2)


def test_padding(drawing, compare):
    source = drawing.activation((1, 3, 4, 5), 0.05, 3)
    sources, _ = compare(drawing.finish(source, draw_padding(drawing, source, (1, 3, 4, 5))))
    assert [layer.function for layer in sources.layers] == ["reflow_pad"]


@pytest.mark.parametrize("padding", [(8, 8), (0, 3), (5, 0)])
def test_padding_of_channels(drawing, compare, padding):
    """As the shortcuts of ResNets without weights have it (option A of He et al., arXiv 1512.03385)."""
    source = drawing.activation((1, 3, 4, 5), 0.05, -3)
    paddings = drawing.constant(np.array([[0, 0], [0, 0], [0, 0], padding], np.int32))
    output = drawing.activation((1, 3, 4, 5 + sum(padding)), 0.05, -3)
    drawing.operator("PAD", [source, paddings], output, schema.PadOptionsT(), version=2)
    sources, _ = compare(drawing.finish(source, output))
    assert [layer.function for layer in sources.layers] == ["reflow_pad"]


@pytest.mark.parametrize(
    ("shape", "padding", "message"),
    [
        (
            (1, 3, 4, 5),
            [[0, 0], [1, 0], [0, 0], [1, 0]],
            r"of height and width, or of channels alone: .+Received: \(\(0,",
        ),
        (
            (1, 200, 200, 1),
            [[0, 0], [0, 0], [0, 0], [1, 0]],
            r"of channels at 32767 positions at most: .+Received: 40000",
        ),
    ],
)
def test_other_paddings_are_refused(drawing, shape, padding, message):
    source = drawing.activation(shape, 0.05, 3)
    paddings = drawing.constant(np.array(padding, np.int32))
    output = drawing.activation(tuple(n + sum(p) for n, p in zip(shape, padding, strict=True)), 0.05, 3)
    drawing.operator("PAD", [source, paddings], output, schema.PadOptionsT(), version=2)
    with pytest.raises(InputError, match=message):
        generate_c(drawing.finish(source, output))


def test_a_convolution_takes_over_no_padding_of_channels(drawing, compare):
    source = drawing.activation((1, 5, 6, 2), 0.05, 3)
    paddings = drawing.constant(np.array([[0, 0], [0, 0], [0, 0], [1, 1]], np.int32))
    padded = drawing.activation((1, 5, 6, 4), 0.05, 3)
    drawing.operator("PAD", [source, paddings], padded, schema.PadOptionsT(), version=2)
    output = drawing.activation((1, 3, 4, 4), 0.6, -11)
    options = schema.Conv2DOptionsT(padding=VALID, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (4, 3, 3, 4)).astype(np.int8)
    drawing.weighted("CONV_2D", padded, values, rng.integers(-99, 99, 4), output, options)
    sources, _ = compare(drawing.finish(source, output))
    assert len(sources.layers) == 2


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_a_convolution_takes_over_the_padding_before_it(drawing, compare, kind):
    rng = np.random.default_rng(0)
    source = drawing.activation((1, 5, 6, 4), 0.05, 3)
    padded = draw_padding(drawing, source, (1, 5, 6, 4))
    output = drawing.activation((1, 3, 4, 4), 0.6, -11)
    options = schema.Conv2DOptionsT if kind == "CONV_2D" else schema.DepthwiseConv2DOptionsT
    options = options(padding=VALID, strideH=2, strideW=2, dilationHFactor=1, dilationWFactor=1)
    options.depthMultiplier = 1
    values = rng.integers(-127, 128, (4 if kind == "CONV_2D" else 1, 3, 3, 4)).astype(np.int8)
    drawing.weighted(kind, padded, values, rng.integers(-99, 99, 4), output, options)
    sources, _ = compare(drawing.finish(source, output))
    assert len(sources.layers) == 1


def test_reshapes_are_names(drawing, compare):
    source = drawing.activation((1, 2, 3, 4), 0.05, 3)
    relu = drawing.operator("RELU", [source], drawing.activation((1, 2, 3, 4), 0.05, 3), version=2)
    shape = drawing.constant(np.array([1, 24], np.int32))
    flat = drawing.operator("RESHAPE", [relu, shape], drawing.activation((1, 24), 0.05, 3), schema.ReshapeOptionsT())
    output = drawing.operator("RELU6", [flat], drawing.activation((1, 24), 0.1, -128), version=2)
    sources, _ = compare(drawing.finish(source, output))
    assert [layer.kind for layer in sources.layers] == ["RELU", "RELU6"]
    assert sources.arena_bytes == 24


def test_scales_that_additions_cannot_take_are_refused(drawing):
    content = draw_addition(drawing, (0.05, 1e-9), (0, 0, 0), "NONE")
    with pytest.raises(InputError, match=r"ADD only with scales .* change layer 'tensor2'\. Received: \[0\.05"):
        generate_c(content)


@pytest.mark.parametrize("axis, widths", [(3, (1, 5, 2)), (-1, (4, 4)), (1, (2, 3)), (2, (1, 1))])
def test_concatenations(drawing, compare, axis, widths):
    """Along channels, rows and columns; of what was computed, so that no part is the network's own input alone."""
    source = drawing.activation((1, 2, 3, 4), 0.05, 3)
    parts, place = [], axis % 4
    for width in widths:
        paddings, shape = np.zeros((4, 2), np.int32), [1, 2, 3, 4]
        paddings[place] = (width, 0)
        shape[place] += width
        constant = drawing.constant(paddings)
        parts.append(
            drawing.operator("PAD", [source, constant], drawing.activation(shape, 0.05, 3), schema.PadOptionsT(), 2)
        )
    parts.append(source)
    shape = [1, 2, 3, 4]
    shape[place] = sum(widths) + (len(widths) + 1) * shape[place]
    output = drawing.activation(shape, 0.05, 3)
    drawing.operator("CONCATENATION", parts, output, schema.ConcatenationOptionsT(axis=axis), version=2)
    sources, _ = compare(drawing.finish(source, output))
    assert [layer.function for layer in sources.layers].count("reflow_concatenation") == len(parts)


@pytest.mark.parametrize(
    "scales, sizes, message",
    [
        ((0.05, 0.06), (2, 2), "one scale and zero point"),
        ((0.05, 0.05), (2, 3), "inputs that fill the output"),
    ],
)
def test_concatenations_that_do_not_fit_are_refused(drawing, scales, sizes, message):
    parts = [drawing.activation((1, size), scale, 0) for size, scale in zip(sizes, scales, strict=True)]
    output = drawing.activation((1, 4), 0.05, 0)
    drawing.operator("CONCATENATION", parts, output, schema.ConcatenationOptionsT(axis=1), version=2)
    with pytest.raises(InputError, match=message):
        generate_c(drawing.finish(parts, output))
