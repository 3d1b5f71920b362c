"""One layer at a time: C computes what TFLite's reference kernels compute, bit for bit."""

import itertools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
NONE, RELU, RELU6 = (getattr(schema.ActivationFunctionType, name) for name in ("NONE", "RELU", "RELU6"))


def draw_weights(rng, shape, sparsity=0.0):
    values = rng.integers(-127, 128, shape).astype(np.int8)
    return values * (rng.random(shape) >= sparsity).astype(np.int8)


def conv_options(padding=SAME, strides=(1, 1), activation=NONE):
    return schema.Conv2DOptionsT(
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        fusedActivationFunction=activation,
        dilationHFactor=1,
        dilationWFactor=1,
    )


def output_size(sizes, kernel, padding, strides):
    return [
        -(-size // stride) if padding == SAME else -(-(size - k + 1) // stride)
        for size, k, stride in zip(sizes, kernel, strides, strict=True)
    ]


def draw_convolution(
    drawing,
    sizes=(5, 7),
    channels=(5, 6),
    kernel=(1, 1),
    padding=SAME,
    strides=(1, 1),
    activation=NONE,
    points=(3, -5),
    output_scale=0.3,
    sparsity=0.0,
    scales=None,
    values=None,
    biases=None,
):
    rng = np.random.default_rng(1)
    source = drawing.activation((1, *sizes, channels[0]), zero_point=points[0])
    result = (1, *output_size(sizes, kernel, padding, strides), channels[1])
    output = drawing.activation(result, output_scale, points[1])
    if values is None:
        values = draw_weights(rng, (channels[1], *kernel, channels[0]), sparsity)
    if biases is None:
        biases = rng.integers(-2000, 2000, channels[1])
    if scales is None:
        scales = rng.uniform(0.002, 0.02, channels[1])
    drawing.weighted("CONV_2D", source, values, biases, output, conv_options(padding, strides, activation), scales)
    return drawing.finish(source, output)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["dense", "speed"])
@pytest.mark.parametrize(
    "sizes", [(1, 4), (1, 5), (1, 8), (3, 3), (1, 11), (1, 12), (1, 13), (4, 4)], ids=lambda s: str(s[0] * s[1])
)
def test_tiles_of_every_number_of_pixels(drawing, compare, sizes, storage):
    content = draw_convolution(drawing, sizes=sizes, sparsity=0.7)
    sources, outputs = compare(content, storage)
    assert sources.layers[0].function == ("reflow_conv_dense" if storage == "dense" else "reflow_conv_sparse")
    assert len(np.unique(outputs)) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [((3, 3), (1, 1), SAME), ((3, 3), (2, 2), SAME), ((3, 2), (2, 1), VALID), ((1, 1), (2, 2), SAME)],
)
@pytest.mark.parametrize("storage", ["dense", "speed"])
def test_windows(drawing, compare, kernel, strides, padding, storage):
    content = draw_convolution(
        drawing, sizes=(9, 8), kernel=kernel, strides=strides, padding=padding, sparsity=0.6, output_scale=1.0
    )
    compare(content, storage)


def draw_between_relus(drawing, sizes, channels, kernel, strides, padding):
    """A convolution that reads from the arena and writes to it."""
    rng = np.random.default_rng(0)
    source = drawing.activation((1, *sizes, channels[0]), 0.05, -3)
    relu = drawing.operator("RELU", [source], drawing.activation((1, *sizes, channels[0]), 0.05, -3), version=2)
    shape = (1, *output_size(sizes, kernel, padding, strides), channels[1])
    values = draw_weights(rng, (channels[1], *kernel, channels[0]), 0.7)
    result = drawing.activation(shape, 0.2, 5)
    biases, scales = rng.integers(-2000, 2000, channels[1]), rng.uniform(0.002, 0.02, channels[1])
    drawing.weighted("CONV_2D", relu, values, biases, result, conv_options(padding, strides), scales)
    output = drawing.operator("RELU", [result], drawing.activation(shape, 0.2, 5), version=2)
    return drawing.finish(source, output)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["dense", "speed"])
