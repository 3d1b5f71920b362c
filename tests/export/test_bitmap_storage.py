import itertools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.bitmap_format import OPERATOR
from reflow_tf.export.bitmap_storage import store_bitmaps
from reflow_tf.export.constants import find_bitmaps, has_bitmaps, list_tensors, read_constants
from reflow_tf.export.operators import read_operators
from reflow_tf.export.slimming import slim
from reflow_tf.runtimes.tflm.runtime import TFLM


@pytest.fixture(scope="module")
def stored(int8_file):
    return store_bitmaps(int8_file[0])


def test_every_constant_is_read_back(int8_file, stored):
    wanted, found = read_constants(int8_file[0]), read_constants(stored)
    assert list(wanted) == list(found)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_tflm_computes_the_same_bit_for_bit(int8_file, stored):
    content, inputs = int8_file
    outputs = TFLM(stored).run_bytes(inputs)
    np.testing.assert_array_equal(outputs, TFLM(content).run_bytes(inputs))
    assert len(np.unique(outputs)) > 50


def test_bytes_are_at_most_a_bit_a_weight_the_nonzero_ones_and_16_a_tensor(int8_file, stored):
    bitmaps = [tensor for tensor in list_tensors(stored) if tensor.storage == "bitmap"]
    assert len(bitmaps) == 2  # of the two 1x1 convolutions; the others are too small
    for tensor in bitmaps:
        num_weights = np.prod(tensor.shape)
        assert tensor.size_bytes <= np.ceil(num_weights / 8) + num_weights - tensor.num_zeros + 16
    beyond = [len(content) - sum(t.size_bytes for t in list_tensors(content)) for content in (int8_file[0], stored)]
    assert beyond[1] - beyond[0] < 2048


def test_the_result_is_never_larger_and_a_file_without_zeros_stays_the_same_object(int8_file):
    model = flatbuffer.parse(int8_file[0])
    for tensor in model.subgraphs[0].tensors:
        if tensor.type == schema.TensorType.INT8 and model.buffers[tensor.buffer].data is not None:
            model.buffers[tensor.buffer].data = np.ones(len(model.buffers[tensor.buffer].data), np.uint8)
    full = flatbuffer.serialize(model)
    assert store_bitmaps(full) is full
    assert not has_bitmaps(full)


def test_a_filter_of_two_convolutions_is_expanded_for_each(int8_file):
    model = flatbuffer.parse(int8_file[0])
    graph = model.subgraphs[0]
    weighed = [operator for operator in graph.operators if len(operator.inputs) == 3]
    twin = schema.OperatorT(**(vars(weighed[2]) | {"inputs": list(weighed[2].inputs)}))
    twin.outputs = [len(graph.tensors)]
    graph.tensors.append(schema.TensorT(**vars(graph.tensors[weighed[2].outputs[0]])))
    graph.operators.insert(graph.operators.index(weighed[2]), twin)
    stored = store_bitmaps(flatbuffer.serialize(model))
    parsed = flatbuffer.parse(stored)
    found = find_bitmaps(parsed, parsed.subgraphs[0])
    assert len(found) > len(set(found.values()))  # one bitmap, two DECODEs
    np.testing.assert_array_equal(TFLM(stored).run_bytes(int8_file[1]), TFLM(int8_file[0]).run_bytes(int8_file[1]))


def test_a_filter_whose_zero_is_not_zero_stays_dense(int8_file):
    """DECODE would fill it up with that zero point."""
    model = flatbuffer.parse(int8_file[0])
    for tensor in model.subgraphs[0].tensors:
        if tensor.shape is not None and len(tensor.shape) == 4 and tensor.quantization.zeroPoint is not None:
            tensor.quantization.zeroPoint = np.full_like(tensor.quantization.zeroPoint, 3)
    assert not has_bitmaps(store_bitmaps(flatbuffer.serialize(model)))


def test_each_decode_stands_right_before_its_reader(stored):
    model = flatbuffer.parse(stored)
    operators = model.subgraphs[0].operators
    for operator, reader in itertools.pairwise(operators):
        if flatbuffer.custom_name(model, operator) == OPERATOR:
            assert operator.outputs[0] == reader.inputs[1]


def test_targets_see_constants_with_their_zeros(int8_file, stored):
    dense, bitmap = (read_operators(content) for content in (int8_file[0], stored))
    assert [operator.kind for operator in dense.operators] == [operator.kind for operator in bitmap.operators]
    for before, after in zip(dense.operators, bitmap.operators, strict=True):
        if before.kind == "CONV_2D":
            old, new = dense.values[before.inputs[1]], bitmap.values[after.inputs[1]]
            assert (old.num_zeros, old.shape, old.stored_dtype) == (new.num_zeros, new.shape, new.stored_dtype)
    assert {value.storage for value in bitmap.values} == {"", "dense", "bitmap"}


def test_slimming_changes_no_output_and_keeps_the_layers_names(int8_file):
    content, inputs = int8_file
    slimmer = slim(content)
    assert len(slimmer) < 0.8 * len(content)
    np.testing.assert_array_equal(TFLM(slimmer).run_bytes(inputs), TFLM(content).run_bytes(inputs))
    names = [[operator.name for operator in read_operators(each).operators] for each in (content, slimmer)]
    assert names[0] == names[1]
    assert "conv_1/weights" in read_constants(slimmer)


def test_slimming_twice_changes_nothing(int8_file):
    once = slim(int8_file[0])
    assert slim(once) == once


def _with_zero_points(model, tensor, number):
    tensor.quantization.zeroPoint = np.zeros(number, np.int64)
    return len(slim(flatbuffer.serialize(model)))


def test_equal_zero_points_are_one_vector(int8_file):
    model = flatbuffer.parse(slim(int8_file[0]))
    graph = model.subgraphs[0]
    filters = [graph.tensors[operator.inputs[1]] for operator in graph.operators if len(operator.inputs) == 3]
    assert [len(tensor.quantization.zeroPoint) for tensor in filters] == [8, 48, 64, 4]
    once = len(slim(int8_file[0]))
    # The filter of 48 channels as one of 64: its zero points are those of the other, and cost nothing more.
    before, after = (_with_zero_points(model, filters[1], number) for number in (48, 64))
    assert before == once and after <= once
