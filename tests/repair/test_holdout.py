import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.repair.holdout import HELD_OUT_EVERY, Part, is_held_out


@given(st.lists(st.integers(0, 9), max_size=6))
def test_both_parts_are_all_inputs_whatever_the_batches(sizes):
    inputs = np.arange(sum(sizes))
    batches = np.split(inputs, np.cumsum(sizes)[:-1]) if sizes else []
    held_out, others = (np.concatenate([[], *Part(batches, part)]) for part in (True, False))
    np.testing.assert_array_equal(held_out, inputs[is_held_out(inputs)])
    np.testing.assert_array_equal(others, inputs[~is_held_out(inputs)])
    assert len(held_out) == len(inputs) // HELD_OUT_EVERY


def test_a_part_can_be_gone_through_again_and_has_no_empty_batches():
    last = HELD_OUT_EVERY - 1
    part = Part([np.arange(2), np.arange(2, HELD_OUT_EVERY + 1)], held_out=True)
    assert [list(batch) for batch in part] == [list(batch) for batch in part] == [[last]]
