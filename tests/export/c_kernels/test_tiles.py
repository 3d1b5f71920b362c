"""Tiles, and how far the output of a convolution may overlap its input."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.export.c_kernels.network import Window
from reflow_tf.export.c_kernels.tiles import count_tiles, find_lead, list_tiles


@st.composite
def windows(draw):
    sizes = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    outputs = tuple(
        max(1, (size + draw(st.integers(pad, 2 * pad)) - k) // stride + 1)
        for size, k, stride, pad in zip(sizes, kernel, strides, padding, strict=True)
    )
    return Window(kernel, strides, padding, sizes, outputs)


def is_safe(window, channels, lead):
    """Runs over the tiles as sources/conv_gather.c does, and looks for a read of what was written."""
    before = 2000  # bytes in front of the output
    written = np.zeros(2 * before + abs(lead), bool)
    for first, size in list_tiles(window.num_pixels):
        for pixel in range(first, first + size):
            top, left = (
                place * stride - pad
                for place, stride, pad in zip(
                    divmod(pixel, window.output_size[1]), window.strides, window.padding, strict=True
                )
            )
            for row in range(max(top, 0), min(top + window.kernel[0], window.input_size[0])):
                for column in range(max(left, 0), min(left + window.kernel[1], window.input_size[1])):
                    begin = before + lead + (row * window.input_size[1] + column) * channels[0]
                    if written[begin : begin + channels[0]].any():
                        return False
        written[before + first * channels[1] : before + (first + size) * channels[1]] = True
    return True


@given(windows(), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_no_tile_writes_over_what_a_later_one_reads(window, channels):
    if window.num_pixels < 4:
        return
    assert is_safe(window, channels, find_lead(window, *channels))


def test_less_far_in_front_something_would_be_lost():
    same = Window((3, 3), (1, 1), (1, 1), (4, 16), (4, 16))
    lead = find_lead(same, 8, 8)
    assert lead == (16 + 1) * 8, "a row and a pixel"
    assert is_safe(same, (8, 8), lead) and not is_safe(same, (8, 8), lead - 1)
    pointwise = Window((1, 1), (1, 1), (0, 0), (9, 8), (9, 8))
    assert find_lead(pointwise, 4, 4) == 0, "what a tile has read it may write over"
    assert find_lead(pointwise, 4, 12) == 64 * 8 and not is_safe(pointwise, (4, 12), 64 * 8 - 1)


def test_tiles_cover_every_pixel_and_the_last_begins_early():
    for pixels in range(4, 40):
        tiles = list(list_tiles(pixels))
        assert {pixel for first, size in tiles for pixel in range(first, first + size)} == set(range(pixels))
        assert count_tiles(pixels) == (sum(size == 8 for _, size in tiles), sum(size == 4 for _, size in tiles))
    assert list(list_tiles(13)) == [(0, 8), (5, 8)]
