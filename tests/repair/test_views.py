import numpy as np
import pytest

from reflow_tf.repair.views import LEAST_AREA, add_views, draw_boxes


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


@pytest.mark.parametrize("shape", [(4, 10), (4, 8, 3), (4, 1, 8, 3)])
def test_what_is_no_image_is_left_alone(shape):
    array = np.ones(shape, np.float32)
    assert add_views(array, 100) is array


def test_views_lie_in_the_image_and_half_of_them_are_mirrored():
    views = draw_boxes(np.random.default_rng(0), 2000, (9, 32, 48, 3))
    assert views.min() >= 0 and views.max() <= 1
    height, width = views[:, 2] - views[:, 0], views[:, 3] - views[:, 1]
    assert height.min() > 0 and 0.45 < np.mean(width < 0) < 0.55
    area = height * np.abs(width)
    assert area.min() >= LEAST_AREA * 0.75 and area.max() <= 1
    assert draw_boxes(np.random.default_rng(0), 3, (9, 12)) is None
