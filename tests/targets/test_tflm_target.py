import dataclasses

import numpy as np
import pytest

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer
from reflow_tf.export.bitmap_storage import store_bitmaps
from reflow_tf.export.operators import read_operators
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflite import export_tflite
from reflow_tf.job_config import JobConfig
from reflow_tf.runtimes.tflm.interpreter import open_interpreter
from reflow_tf.targets.tflm import OPERATORS, TFLM


def judge(content):
    return TFLM().judge(read_operators(content))


@pytest.mark.parametrize("store", [lambda content: content, store_bitmaps], ids=["dense", "bitmaps"])
def test_an_int8_file_is_what_tflm_runs(int8_file, store):
    verdict = judge(store(int8_file[0]))
    assert verdict.eligible and verdict.fits and not verdict.blockers and verdict.speedups == {}


def test_a_float_file_is_named_with_its_remedy(settled):
    verdict = judge(export_tflite(settled[0], storage="dense").content)
    (blocker,) = verdict.blockers
    assert not verdict.eligible
    assert "computes in float32" in blocker.reason and "--quantize=int8" in blocker.remedy
    assert blocker.operator.startswith("conv_0 and") and "CONV_2D" in blocker.kind


def test_sparse_tensors_need_an_operator_that_is_not_there(int8_file):
    content = store_sparse(int8_file[0])
    assert content is not int8_file[0]
    (blocker,) = judge(content).blockers
    assert "DENSIFY" in blocker.reason and "--target=tflm" in blocker.remedy


def test_an_operator_that_tflm_lacks_is_named_once_with_its_layers(int8_file):
    graph = read_operators(int8_file[0])
    operators = [
        dataclasses.replace(operator, kind="GELU") if operator.kind == "CONV_2D" else operator
        for operator in graph.operators
    ]
    (blocker,) = TFLM().judge(dataclasses.replace(graph, operators=tuple(operators))).blockers
    assert blocker.operator == "conv_0 and 2 more" and blocker.reason == "is a GELU, which TFLM does not have"


@pytest.mark.parametrize(("name", "is_there"), [("SOFTMAX", True), ("GELU", False), ("ATAN2", False), ("CUMSUM", True)])
def test_the_list_of_operators_is_that_of_the_runtime(int8_file, name, is_there):
    """TFLM says "Didn't find op" before it looks at anything else."""
    assert (name in OPERATORS) == is_there
    model = flatbuffer.parse(int8_file[0])
    code = model.operatorCodes[model.subgraphs[0].operators[-1].opcodeIndex]
    code.builtinCode = flatbuffer.OPERATOR_CODES[name]
    code.deprecatedBuiltinCode = min(code.builtinCode, flatbuffer.OPERATOR_CODES["PLACEHOLDER_FOR_GREATER_OP_CODES"])
    try:
        open_interpreter(flatbuffer.serialize(model), 1 << 20)
        said = ""
    except InputError as error:
        said = str(error)
    assert ("Didn't find op" in said) != is_there


def test_a_weight_beyond_its_bit_costs_a_byte(int8_file):
    graph = read_operators(int8_file[0])
    prices = TFLM().price(graph).prices
    assert len(prices) == 4
    price = next(iter(prices.values()))
    np.testing.assert_allclose(price.per_weight(np.array([0.0, 0.125, 0.5, 1.0])), [0.875, 0.875, 0.5, 0.0])


def test_int8_goes_without_saying_and_nothing_else_is_taken():
    prune = PruneConfig(target="tflm")
    assert JobConfig(model="m", output_dir="o", prune=prune).requested_quantize == "int8"
    with pytest.raises(InputError, match=r"compute in int8.*Received: float16"):
        JobConfig(model="m", output_dir="o", prune=prune, quantize="float16")


def test_budgets_of_flash_and_ram_are_for_microcontrollers():
    with pytest.raises(InputError, match=r"--flash_budget needs a --target.*tflm.*Received: --target=xnnpack"):
        JobConfig(model="m", output_dir="o", flash_budget=1000)
    with pytest.raises(InputError, match=r"--ram_budget must be at least 1. Received: 0"):
        JobConfig(model="m", output_dir="o", prune=PruneConfig(target="tflm"), ram_budget=0)
