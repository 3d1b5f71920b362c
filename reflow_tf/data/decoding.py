"""From the bytes of an image file to pixels.

Pixels stay as stored: an Exif orientation is not applied (keras and torchvision do not apply it either), an alpha
channel is dropped, of an animation the first frame is taken.
"""

import struct
from typing import BinaryIO

import numpy as np
from PIL import Image

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why

# What Pillow's plug-ins raise on files that are damaged in one way or another.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def decode_image(file: BinaryIO, name: str) -> np.ndarray:
    """Decodes one image file.

    Args:
        file: the open file.
        name: what to call it in an error message.

    Returns:
        uint8, (H, W, 1) for grey files, otherwise (H, W, 3) RGB. 16-bit grey is scaled to 8 bits.

    Raises:
        InputError: if the file is no image or is damaged or truncated.
    """
    try:
        with Image.open(file) as image:
            pixels = _to_uint8(image)
    except UNREADABLE as error:
        raise unreadable(name, error) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """(height, width) of an image file, from its header. Raises InputError if the header cannot be read."""
    try:
        with Image.open(file) as image:
            return image.height, image.width
    except UNREADABLE as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"every image must be readable and complete ({say_why(error)}). Received: {name}")


def _to_uint8(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling.
        return np.clip(np.rint(np.asarray(image, np.float64) / 257), 0, 255).astype(np.uint8)
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))
    if "transparency" in image.info:
        image = image.convert("RGBA")  # a palette with alpha converts cleanly only by this detour
    return np.asarray(image.convert("RGB"))
