"""How the convolutions cut an image into tiles, as sources/conv_gather.c does."""

LARGE_TILE, SMALL_TILE = 8, 4  # pixels


def count_tiles(num_pixels: int) -> tuple[int, int]:
    """Large and small tiles of an output of at least `SMALL_TILE` pixels; the last one may begin early."""
    if num_pixels < LARGE_TILE:
        return 0, -(-num_pixels // SMALL_TILE)
    full, left = divmod(num_pixels, LARGE_TILE)
    return full + (left > SMALL_TILE), int(0 < left <= SMALL_TILE)
