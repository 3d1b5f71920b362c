"""Classifiers that come as a 1x1 convolution of one pixel."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.verification import check_masks


def kinds(content):
    return [operator.kind for operator in read_operators(content).operators]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("squeeze", [False, True])
def test_behind_an_average_it_reads_a_vector(draw, half, squeeze):
    sketch = draw.Sketch(1, 17, 17, 3, half=half)
    x = sketch.conv(sketch.mean(sketch.stem(), keep=True), 5, name="logits")
    if squeeze:
        x = sketch.add("SQUEEZE", [x], (1, 5), schema.SqueezeOptionsT(squeezeDims=[1, 2]))
    else:
        x = sketch.reshape(x, 1, 5)
    content = sketch.finish(x)
    rewritten = rewrite_exact(content)
    assert (rewritten.applied[0].rewrite, rewritten.applied[0].operators) == ("head", ("logits",))
    assert kinds(rewritten.content)[-2:] == ["MEAN", "FULLY_CONNECTED"]
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_a_softmax_in_between_goes_along(draw):
    """GlobalAveragePooling2D(keepdims=True), Dense(activation='softmax'), Flatten."""
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.conv(sketch.mean(sketch.stem(), keep=True), 5, name="logits")
    x = sketch.add("SOFTMAX", [x], (1, 1, 1, 5), schema.SoftmaxOptionsT(beta=1.0))
    content = sketch.finish(sketch.reshape(x, 1, 5))
    rewritten = rewrite_exact(content)
    assert kinds(rewritten.content)[-3:] == ["MEAN", "FULLY_CONNECTED", "SOFTMAX"]
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_a_softmax_that_is_read_as_an_image_stays(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.conv(sketch.mean(sketch.stem(), keep=True), 5)
    x = sketch.add("SOFTMAX", [x], (1, 1, 1, 5), schema.SoftmaxOptionsT(beta=1.0))
    rewritten = rewrite_exact(sketch.finish(sketch.reshape(x, 1, 5), x))
    assert [applied.rewrite for applied in rewritten.applied] == ["padding"]


def test_behind_other_layers_they_stay_in_the_cluster(draw):
    """The convolution in front of it can run sparse."""
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.conv(sketch.mean(sketch.stem(), keep=True), 6)
    x = sketch.add("HARD_SWISH", [x], (1, 1, 1, 6))
    content = sketch.finish(sketch.reshape(sketch.conv(x, 5), 1, 5))
    rewritten = rewrite_exact(content)
    assert kinds(rewritten.content)[-5:] == ["MEAN", "CONV_2D", "HARD_SWISH", "RESHAPE", "FULLY_CONNECTED"]
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_one_that_is_read_as_an_image_stays(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.conv(sketch.mean(sketch.stem(), keep=True), 5)
    rewritten = rewrite_exact(sketch.finish(sketch.reshape(x, 1, 5), x))
    assert [applied.rewrite for applied in rewritten.applied] == ["padding"]


def test_one_on_an_image_of_several_pixels_stays(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    rewritten = rewrite_exact(sketch.finish(sketch.reshape(sketch.conv(sketch.stem(), 5), 1, 405)))
    assert [applied.rewrite for applied in rewritten.applied] == ["padding"]


def test_its_mask_is_found_in_the_file(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    mask = sketch.rng.random((7, 1, 1, 8)) > 0.5
    weights = sketch.constant((sketch.rng.standard_normal(mask.shape) * mask).astype(np.float32), "pruned")
    x = sketch.conv(sketch.mean(sketch.stem(), keep=True), 7, weights=weights)
    rewritten = rewrite_exact(sketch.finish(sketch.reshape(x, 1, 7)))
    (found,) = check_masks(rewritten.content, {"logits/kernel": mask})
    assert found.ok and found.tensor == "pruned"


def test_one_in_groups_stays(draw):
    """A fully connected layer reads every channel."""
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.conv(sketch.mean(sketch.stem(), keep=True), 6, weights=sketch.weights(6, 1, 1, 4))
    content = sketch.finish(sketch.reshape(x, 1, 6))
    rewritten = rewrite_exact(content)
    assert [applied.rewrite for applied in rewritten.applied] == ["padding"]
    assert draw.measure(content, rewritten.content) <= 1e-6