@pytest.mark.parametrize(
    ("sizes", "channels", "kernel", "strides", "padding", "arena_bytes"),
    [
        ((9, 8), (8, 8), (3, 3), (1, 1), SAME, 576 + 64 + 1176),
        ((9, 7), (8, 8), (3, 3), (1, 1), VALID, 504 + 1176),
        ((9, 8), (12, 4), (1, 1), (1, 1), SAME, 864 + 192),
        ((9, 8), (4, 12), (1, 1), (1, 1), SAME, 864 + 64),
        ((9, 8), (4, 12), (3, 2), (2, 1), SAME, 480 + 392),
        ((9, 8), (16, 4), (5, 5), (2, 2), SAME, 1152 + 6480),
        ((2, 3), (8, 8), (3, 3), (1, 1), SAME, 48 + 32 + 600),
    ],
)
def test_a_convolution_writes_over_what_it_is_done_with(
    drawing, compare, sizes, channels, kernel, strides, padding, arena_bytes, storage
):
    """Expected is the larger of the two activations, how far one must lie in front, and the scratch."""
    content = draw_between_relus(drawing, sizes, channels, kernel, strides, padding)
    sources, outputs = compare(content, storage)
    assert sources.layers[1].function == ("reflow_conv_dense" if storage == "dense" else "reflow_conv_sparse")
    assert len(np.unique(outputs)) > 20
    assert sources.arena_bytes == arena_bytes


def test_a_kernel_larger_than_the_image(drawing, compare):
    compare(draw_convolution(drawing, sizes=(4, 2), kernel=(7, 5), output_scale=1.0))


@pytest.mark.parametrize("points", list(itertools.product((-128, 127), (-128, 0, 127))))
@pytest.mark.parametrize("activation", [NONE, RELU])
def test_zero_points_at_the_ends(drawing, compare, points, activation):
    compare(draw_convolution(drawing, points=points, activation=activation, sparsity=0.5), "speed")


def test_limits_of_a_fused_activation(drawing, compare):
    content = draw_convolution(drawing, activation=RELU6, output_scale=0.1, points=(0, -100))
    _, outputs = compare(content)
    assert outputs.min() == -100 and outputs.max() == -40


@pytest.mark.parametrize("point", [-128, 0])
def test_ties_round_as_in_the_reference(drawing, compare, point):
    """Scales that are powers of two: every fourth sum lies between two integers."""
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, (6, 1, 1, 5)).astype(np.int8)
    content = draw_convolution(
        drawing, values=values, scales=2.0 ** np.arange(-1, 5), output_scale=4 * 0.05 * 2.0**3, points=(0, point)
    )
    compare(content)


@pytest.mark.parametrize("output_scale", [1e-6, 1e-4, 1e3])
@pytest.mark.parametrize("point", [-128, 0])
def test_scales_that_are_too_small_or_too_large_for_the_fast_way(drawing, compare, output_scale, point):
    compare(draw_convolution(drawing, output_scale=output_scale, points=(-7, point), sparsity=0.5), "speed")


def test_rows_that_never_change_cost_nothing(drawing, compare):
    """No weights; a bias that saturates; both ways; and next to nothing as a scale, with a bias to match."""
    rng = np.random.default_rng(3)
    values = draw_weights(rng, (5, 1, 1, 40), sparsity=0.7)
    values[0] = 0
    biases = np.array([900, 1 << 29, -(1 << 29), 77, (1 << 30) + 12345])
    scales = np.array([0.01, 0.01, 0.01, 0.01, 1e-9])
    content = draw_convolution(drawing, channels=(40, 5), values=values, biases=biases, scales=scales)
    sources, outputs = compare(content)
    assert sources.layers[0].function == "reflow_conv_sparse"
    pixels = outputs.reshape(-1, 5)
    assert [len(np.unique(channel)) == 1 for channel in pixels.T] == [True, True, True, False, True]
    # Two bytes for each non-zero and each row, and 13 for the row's other constants.
    assert sources.layers[0].size_bytes == 2 * (np.count_nonzero(values[3]) + 5) + 13 * 5


def test_gaps_of_more_than_255(drawing, compare):
    values = np.zeros((3, 1, 1, 1300), np.int8)
    values[0, 0, 0, [0, 255, 511, 1299]] = [1, -2, 3, 4]
    values[1, 0, 0, 1298] = -128
    values[2, 0, 0, 254:260] = 127
    content = draw_convolution(drawing, channels=(1300, 3), sizes=(2, 5), values=values, output_scale=0.1)
    sources, _ = compare(content)
    assert sources.layers[0].storage == "sparse"


