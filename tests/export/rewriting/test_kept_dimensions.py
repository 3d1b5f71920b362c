"""Squeeze-and-excitation on vectors becomes one on images of one pixel."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact


def excite(sketch, x, squeezed, name="widen", broadcast=False):
    """Multiplies an image by two Dense layers of a vector, with a swish in between; by broadcasting, or a RESHAPE."""
    channels = sketch.shape(x)[3]
    y = sketch.dense(squeezed, 4, activation=schema.ActivationFunctionType.RELU)
    y = sketch.binary("MUL", y, sketch.add("LOGISTIC", [y], sketch.shape(y)))
    y = sketch.binary("ADD", sketch.dense(y, channels), sketch.constant(np.float32([0.5])))
    y = sketch.add("LOGISTIC", [y], sketch.shape(y))
    if broadcast:
        return sketch.binary("MUL", x, y)
    constant = sketch.constant(np.array([-1, 1, 1, channels], np.int32), "shape")
    y = sketch.add("RESHAPE", [y, constant], (1, 1, 1, channels), schema.ReshapeOptionsT(), name=name)
    return sketch.binary("MUL", x, y)


def kinds(content):
    return [operator.kind for operator in read_operators(content).operators]


@pytest.mark.parametrize("size", [17, 16])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("broadcast", [False, True])
def test_dense_layers_on_vectors_become_convolutions(draw, size, half, broadcast):
    sketch = draw.Sketch(1, size, size, 3, half=half)
    x = sketch.stem()
    content = sketch.classify(excite(sketch, x, sketch.mean(x), broadcast=broadcast))
    rewritten = rewrite_exact(content)
    assert rewritten.applied[0].rewrite == "kept dimensions" and not rewritten.refused
    assert draw.measure(content, rewritten.content) <= 1e-6
    graph = read_operators(rewritten.content)
    assert kinds(rewritten.content).count("FULLY_CONNECTED") == 1, "the head of the classifier stays"
    between = next(operator for operator in graph.operators if operator.kind == "MEAN")
    assert between.attributes["keep_dims"] and graph.values[between.outputs[0]].shape == (1, 1, 1, 8)
    first = kinds(rewritten.content).index("MEAN")
    assert all(len(graph.values[each.outputs[0]].shape) == 4 for each in graph.operators[first : first + 8])


def test_a_vector_that_others_read_stays_one(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.stem()
    squeezed = sketch.mean(x)
    content = sketch.classify(excite(sketch, excite(sketch, x, squeezed, "one"), squeezed, "two"))
    rewritten = rewrite_exact(content)
    assert [refused.operator for refused in rewritten.refused] == ["one", "two"]
    assert all(refused.reason.endswith("as a vector, too") for refused in rewritten.refused)
    assert draw.measure(content, rewritten.content) == 0


def test_a_vector_that_is_an_output_stays_one(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.stem()
    squeezed = sketch.mean(x)
    x = excite(sketch, x, squeezed)
    content = sketch.finish(sketch.dense(sketch.mean(x), 5), squeezed)
    rewritten = rewrite_exact(content)
    (refused,) = rewritten.refused
    assert (refused.rewrite, refused.operator) == ("kept dimensions", "widen")
    assert refused.reason.endswith("is an output of the network")
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_a_squeeze_into_a_vector_and_back(draw):
    """MEAN with four axes, RESHAPE to a vector, Dense, RESHAPE back."""
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.stem()
    content = sketch.classify(excite(sketch, x, sketch.reshape(sketch.mean(x, keep=True), 1, 8)))
    rewritten = rewrite_exact(content)
    assert not rewritten.refused and "RESHAPE" not in kinds(rewritten.content)
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_an_average_that_is_only_reshaped(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.stem()
    content = sketch.classify(sketch.binary("MUL", x, sketch.reshape(sketch.mean(x), 1, 1, 1, 8)))
    rewritten = rewrite_exact(content)
    assert rewritten.applied[0].rewrite == "kept dimensions" and "RESHAPE" not in kinds(rewritten.content)
    assert draw.measure(content, rewritten.content) == 0


def test_an_operator_of_another_kind_in_between(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.stem()
    y = sketch.add("SOFTMAX", [sketch.mean(x)], (1, 8), schema.SoftmaxOptionsT(beta=1.0))
    content = sketch.classify(sketch.binary("MUL", x, sketch.reshape(y, 1, 1, 1, 8)))
    rewritten = rewrite_exact(content)
    assert [refused.reason for refused in rewritten.refused] == ["no form of SOFTMAX with four axes is known"]
    assert draw.measure(content, rewritten.content) == 0


def test_dense_layers_on_images_become_convolutions(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    content = sketch.classify(sketch.dense(sketch.stem(), 12, keep=True))
    rewritten = rewrite_exact(content)
    assert rewritten.applied[0].rewrite == "kept dimensions"
    assert kinds(rewritten.content).count("FULLY_CONNECTED") == 1
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_a_dense_layer_on_an_average_with_four_axes(draw):
    """GlobalAveragePooling2D(keepdims=True), Flatten, Dense: the converter drops the Flatten."""
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.stem()
    options = schema.FullyConnectedOptionsT()
    y = sketch.add("FULLY_CONNECTED", [sketch.mean(x, keep=True), sketch.weights(8, 8), -1], (1, 8), options)
    content = sketch.classify(sketch.binary("MUL", x, sketch.reshape(y, 1, 1, 1, 8)))
    rewritten = rewrite_exact(content)
    assert rewritten.applied[0].rewrite == "kept dimensions" and not rewritten.refused
    assert kinds(rewritten.content).count("FULLY_CONNECTED") == 1 and "RESHAPE" not in kinds(rewritten.content)
    assert draw.measure(content, rewritten.content) <= 1e-5


def test_a_dense_layer_that_flattens_an_image(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.conv(sketch.stem(), 2, 3, 4)
    options = schema.FullyConnectedOptionsT()
    y = sketch.add("FULLY_CONNECTED", [x, sketch.weights(8, 18), -1], (1, 8), options)
    gated = sketch.binary("MUL", sketch.conv(x, 8), sketch.reshape(y, 1, 1, 1, 8))
    content = sketch.classify(gated)
    rewritten = rewrite_exact(content)
    assert [refused.reason for refused in rewritten.refused] == ["FULLY_CONNECTED reads more than one pixel at once"]
    assert draw.measure(content, rewritten.content) <= 1e-6


def test_a_constant_for_each_image_of_a_batch(draw):
    """(2, channels) is one for each row of two vectors, and one for each column of two images."""
    sketch = draw.Sketch(2, 17, 17, 3)
    x = sketch.stem()
    y = sketch.binary("ADD", sketch.dense(sketch.mean(x), 8), sketch.weights(2, 8))
    content = sketch.classify(sketch.binary("MUL", x, sketch.reshape(y, 2, 1, 1, 8)))
    rewritten = rewrite_exact(content)
    assert [refused.reason for refused in rewritten.refused] == ["it is combined with other shapes"]
    assert draw.measure(content, rewritten.content) <= 1e-6
