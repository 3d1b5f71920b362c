import numpy as np
import pytest
from PIL import Image

from reflow_tf.data.preprocessing import RESIZES, SCALINGS, Preprocessing
from reflow_tf.errors import InputError


def plain(size, **options):
    return Preprocessing(size, **{"crop_fraction": 1.0, **options})


@pytest.mark.parametrize("scaling", ["tf", "torch", "caffe"])
def test_scaling_equals_keras(scaling, pixels):
    from keras.src.applications import imagenet_utils

    image = pixels(0)
    expected = imagenet_utils.preprocess_input(image[None].copy(), data_format="channels_last", mode=scaling)[0]
    result = Preprocessing(None, scaling=scaling)(image)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


def test_scaling_lite_unit_and_none():
    image = np.array([[[0, 127, 255]]], np.uint8)
    np.testing.assert_array_equal(Preprocessing(None, scaling="lite")(image), [[[-127 / 128, 0, 1]]])
    np.testing.assert_array_equal(Preprocessing(None, scaling="unit")(image), np.float32([[[0, 127 / 255, 1]]]))
    np.testing.assert_array_equal(Preprocessing(None)(image), [[[0, 127, 255]]])


def test_means_and_stds_of_ones_own():
    image = np.array([[[0, 127, 255]]], np.uint8)
    given = Preprocessing(None, scaling="0.485,0.456,0.406/0.229,0.224,0.225")
    np.testing.assert_array_equal(given(image), Preprocessing(None, scaling="torch")(image))
    one = Preprocessing(None, scaling="0.5/0.25")
    np.testing.assert_allclose(one(image), (image / 255 - 0.5) / 0.25, rtol=1e-6)
    assert one.formula == "(pixel / 255 - mean) / std, with the mean 0.5 and the std 0.25, channel by channel"
    grey = Preprocessing(None, channels=1, scaling="0.5/0.25")
    assert grey(image[..., :1]).dtype == np.float32


@pytest.mark.parametrize("transpose", [False, True], ids=["landscape", "portrait"])
def test_short_side_that_fits_is_only_cropped(transpose, pixels):
    """8x13 for a 7x7 network: the short side is round(7 / 0.875) = 8 already; the crop starts at round(.5)=0, 3."""
    image = pixels(1, 8, 13)
    expected = image[0:7, 3:10]
    if transpose:
        image, expected = image.swapaxes(0, 1), expected.swapaxes(0, 1)
    np.testing.assert_array_equal(Preprocessing((7, 7))(image), expected)


def test_odd_long_side_is_rounded_down(pixels):
    """5x7 -> short side 4, long side floor(4 * 7 / 5) = 5, crop from column round(0.5) = 0."""
    image = pixels(2, 5, 7)
    expected = np.asarray(Image.fromarray(image).resize((5, 4), Image.Resampling.BILINEAR))[:, :4]
    np.testing.assert_array_equal(plain((4, 4))(image), expected)


def test_bicubic_is_pillows(pixels):
    image = pixels(3, 20, 31)
    expected = np.asarray(Image.fromarray(image).resize((12, 8), Image.Resampling.BICUBIC))[0:7, 2:9]
    np.testing.assert_array_equal(Preprocessing((7, 7), resize="bicubic")(image), expected)


def test_upsampling_by_hand():
    """Half-pixel centres: between 0 and 100 lie 25 and 75, and the edges repeat."""
    image = np.array([[0, 100], [0, 100]], np.uint8)
    np.testing.assert_array_equal(plain((4, 4), channels=1)(image)[..., 0], [[0, 25, 75, 100]] * 4)


def test_downsampling_is_antialiased():
    """4 -> 2 with the triangle of half-width 2: weights 3, 3, 1 of 7 for the first output."""
    image = np.tile(np.array([0, 0, 70, 70], np.uint8), (4, 1))
    np.testing.assert_array_equal(plain((2, 2), channels=1)(image)[..., 0], [[10, 60]] * 2)


def test_network_that_is_not_square(pixels):
    image = pixels(4, 8, 8)
    np.testing.assert_array_equal(plain((4, 8))(image), image[2:6])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 300), (300, 3), (223, 225), (999, 2)])
@pytest.mark.parametrize("size", [(5, 5), (31, 17), (16, 40)])
def test_every_size_comes_out_right(height, width, size, pixels):
    assert Preprocessing(size)(pixels(5, height, width)).shape == (*size, 3)


def test_float_images_resize_as_uint8_does_up_to_its_rounding(pixels):
    """Pillow rounds uint8 to the nearest after each of its two passes: two halves, so never more than 1."""
    image = pixels(6, 9, 14)
    difference = plain((20, 20))(image.astype(np.float64)) - plain((20, 20))(image)
    assert 0 < np.abs(difference).max() <= 1


def test_channels():
    grey = np.array([[7, 9]], np.uint8)
    np.testing.assert_array_equal(Preprocessing(None)(grey), [[[7, 7, 7], [9, 9, 9]]])
    red = np.array([[[200, 0, 0]]], np.uint8)
    assert Preprocessing(None, channels=1)(red).item() == 60
    assert Preprocessing(None, channels=1)(red.astype(np.float32)).item() == pytest.approx(59.8)
    five = np.zeros((2, 2, 5), np.float32)
    assert Preprocessing((4, 4), channels=5)(five).shape == (4, 4, 5)
    with pytest.raises(InputError, match=r"network's 3 channels. Received: 5"):
        Preprocessing(None)(five)
    with pytest.raises(InputError, match=r"shape \(7,\)"):
        Preprocessing(None)(np.zeros(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "zca"}, "--preprocess must be auto, tf, torch, caffe, lite, unit, none, or means and"),
        ({"scaling": "0.5/0"}, "means and stds such as"),
        ({"scaling": "0.5,0.5/nan"}, "means and stds such as"),
        ({"scaling": "0.5/0.2/0.1"}, "means and stds such as"),
        ({"scaling": "0.5,0.5/0.2"}, "one mean and one std, or one for each of 3 channels. Received: 0.5,0.5/0.2"),
        ({"resize": "nearest"}, "resize must be"),
        ({"size": (0, 4)}, "image size"),
        ({"crop_fraction": 0.0}, "crop_fraction"),
        ({"crop_fraction": 1.5}, "crop_fraction"),
        ({"channels": 0}, "channels must"),
        ({"channels": 1, "scaling": "torch"}, "must take 3 channels"),
        ({"channels": 1, "scaling": "caffe"}, "must take 3 channels"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(**{"size": (4, 4), **options})


def test_every_named_setting_works(pixels):
    for scaling in SCALINGS:
        for resize in RESIZES:
            assert Preprocessing((6, 6), scaling=scaling, resize=resize)(pixels(7)).shape == (6, 6, 3)
