"""Rows as streams of steps and weights."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.export.c_kernels.sparse_rows import decode, encode


def draw_rows(shape):
    """Mostly zeros."""
    return hnp.arrays(np.int8, shape, elements=st.integers(-128, 127), fill=st.just(0))


@given(st.tuples(st.integers(1, 4), st.integers(1, 1200)).flatmap(draw_rows))
def test_decoding_gives_the_rows_back(rows):
    np.testing.assert_array_equal(decode(encode(rows), rows.shape), rows)


def test_a_stream_by_hand():
    rows = np.array([[0, 5, 0, -1], [0, 0, 0, 0]], np.int8)
    assert encode(rows).tolist() == [5 * 256 + 1, -256 + 2, 0, 0]


def test_a_long_gap_rests_on_a_zero():
    row = np.zeros((1, 600), np.int8)
    row[0, 599] = -128
    assert encode(row).tolist() == [256 + 255, -256, 256 + 255, -256, -128 * 256 + 89, 0]


@pytest.mark.parametrize("position", [254, 255, 256, 510, 511])
def test_gaps_about_the_longest_step(position):
    row = np.zeros((1, 600), np.int8)
    row[0, [position, position + 1]] = 7, -7
    np.testing.assert_array_equal(decode(encode(row), row.shape), row)


@given(draw_rows((3, 256)))
def test_two_bytes_for_each_nonzero_and_each_row(rows):
    assert encode(rows).nbytes == 2 * (np.count_nonzero(rows) + 3)
