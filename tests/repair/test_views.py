import numpy as np
import pytest

from reflow_tf.repair.views import add_views


def test_as_many_views_as_fit_after_the_images():
    images = np.random.default_rng(0).random((6, 16, 12, 3), np.float32)
    for most, expected in [(6, 6), (9, 9), (100, 12)]:
        found = add_views(images, most)
        assert found.shape == (expected, 16, 12, 3)
        np.testing.assert_array_equal(found[:6], images)


def test_views_are_parts_of_their_image():
    images = np.stack([np.full((8, 8, 3), value, np.float32) for value in (1, 2, 3)])
    np.testing.assert_allclose(add_views(images, 6)[3:], images)
    ramp = np.tile(np.linspace(0, 1, 32, dtype=np.float32)[None, None, :, None], (40, 32, 1, 3))
    views = add_views(ramp, 80)[40:]
    assert views.min() >= 0 and views.max() <= 1
    rising = views[:, 0, -1, 0] > views[:, 0, 0, 0]
    assert rising.any() and not rising.all(), "some are mirrored"
    assert np.abs(views[:, 0, -1, 0] - views[:, 0, 0, 0]).max() < 1.0001


@pytest.mark.parametrize("shape", [(4, 10), (4, 8, 8, 5), (4, 8, 3)])
def test_what_is_no_image_is_left_alone(shape):
    array = np.ones(shape, np.float32)
    assert add_views(array, 100) is array
