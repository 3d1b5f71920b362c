"""How the convolutions cut an image into tiles, as sources/conv_gather.c does."""

import itertools
from collections.abc import Iterator

import numpy as np

from reflow_tf.export.c_kernels.network import Window

LARGE_TILE, SMALL_TILE = 8, 4  # pixels


def list_tiles(num_pixels: int) -> Iterator[tuple[int, int]]:
    """(first pixel, number of pixels) of each, in their order, of an output of at least `SMALL_TILE` pixels.

    The last one may begin early.
    """
    pixel = 0
    while pixel < num_pixels:
        left = num_pixels - pixel
        size = LARGE_TILE if left > SMALL_TILE and num_pixels >= LARGE_TILE else SMALL_TILE
        first = num_pixels - size if left < size else pixel
        yield first, size
        pixel = first + size


def count_tiles(num_pixels: int) -> tuple[int, int]:
    """Large and small tiles of an output."""
    sizes = [size for _, size in list_tiles(num_pixels)]
    return sizes.count(LARGE_TILE), sizes.count(SMALL_TILE)


def find_lead(window: Window, input_channels: int, output_channels: int) -> int:
    """How many bytes in front of the input the output may begin, so that no tile overwrites what a later one reads.

    A tile is read as a whole before any of it is written; a pixel and its channels lie together.
    """
    pixels = np.arange(window.num_pixels)
    places = np.divmod(pixels, window.output_size[1])
    row, column = (
        np.maximum(place * stride - padding, 0)
        for place, stride, padding in zip(places, window.strides, window.padding, strict=True)
    )
    first_read = row * window.input_size[1] + column  # of each output pixel, of the input's
    tiles = list(list_tiles(window.num_pixels))
    reads = [int(first_read[first : first + size].min()) for first, size in tiles]
    least = list(itertools.accumulate(reversed(reads), min))[::-1]  # that this tile or any later one reads
    leads = [
        (first + size) * output_channels - later * input_channels
        for (first, size), later in zip(tiles, least[1:], strict=False)
    ]
    return max(leads, default=0)
