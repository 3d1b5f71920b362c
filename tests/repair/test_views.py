import numpy as np
import pytest

from reflow_tf.repair.views import LEAST_AREA, MOST_MIXED, draw_boxes, have_views, make_view, vary


def test_a_view_is_drawn_by_its_number_and_that_of_the_shard():
    images = np.random.default_rng(0).random((6, 16, 12, 3), np.float32)
    views = {(shard, view): make_view(images, shard, view) for shard in range(2) for view in range(2)}
    assert all(v.shape == images.shape and v.min() >= 0 and v.max() <= 1 for v in views.values())
    assert len(np.unique(np.concatenate(list(views.values())).reshape(24, -1), axis=0)) == 24
    np.testing.assert_array_equal(views[1, 0], make_view(images, 1, 0))


@pytest.mark.parametrize("shape", [(4, 10), (4, 8, 3), (4, 1, 8, 3)])
def test_what_is_no_image_has_no_views(shape):
    assert not have_views(shape)


def test_views_lie_in_the_image_and_half_of_them_are_mirrored():
    views = draw_boxes(np.random.default_rng(0), 2000, (9, 32, 48, 3))
    assert views.min() >= 0 and views.max() <= 1
    height, width = views[:, 2] - views[:, 0], views[:, 3] - views[:, 1]
    assert height.min() > 0 and 0.45 < np.mean(width < 0) < 0.55
    area = height * np.abs(width)
    assert area.min() >= LEAST_AREA * 0.75 and area.max() <= 1
    assert draw_boxes(np.random.default_rng(0), 3, (9, 12)) is None


def test_varied_images_are_mixed_with_one_other_image_at_most_by_half():
    ramp = np.repeat(np.arange(6, dtype=np.float32), 8 * 8 * 3).reshape(6, 8, 8, 3)  # an image is all one number
    found = vary(ramp, np.random.default_rng(0))
    assert found.shape == ramp.shape and found.dtype == ramp.dtype
    levels = found[:, 0, 0, 0]
    np.testing.assert_allclose(found, np.broadcast_to(levels[:, None, None, None], found.shape), atol=1e-5)
    partners = np.random.default_rng(0)
    assert draw_boxes(partners, 6, ramp.shape) is not None
    shares, partner = partners.uniform(0, MOST_MIXED, 6), partners.permutation(6)
    np.testing.assert_allclose(levels, (1 - shares) * np.arange(6) + shares * partner, atol=1e-5)
    vectors = np.ones((3, 12), np.float32)
    assert vary(vectors, np.random.default_rng(0)) is vectors
