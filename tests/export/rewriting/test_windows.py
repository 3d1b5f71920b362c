"""The identity behind the rotation, in integers and along one axis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.export.rewriting.windows import Windows, explicit, same


def slide(signal, kernel, along):
    """The convolution itself: window i begins at pixel i * stride - before; outside are zeros."""
    reach = abs(along.before) + along.count * along.stride + along.kernel
    padded = np.pad(signal, reach)
    starts = [reach + i * along.stride - along.before for i in range(along.count)]
    return [int(padded[start : start + along.kernel] @ kernel) for start in starts]


@st.composite
def any_windows(draw):
    size, kernel = draw(st.integers(1, 20)), draw(st.integers(1, 7))
    stride, before, after = draw(st.integers(1, 3)), draw(st.integers(0, 8)), draw(st.integers(0, 8))
    if draw(st.booleans()):
        return same(size, kernel, stride)
    return explicit(size, kernel, stride, before, max(after, kernel - size - before))


@given(any_windows(), st.integers(0, 2**32 - 1))
def test_mirrored_windows_of_the_mirrored_signal_give_the_mirrored_output(along, seed):
    rng = np.random.default_rng(seed)
    signal, kernel = rng.integers(-9, 10, along.size), rng.integers(-9, 10, along.kernel)
    mirrored = slide(signal[::-1], kernel[::-1], along.mirror())
    assert mirrored == slide(signal, kernel, along)[::-1]


@given(any_windows())
def test_two_mirrors_are_none(along):
    assert along.mirror().mirror() == along


@given(any_windows())
def test_symmetric_are_the_windows_of_symmetric_padding(along):
    padding = (along.kernel - 1) // 2
    symmetric = explicit(along.size, along.kernel, along.stride, padding, padding)
    assert along.is_symmetric() == (along.kernel % 2 == 1 and along == symmetric)


@given(st.integers(1, 40), st.sampled_from([3, 5, 7]))
def test_same_with_stride_2_is_symmetric_in_the_mirror_and_on_odd_sizes_as_it_is(size, kernel):
    along = same(size, kernel, 2)
    if size >= kernel - 2:  # TensorFlow adds no negative padding: smaller sizes would need some
        assert along.mirror().is_symmetric()
    assert along.is_symmetric() == (size % 2 == 1)


@pytest.mark.parametrize(
    ("along", "after"),
    [
        (same(224, 3, 2), 1),
        (same(224, 5, 2), 2),
        (same(225, 3, 2), 1),
        (same(224, 3, 1), 1),
        (explicit(224, 3, 2, 0, 0), -1),  # the last pixel is seen by no window
        (explicit(224, 3, 2, 1, 1), 0),  # torchvision: the zero after is added and not read
    ],
)
def test_zeros_read_after_the_last_pixel(along, after):
    assert along.after == after


def test_same_by_hand():
    assert same(224, 3, 2) == Windows(size=224, kernel=3, stride=2, before=0, count=112)
    assert same(224, 5, 2) == Windows(size=224, kernel=5, stride=2, before=1, count=112)
    assert same(7, 5, 2) == Windows(size=7, kernel=5, stride=2, before=2, count=4)
