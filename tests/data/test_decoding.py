import io

import numpy as np
import pytest
from PIL import Image

from reflow_tf.data.decoding import decode_image, read_size
from reflow_tf.errors import InputError


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


SQUARE = Image.new("RGB", (6, 4), (200, 100, 50))


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("RGB", "PNG", (200, 100, 50)),
        ("RGBA", "PNG", (200, 100, 50)),
        ("P", "PNG", (200, 100, 50)),
        ("L", "PNG", (124,)),
        ("LA", "PNG", (124,)),
        ("1", "PNG", None),
        ("RGB", "JPEG", (200, 100, 50)),
        ("L", "JPEG", (124,)),
        ("CMYK", "JPEG", (200, 100, 50)),
        ("RGB", "BMP", (200, 100, 50)),
        ("RGB", "WEBP", (200, 100, 50)),
        ("P", "GIF", (200, 100, 50)),
    ],
)
def test_kinds_of_files(mode, kind, expected):
    image = SQUARE.convert(mode, palette=Image.Palette.ADAPTIVE) if mode == "P" else SQUARE.convert(mode)
    file = encode(image, kind)
    assert read_size(io.BytesIO(file.getvalue()), "x") == (4, 6)
    pixels = decode_image(file, "x")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, 6, 1 if mode in ("1", "L", "LA") else 3)
    if expected is None:
        assert set(np.unique(pixels)) <= {0, 255}
    else:
        np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(expected, pixels.shape), atol=4)


def test_palette_with_alpha():
    image = SQUARE.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_allclose(decode_image(encode(image, "PNG", transparency=b"\x80"), "x")[0, 0], (200, 100, 50))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    np.testing.assert_array_equal(decode_image(encode(image, "PNG"), "x")[..., 0], [[0, 1, 128, 255]])


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    file = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(file, "x")[0, 0], (255, 0, 0))


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to look at it"
    assert decode_image(encode(SQUARE, "JPEG", exif=exif), "x").shape == (4, 6, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "GIF"])
@pytest.mark.parametrize("keep", [0, 0.1, 0.5])
def test_truncated(kind, keep):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    content = encode(Image.fromarray(noise), kind).getvalue()
    with pytest.raises(InputError, match=r"readable and complete .* Received: the/file"):
        decode_image(io.BytesIO(content[: int(keep * len(content))]), "the/file")


def test_not_an_image():
    for function in (decode_image, read_size):
        with pytest.raises(InputError, match=r"Received: notes"):
            function(io.BytesIO(b"dear diary"), "notes")
