import importlib

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.export.operators import read_operators
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes.vela.estimate import estimate
from reflow_tf.sparsity.patterns import NM, Block, Unstructured
from reflow_tf.targets.ethos_u import OPERATORS, U85_OPERATORS, EthosU
from reflow_tf.targets.operators import Operator, OperatorGraph, Value


def export(*, sparsity=0.0, sine=False, quantize="int8"):
    """Three kinds of kernels; `sine`: something between them that has no int8 form."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 64), batch_size=1)
    x = layers.Conv2D(128, 3, padding="same", activation="relu")(image)
    x = layers.DepthwiseConv2D(3, padding="same")(keras.ops.sin(x) if sine else x)
    x = layers.Conv2D(256, 1, activation="relu")(x)
    model = keras.Model(image, layers.Dense(32)(layers.Flatten()(x)))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            scores = rng.standard_normal(layer.kernel.shape)
            layer.kernel.assign(0.1 * scores * (np.abs(scores) >= np.quantile(np.abs(scores), sparsity)))
    batch = rng.standard_normal((16, 8, 8, 64)).astype(np.float32)
    return export_tflite(model, quantize=quantize, calibration=[batch], storage="dense").content


@pytest.fixture(scope="module")
def dense():
    return export()


@pytest.fixture(scope="module")
def mixed():
    return export(sine=True)


def judge(content):
    return EthosU().judge(read_operators(content))


@pytest.mark.parametrize(
    ("sparsity", "accelerator"),
    [*((sparsity, "ethos-u55-128") for sparsity in (0, 0.5, 0.8, 0.95)), (0.8, "ethos-u85-256")],
)
def test_the_price_is_what_vela_stores(dense, sparsity, accelerator):
    """Every weight takes 0.03 bytes, and the price comes on top."""
    content = export(sparsity=sparsity) if sparsity else dense
    prices = EthosU().price(graph := read_operators(content)).prices
    assert len(prices) == 4
    expected = 0.0
    for index, price in prices.items():
        value = graph.values[index]
        share = value.num_zeros / value.num_elements
        expected += value.num_elements * (0.03 + float(price.per_weight(np.array([share]))[0]))
    assert estimate(content, accelerator).weight_bytes == pytest.approx(expected, rel=0.12)


def test_int8_alone_gains():
    assert EthosU().obstacle("int8") is None
    for quantize in ("none", "float16"):
        assert "computes in int8" in EthosU().obstacle(quantize)


def test_every_kernel_is_welcome():
    assert EthosU().objection(None) is None


def test_an_int8_file_is_eligible(dense):
    verdict = judge(dense)
    assert verdict.eligible and verdict.fits and verdict.blockers == ()
    assert verdict.speedups == {}
    assert estimate(dense).num_cpu_operators == 0


def test_a_float_file_is_not():
    verdict = judge(export(quantize="none"))
    assert not verdict.eligible
    (blocker,) = verdict.blockers
    assert "floating point" in blocker.reason and "--quantize=int8" in blocker.remedy


@pytest.mark.parametrize("accelerator", ["ethos-u55-128", "ethos-u85-256"])
def test_what_it_says_of_the_cpu_is_what_vela_does(mixed, accelerator):
    (blocker,) = judge(mixed).blockers
    assert judge(mixed).eligible
    left = {layer.kind.upper() for layer in estimate(mixed, accelerator).layers if not layer.on_npu}
    assert set(blocker.kind.split(", ")) == left == {"DEQUANTIZE", "SIN", "QUANTIZE"}


def test_sparse_storage_is_not_for_vela():
    verdict = judge(store_sparse(export(sparsity=0.9)))
    assert not verdict.eligible
    assert [blocker.kind for blocker in verdict.blockers] == ["DENSIFY"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("CUMSUM", "which Vela leaves to the CPU"),
        ("GATHER", "which the U55 and the U65 leave to the CPU"),
        ("ADD", None),
    ],
)
def test_operators_that_the_npu_lacks(kind, words):
    values = tuple(Value(index, f"v{index}", (1, 8), "int8") for index in range(3))
    operators = tuple(Operator(index, kind, f"layer_{index}", (index,), (index + 1,)) for index in range(2))
    blockers = EthosU().judge(OperatorGraph(operators, values, (0,), (2,))).blockers
    assert [blocker.operator for blocker in blockers] == (["layer_0 and 1 more"] if words else [])
    assert all(words in blocker.reason for blocker in blockers)


def test_operators_are_velas():
    regor = importlib.import_module("ethosu.regor")
    listed = [
        {name.replace("ARGMAX", "ARG_MAX") for name in regor.tflite_operator_constraints(family)}
        for family in ("EthosU55", "EthosU85")
    ]
    assert listed == [OPERATORS, OPERATORS | U85_OPERATORS]


def test_patterns_come_with_what_vela_makes_of_them():
    caution = EthosU().caution
    assert caution(Unstructured()) is None and caution(Block(4, 1)) is None
    for pattern in (NM(2, 4), NM(1, 4), NM(1, 2), NM(2, 8)):
        assert "the U85 alone skips them" in caution(pattern)
    for pattern in (NM(3, 4), NM(3, 8), NM(2, 5)):
        assert f"{pattern} is not that" in caution(pattern)
