"""What a mirror must not miss: constants beside images, groups, channels that are padded, pixels that come from one."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.region import find_region

VALID = schema.Padding.VALID
NOISE = 1e-5


def downsample(sketch, x=None):
    return sketch.conv(sketch.depthwise(sketch.stem(x), 3, 2), 8)


def fold(sketch, x):
    """The image, turned back for a RESHAPE: upright from here on."""
    return sketch.reshape(sketch.reshape(x, 1, int(np.prod(sketch.shape(x)))), *sketch.shape(x))


def check(draw, content):
    rewritten = rewrite_exact(content)
    assert [applied.rewrite for applied in rewritten.applied] == ["rotation"] and rewritten.refused == ()
    assert draw.measure(content, rewritten.content) <= NOISE
    return rewritten


def check_refused(content, *words):
    rewritten = rewrite_exact(content)
    assert rewritten.content is content and [refused.rewrite for refused in rewritten.refused] == ["rotation"]
    for word in words:
        assert word in rewritten.refused[0].reason


def quantize(sketch, scales, *shape):
    weights = sketch.constant(sketch.rng.integers(-127, 128, shape).astype(np.int8))
    sketch.tensors[weights].quantization = schema.QuantizationParametersT(
        scale=np.array(scales, np.float32), zeroPoint=np.zeros(len(scales), np.int64)
    )
    return weights


def test_coordinates_beside_an_image_are_mirrored(draw):
    sketch = draw.Sketch()
    places = sketch.constant(sketch.rng.standard_normal((1, 4, 4, 2)).astype(np.float32))
    options = schema.ConcatenationOptionsT(axis=3)
    x = sketch.add("CONCATENATION", [downsample(sketch), places], (1, 4, 4, 10), options)
    check(draw, sketch.classify(sketch.conv(x, 8, 3)))


def test_where_channels_are_padded_they_keep_their_order(draw):
    """Two channels with a third of zeros behind them, as a grey image gets for a stem of three."""
    sketch = draw.Sketch(1, 16, 16, 2)
    paddings = sketch.constant(np.array([(0, 0), (0, 0), (0, 0), (0, 1)], np.int32))
    x = sketch.add("PAD", [sketch.input, paddings], (1, 16, 16, 3), schema.PadOptionsT())
    check(draw, sketch.classify(downsample(sketch, x)))


def test_groups_on_the_image_keep_its_channels(draw):
    """Each filter reads one channel of the image: reversed ones would be those of another filter."""
    sketch = draw.Sketch()
    branch = sketch.conv(sketch.input, 6, 3, 2, weights=sketch.weights(6, 3, 3, 1))
    check(draw, sketch.classify(sketch.binary("ADD", downsample(sketch), sketch.conv(branch, 8, 3, 2))))


def test_one_pixel_beside_an_upright_image(draw):
    sketch = draw.Sketch()
    x = downsample(sketch)
    gate = sketch.pool(x, "MAX_POOL_2D", 4, 4, VALID)
    content = sketch.classify(sketch.conv(sketch.binary("MUL", fold(sketch, x), gate), 8, 3))
    check_refused(content, "MUL mixes the mirrored image with one that is not")


def test_one_pixel_that_is_unfolded(draw):
    sketch = draw.Sketch()
    x = sketch.pool(downsample(sketch), "MAX_POOL_2D", 4, 4, VALID)
    x = sketch.add("DEPTH_TO_SPACE", [x], (1, 2, 2, 2), schema.DepthToSpaceOptionsT(blockSize=2))
    check_refused(sketch.finish(x), "no mirror image of DEPTH_TO_SPACE is known")


def test_one_pixel_that_is_spread(draw):
    """All pixels are alike, so an image of one, made as large as the mirrored one, is its own mirror image."""
    sketch = draw.Sketch()
    x = downsample(sketch)
    pooled = sketch.conv(sketch.pool(x, "MAX_POOL_2D", 4, 4, VALID), 8)
    size = sketch.constant(np.array([4, 4], np.int32))
    pooled = sketch.add("RESIZE_BILINEAR", [pooled, size], (1, 4, 4, 8), schema.ResizeBilinearOptionsT())
    x = sketch.add("CONCATENATION", [x, pooled], (1, 4, 4, 16), schema.ConcatenationOptionsT(axis=3))
    check(draw, sketch.classify(sketch.conv(x, 8, 3)))


def test_a_stem_behind_another_one_is_mirrored_once(draw):
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.conv(downsample(sketch), 3)
    rewritten = check(draw, sketch.classify(sketch.stem(x, name="second")))
    assert draw.count(rewritten.content, "REVERSE_V2") == 1


def test_an_image_that_becomes_one_behind_a_stem_is_an_entry_of_its_own(draw):
    sketch = draw.Sketch(1, 32, 32, 3)
    upright = fold(sketch, sketch.conv(downsample(sketch), 3))
    content = sketch.classify(sketch.depthwise(sketch.stem(upright, name="second"), 3, 2))
    assert len(find_region(EditableGraph(content)).entries) == 2
    rewritten = check(draw, content)
    assert draw.count(rewritten.content, "REVERSE_V2") == 3


def test_a_stem_drawn_before_the_one_that_it_comes_behind(draw):
    """The order of the stems in a file says nothing about what is computed from what."""
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.conv(sketch.input, 3, 3)
    x = sketch.binary("ADD", sketch.stem(x, name="inner"), sketch.stem(name="outer"))
    content = sketch.classify(sketch.depthwise(x, 3, 2))
    assert find_region(EditableGraph(content)).entries == (sketch.input,)
    check(draw, content)


@pytest.mark.parametrize("scales", [[0.01], [0.01, 0.02, 0.03, 0.02, 0.01, 0.02, 0.03, 0.02]])
@pytest.mark.parametrize("dequantize", [True, False])
def test_mirrored_kernels_of_integers_keep_their_scales(draw, dequantize, scales):
    sketch = draw.Sketch()
    weights = quantize(sketch, scales, 8, 3, 3, 8)
    if dequantize:
        weights = sketch.add("DEQUANTIZE", [weights], (8, 3, 3, 8))
    check(draw, sketch.classify(sketch.conv(downsample(sketch), 8, 3, weights=weights)))


@pytest.mark.parametrize("kernel", [1, 3])
def test_kernels_that_are_computed(draw, kernel):
    """Those of 1x1 convolutions have nothing to mirror."""
    sketch = draw.Sketch()
    x = downsample(sketch)
    weights = sketch.reshape(sketch.pool(x, "MAX_POOL_2D", 4, 4, VALID), 8, 1, 1, 1)
    weights = sketch.binary("MUL", weights, sketch.weights(8, kernel, kernel, 8))
    content = sketch.classify(sketch.conv(x, 8, kernel, weights=weights))
    if kernel == 1:
        check(draw, content)
    else:
        check_refused(content, "CONV_2D mixes the mirrored image with one that is not")


def test_paddings_that_are_computed(draw):
    sketch = draw.Sketch()
    x = downsample(sketch)
    sketch.dtype = np.dtype(np.int32)
    zeros = sketch.constant(np.zeros((4, 2), np.int32))
    ones = sketch.constant(np.array([(0, 0), (0, 1), (0, 1), (0, 0)], np.int32))
    paddings = sketch.binary("ADD", zeros, ones)
    sketch.dtype = np.dtype(np.float32)
    content = sketch.classify(sketch.add("PAD", [x, paddings], (1, 5, 5, 8), schema.PadOptionsT()))
    check_refused(content, "the paddings of PAD are computed")


def test_images_with_a_fifth_axis(draw):
    sketch = draw.Sketch()
    x = sketch.binary("ADD", downsample(sketch), sketch.weights(2, 1, 1, 1, 8))
    content = sketch.finish(sketch.dense(sketch.reshape(x, 1, 256), 5))
    check_refused(content, "ADD gives 5 axes")
