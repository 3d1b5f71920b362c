"""What holds for all rewrites together: which files are left as they are, and that somebody says why."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting import rewrite_exact


def check_refused(content, layer, *words):
    rewritten = rewrite_exact(content)
    assert rewritten.content is content and rewritten.applied == ()
    (refused,) = rewritten.refused
    assert (refused.rewrite, refused.operator) == ("rotation", layer)
    for word in words:
        assert word in refused.reason


@pytest.mark.parametrize("size", [16, 17])
def test_an_open_batch(draw, size):
    """What is put in has fixed shapes: resized to four images, the head's file would not run, whatever the size."""
    sketch = draw.Sketch(1, size, size, 3)
    sketch.tensors[sketch.input].shapeSignature = [-1, size, size, 3]
    x = sketch.conv(sketch.depthwise(sketch.stem(), 3, 2), 8)
    x = sketch.conv(sketch.pool(x, "AVERAGE_POOL_2D", sketch.shape(x)[1], 1, schema.Padding.VALID), 6)
    check_refused(sketch.finish(sketch.reshape(x, -1, 6)), "image", "must be fixed")


def test_integers(draw):
    sketch = draw.Sketch(dtype=np.int8)
    check_refused(sketch.classify(sketch.depthwise(sketch.stem(), 3, 2)), "stem", "not of integers")


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "found"),
    [
        (4, 3, 2, "3x3 of 4 channels with stride 2"),
        (1, 3, 2, "3x3 of 1 channel with stride 2"),
        (3, 5, 2, "5x5 of 3 channels with stride 2"),
        (3, 3, 1, "3x3 of 3 channels with stride 1"),
    ],
)
def test_without_the_beginning_of_a_cluster(draw, channels, kernel, stride, found):
    sketch = draw.Sketch(1, 16, 16, channels)
    x = sketch.conv(sketch.input, 8, kernel, stride, name="first")
    check_refused(sketch.classify(sketch.depthwise(x, 3, 2)), "first", f"first convolution, first, is {found}.")


def test_a_beginning_in_groups_is_none(draw):
    """Two groups of 3 channels have the kernel of a stem, and XNNPACK takes one group only."""
    sketch = draw.Sketch(1, 16, 16, 6)
    x = sketch.conv(sketch.input, 8, 3, 2, weights=sketch.weights(8, 3, 3, 3), name="first")
    check_refused(sketch.classify(sketch.depthwise(x, 3, 2)), "first", "is 3x3 of 6 channels in groups with stride 2.")


@pytest.mark.parametrize("grouped", [False, True])
def test_without_anything_that_could_be_sparse(draw, grouped):
    sketch = draw.Sketch()
    x = sketch.depthwise(sketch.conv(sketch.input, 8, 3, 2, name="stem"), 3, 2)
    x = sketch.conv(x, 8, weights=sketch.weights(8, 1, 1, 4)) if grouped else x
    check_refused(sketch.finish(sketch.mean(x)), "stem", "No 1x1 convolution with stride 1 and one group follows stem")


def test_a_file_without_convolutions(draw):
    sketch = draw.Sketch(1, 8)
    content = sketch.finish(sketch.dense(sketch.input, 3))
    rewritten = rewrite_exact(content)
    assert rewritten.content is content and rewritten.applied == rewritten.refused == ()