def test_sums_of_more_than_24_bits(drawing, compare):
    values = np.full((2, 1, 1, 700), 127, np.int8)
    content = draw_convolution(drawing, channels=(700, 2), values=values, scales=[0.01, 0.02], output_scale=60.0)
    sources, outputs = compare(content)
    assert sources.layers[0].function == "reflow_conv_exact"
    assert len(np.unique(outputs)) > 20


def test_fewer_pixels_than_a_tile(drawing, compare):
    sources, _ = compare(draw_convolution(drawing, sizes=(1, 3), kernel=(3, 3), output_scale=1.0))
    assert sources.layers[0].function == "reflow_conv_exact"


@pytest.mark.parametrize("storage", ["dense", "speed"])
@pytest.mark.parametrize("channels", [(1, 1), (7, 3), (300, 9)])
def test_a_single_pixel_is_a_vector(drawing, compare, channels, storage):
    content = draw_convolution(drawing, sizes=(1, 1), channels=channels, sparsity=0.5, output_scale=1.0)
    sources, _ = compare(content, storage)
    assert sources.layers[0].function == ("reflow_dense_dense" if storage == "dense" else "reflow_dense_sparse")


def draw_depthwise(drawing, sizes, kernel, strides, padding=SAME, activation=NONE, points=(3, -5), multiplier=1):
    rng = np.random.default_rng(2)
    source = drawing.activation((1, *sizes, 3), zero_point=points[0])
    result = (1, *output_size(sizes, kernel, padding, strides), 3 * multiplier)
    output = drawing.activation(result, 0.3, points[1])
    options = schema.DepthwiseConv2DOptionsT(
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        depthMultiplier=multiplier,
        fusedActivationFunction=activation,
        dilationHFactor=1,
        dilationWFactor=1,
    )
    values = draw_weights(rng, (1, *kernel, 3 * multiplier))
    scales = rng.uniform(0.002, 0.02, 3 * multiplier)
    biases = rng.integers(-2000, 2000, 3 * multiplier)
    drawing.weighted("DEPTHWISE_CONV_2D", source, values, biases, output, options, scales)
    return drawing.finish(source, output)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (5, 4), (6, 7)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_depthwise_3x3(drawing, compare, sizes, strides):
    sources, _ = compare(draw_depthwise(drawing, sizes, (3, 3), strides))
    assert sources.layers[0].function == "reflow_depthwise_3x3"


@pytest.mark.parametrize("points", [(-128, -128), (127, -128), (-128, 127)])
@pytest.mark.parametrize(("padding", "strides"), [(SAME, (2, 2)), (VALID, (1, 1)), (VALID, (2, 2))])
def test_depthwise_3x3_with_padding_and_zero_points(drawing, compare, points, padding, strides):
    compare(draw_depthwise(drawing, (7, 8), (3, 3), strides, padding, RELU, points))


@pytest.mark.parametrize(("kernel", "multiplier"), [((5, 5), 1), ((3, 3), 2), ((2, 4), 1)])
def test_other_depthwise_convolutions(drawing, compare, kernel, multiplier):
    sources, _ = compare(draw_depthwise(drawing, (6, 5), kernel, (2, 1), multiplier=multiplier))
    assert sources.layers[0].function == "reflow_depthwise_exact"


def draw_dense(drawing, values, scales=(0.01,), output_scale=0.5, activation=NONE, point=4):
    source = drawing.activation((1, values.shape[1]), zero_point=-3)
    output = drawing.activation((1, len(values)), output_scale, point)
    options = schema.FullyConnectedOptionsT(fusedActivationFunction=activation)
    biases = np.random.default_rng(5).integers(-3000, 3000, len(values))
    drawing.weighted("FULLY_CONNECTED", source, values, biases, output, options, scales)
    return drawing.finish(source, output)


@pytest.mark.parametrize("storage", ["dense", "speed"])
@pytest.mark.parametrize("activation", [NONE, RELU])
def test_dense_layers(drawing, compare, storage, activation):
    values = draw_weights(np.random.default_rng(0), (11, 37), 0.8)
    sources, _ = compare(draw_dense(drawing, values, activation=activation), storage)
    assert sources.layers[0].storage == ("dense" if storage == "dense" else "sparse")


def test_a_dense_layer_with_sums_of_more_than_24_bits(drawing, compare):
    sources, outputs = compare(draw_dense(drawing, np.full((2, 700), 127, np.int8), output_scale=60.0))
    assert sources.layers[0].function == "reflow_dense_exact"
    assert len(np.unique(outputs)) >= 10
