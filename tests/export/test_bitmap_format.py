import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from reflow_tf.errors import InputError
from reflow_tf.export.bitmap_format import Bitmap, decode, encode, measure


@given(npst.arrays(st.sampled_from([np.int8, np.int16, np.int32, np.float32]), npst.array_shapes(max_dims=4)))
def test_what_is_encoded_is_decoded_and_takes_what_the_formula_says(dense):
    dense = np.nan_to_num(dense)
    encoded = encode(dense)
    np.testing.assert_array_equal(decode(encoded, dense.shape, dense.dtype), dense)
    assert encoded.size_bytes == measure(dense.size, int(np.count_nonzero(dense)), dense.itemsize)


def test_bytes_by_hand():
    """Ten weights, the first bit of a byte the most significant: decode_state_prune_test.cc of tflite-micro."""
    encoded = encode(np.array([[7, 0, 0, 0, -1], [0, 0, 0, 0, 5]], np.int8))
    assert encoded.bits.tolist() == [0b10001000, 0b01000000]
    assert encoded.ancillary.tolist() == [2, 1, 0, 0, 1] + [0] * 11 + [7, 255, 5]


def test_a_weight_costs_a_bit_and_a_nonzero_one_its_bytes():
    assert measure(800, 100, 1) == 100 + 100 + 16


@pytest.mark.parametrize(
    ("bits", "ancillary", "received"),
    [
        ([0x80], [1, 1, 0, 0, 1, *[0] * 11, 7], r"\(1, 1, 1\)"),
        ([0x80], [2, 1], r"\(\)"),
        ([0x80], [2, 1, 0, 0, 1, *[0] * 11], "17"),
        ([0xFF], [2, 1, 0, 0, 1, *[0] * 11, *[1] * 8], "25"),
    ],
    ids=["another type", "no metadata", "a value is missing", "bits beyond the last element"],
)
def test_what_contradicts_itself_is_refused(bits, ancillary, received):
    encoded = Bitmap(np.array(bits, np.uint8), np.array(ancillary, np.uint8))
    with pytest.raises(InputError, match=f"Received: {received}"):
        decode(encoded, (4,), np.dtype(np.int8))
