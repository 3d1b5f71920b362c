import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflow_tf.errors import InputError
from reflow_tf.export.sparse_format import Layout, Level, SparseTensor, _layouts, decode, encode, encode_as

SHAPES = hnp.array_shapes(min_dims=1, max_dims=5, min_side=1, max_side=7)


@st.composite
def tensors(draw):
    shape = draw(SHAPES)
    seed, density = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.02, 0.2, 0.5, 1.0]))
    dtype = draw(st.sampled_from([np.float32, np.float16, np.int8]))
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 100, shape) * rng.choice([-1, 1], shape)
    keep = rng.random(shape) < density
    if draw(st.booleans()):  # whole slices empty, as channel pruning leaves them
        axis = draw(st.integers(0, len(shape) - 1))
        keep &= (rng.random(shape[axis]) < 0.5).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return (values * keep).astype(dtype)


@given(tensors())
def test_decoding_gives_back_what_was_encoded(dense):
    encoded = encode(dense)
    decoded = decode(encoded)
    assert decoded.dtype == dense.dtype
    np.testing.assert_array_equal(decoded, dense)


@given(tensors())
@settings(max_examples=50)
def test_the_chosen_layout_is_the_smallest_of_all(dense):
    nonzero = dense != 0
    if not nonzero.any():
        nonzero[(0,) * dense.ndim] = True
    every = [encode_as(dense, layout, nonzero) for layout in _layouts(dense.ndim)]
    for tensor in every:
        np.testing.assert_array_equal(decode(tensor), dense)
    assert encode(dense).size_bytes == min(tensor.size_bytes for tensor in every)


def test_a_matrix_by_hand():
    dense = np.array([[0, 5, 0, 7], [0, 0, 0, 0], [9, 0, 0, 0]], np.float32)
    rows, columns = encode_as(dense, Layout((0, 1), (1,))).levels
    assert (rows.size, rows.segments) == (3, None)
    assert columns.segments.tolist() == [0, 2, 2, 3]
    assert columns.indices.tolist() == [1, 3, 0]
    transposed = encode_as(dense, Layout((1, 0), (1,)))
    assert transposed.values.tolist() == [9, 5, 7]
    assert transposed.levels[1].segments.tolist() == [0, 1, 2, 2, 3]
    assert transposed.levels[1].indices.tolist() == [2, 0, 0]


def test_both_levels_compressed_by_hand():
    dense = np.array([[0, 0, 0], [4, 0, 6], [0, 0, 0], [0, 8, 0]], np.float32)
    outer, inner = encode_as(dense, Layout((0, 1), (0, 1))).levels
    assert (outer.segments.tolist(), outer.indices.tolist()) == ([0, 2], [1, 3])
    assert (inner.segments.tolist(), inner.indices.tolist()) == ([0, 2, 3], [0, 2, 1])


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32)])
def test_indices_are_as_narrow_as_the_axis_allows(size, dtype):
    dense = np.zeros((1, size), np.float32)
    dense[0, -1] = 1
    encoded = encode_as(dense, Layout((0, 1), (1,)))
    assert encoded.levels[1].indices.dtype == dtype
    np.testing.assert_array_equal(decode(encoded), dense)


@pytest.mark.parametrize(
    ("nonzeros", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32)]
)
def test_segments_are_as_narrow_as_the_number_of_values_allows(nonzeros, dtype):
    dense = np.zeros((2, nonzeros), np.float32)
    dense[0] = 1
    assert encode_as(dense, Layout((0, 1), (1,))).levels[1].segments.dtype == dtype


def test_a_wide_input_axis_is_walked_and_the_narrow_output_axis_compressed():
    dense = np.zeros((96, 1, 1, 576), np.float32)
    dense[::7, 0, 0, ::3] = 1
    inner = encode(dense).levels[-1]
    assert (inner.axis, inner.indices.dtype) == (0, np.uint8)


def test_one_value_is_stored_even_if_all_are_zero():
    encoded = encode(np.zeros((300, 3, 3, 20), np.float32))
    assert encoded.values.tolist() == [0]
    assert not decode(encoded).any()


def test_minus_zero_is_zero_and_nan_is_not():
    dense = np.array([[-0.0, np.nan, 0.0, 1.0] * 8], np.float32)
    encoded = encode_as(dense, Layout((0, 1), (1,)))
    assert len(encoded.values) == 16
    np.testing.assert_array_equal(decode(encoded), dense)


def test_blocks_of_other_writers_are_read():
    # The 4x1 blocks of a (4, 2) matrix: block row 0, column 1 holds 1, 2, 3, 4.
    levels = (
        Level(0, 1),
        Level(1, 2, np.array([0, 1], np.uint8), np.array([1], np.uint8)),
        Level(2, 4),
    )
    tensor = SparseTensor((4, 2), levels, np.array([1, 2, 3, 4], np.float32), block_map=(0,), block_sizes=(4,))
    np.testing.assert_array_equal(decode(tensor), [[0, 1], [0, 2], [0, 3], [0, 4]])


@pytest.mark.parametrize(
    ("segments", "indices", "num_values"),
    [([0, 1], [0], 1), ([0, 2, 1], [0, 1], 2), ([0, 1, 2], [0, 9], 2), ([0, 1, 2], [0, 1], 3)],
)
def test_contradicting_indices_are_refused(segments, indices, num_values):
    levels = (Level(0, 2), Level(1, 4, np.array(segments, np.int32), np.array(indices, np.int32)))
    with pytest.raises(InputError, match="Received"):
        decode(SparseTensor((2, 4), levels, np.ones(num_values, np.float32)))
