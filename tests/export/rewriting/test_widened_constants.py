"""Numbers that are added to images and multiplied with them, as XNNPACK's sparse clusters want them."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact

CLIPPED = schema.ActivationFunctionType.RELU_N1_TO_1


def downsample(sketch):
    """On an odd size nothing has to turn, so what is computed is equal bit by bit."""
    return sketch.depthwise(sketch.stem(), 3, 2)


def operands(content, name):
    """Kind, shapes of the operands, and which of them are constant."""
    graph = read_operators(content)
    (operator,) = [operator for operator in graph.operators if graph.values[operator.outputs[0]].name == name]
    values = [graph.values[index] for index in operator.inputs]
    return operator.kind, [value.shape for value in values], [value.constant for value in values]


def store(sketch, values):
    """A constant of floats, of which the file may hold a smaller type."""
    index = sketch.constant(values)
    if values.dtype == np.float32:
        return index
    if values.dtype == np.int8:
        sketch.tensors[index].quantization = schema.QuantizationParametersT(
            scale=np.float32([0.5]), zeroPoint=np.zeros(1, np.int64)
        )
    return sketch.add("DEQUANTIZE", [index], values.shape)


@pytest.mark.parametrize(
    ("kind", "constant", "becomes"),
    [
        ("MUL", np.float32(0.7), "MUL"),
        ("ADD", np.float32([0.7]), "ADD"),
        ("ADD", np.linspace(-1, 1, 8, dtype=np.float32), "ADD"),
        ("MUL", np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8), "MUL"),
        ("MUL", np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 1, 1, 8), "MUL"),
        ("SUB", np.linspace(-1, 1, 8, dtype=np.float32), "ADD"),
        ("SUB", np.float32(0.3), "ADD"),
        ("DIV", np.float32(-4), "MUL"),
        ("DIV", np.float32([0.5, 1, 2, 4, 8, 16, 32, -64]), "MUL"),
        ("DIV", np.float16([2.0**-13, 1, 2, 4, 8, 16, 32, 2.0**11]), "MUL"),
    ],
)
def test_constants_get_four_axes_and_come_first(draw, kind, constant, becomes):
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.binary(kind, downsample(sketch), store(sketch, constant), name="here")
    sketch.operators[-1].builtinOptions.fusedActivationFunction = CLIPPED
    content = sketch.classify(x)
    rewritten = rewrite_exact(content)
    assert [applied.rewrite for applied in rewritten.applied] == ["constants", "padding"]
    assert rewritten.applied[0].operators == ("here",) and not rewritten.refused
    shape = (1, 1, 1, np.size(constant))
    assert operands(rewritten.content, "here") == (becomes, [shape, sketch.shape(x)], [True, False])
    assert draw.measure(content, rewritten.content) == 0


@pytest.mark.parametrize(
    ("kind", "constant", "first", "words"),
    [
        ("DIV", np.float32(6), False, "Only DIV by powers of two is a MUL exactly"),
        ("DIV", np.float32(2.0**-126), False, "Only DIV by powers of two is a MUL exactly"),
        ("DIV", np.float16(2.0**-17), False, "Only DIV by powers of two is a MUL exactly"),
        ("DIV", np.float16(2.0**15), False, "Only DIV by powers of two is a MUL exactly"),
        ("SUB", np.int8([3]), False, "The constant is stored as int8"),
        ("DIV", np.float32(2), True, "DIV with the constant in front"),
        ("SUB", np.float32(2), True, "SUB with the constant in front"),
    ],
)
def test_what_is_not_exact_is_refused(draw, kind, constant, first, words):
    sketch = draw.Sketch(1, 17, 17, 3)
    x, constant = downsample(sketch), store(sketch, constant)
    x = sketch.binary(kind, *([constant, x] if first else [x, constant]), name="here")
    rewritten = rewrite_exact(sketch.classify(x))
    assert [applied.rewrite for applied in rewritten.applied] == ["padding"]
    (refused,) = rewritten.refused
    assert (refused.rewrite, refused.operator) == ("constants", "here") and words in refused.reason
    assert operands(rewritten.content, "here")[0] == kind


def test_what_needs_nothing_is_left_alone(draw):
    """Upstream of the stem, where no cluster is; two images; and constants with pixels, which no cluster takes."""
    sketch = draw.Sketch(1, 17, 17, 3)
    x = sketch.binary("MUL", sketch.input, sketch.constant(np.float32(0.5)), name="rescaling")
    x = sketch.depthwise(sketch.stem(x), 3, 2)
    x = sketch.binary("ADD", x, sketch.conv(x, 8))
    x = sketch.binary("MUL", sketch.constant(np.full((1, 1, 1, 8), 0.5, np.float32)), x)
    x = sketch.binary("ADD", x, sketch.constant(np.linspace(-1, 1, 5 * 8, dtype=np.float32).reshape(5, 8)))
    rewritten = rewrite_exact(sketch.classify(x))
    assert [applied.rewrite for applied in rewritten.applied] == ["padding"]
    assert operands(rewritten.content, "rescaling")[1:] == ([(1, 17, 17, 3), ()], [False, True])


def test_a_constant_that_several_operators_share(draw):
    sketch = draw.Sketch(1, 17, 17, 3)
    x, shared = downsample(sketch), sketch.constant(np.float32(0.25))
    x = sketch.binary("SUB", sketch.binary("MUL", x, shared), shared)
    content = sketch.classify(sketch.binary("ADD", x, shared))
    rewritten = rewrite_exact(content)
    assert len(rewritten.applied[0].operators) == 3
    assert draw.measure(content, rewritten.content) == 0
