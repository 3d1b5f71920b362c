import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.data.batches import EvaluationSet
from reflow_tf.data.npz import NpzSource
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.errors import InputError
from reflow_tf.jobs.scoring import Ranked, compare_files, measure_distances, rank_files, spread
from reflow_tf.repair.contract import show_nothing


@given(st.integers(1, 5000), st.integers(1, 1200))
def test_positions_are_different_increasing_and_reach_both_ends(num_images, most):
    positions = spread(num_images, most)
    assert len(positions) == min(num_images, most) and (np.diff(positions) > 0).all()
    assert positions[0] == 0 and (most == 1 or positions[-1] == num_images - 1)
    if 1 < most < num_images:  # a folder is sorted by class: no stretch of it is passed over
        assert np.diff(positions).max() - np.diff(positions).min() <= 1


class Counting:
    """A runtime whose best class is the pixel of the image."""

    def __init__(self):
        self.seen = 0

    def run(self, batch):
        self.seen += len(batch)
        return np.eye(7)[batch[:, 0, 0, 0].astype(int)]


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_every_file_sees_its_images_in_one_pass(batch_size):
    pixels = np.broadcast_to((np.arange(20) % 7)[:, None, None, None], (20, 2, 2, 1)).astype(np.float32)
    images = EvaluationSet(NpzSource("x.npz", pixels, None), np.arange(20), Preprocessing(None, 1), batch_size)
    all_of_them, some = Counting(), Counting()
    found = rank_files({"dense": all_of_them, "file": some}, {"file": 5}, images, 7, show_nothing)
    assert (all_of_them.seen, some.seen) == (20, 5)
    classes = np.arange(20) % 7
    assert (found["dense"].classes[:, 0] == classes).all()
    assert (found["file"].classes[:, 0] == classes[found["file"].positions]).all()
    same = found["dense"].at(found["file"].positions)
    assert (same.classes == found["file"].classes).all() and (same.positions == spread(20, 5)).all()


def test_classes_are_looked_up_by_position():
    ranked = Ranked(np.array([0, 3, 9]), np.array([[1], [2], [3]]))
    assert ranked.at(np.array([3, 9])).classes.tolist() == [[2], [3]]


class Times:
    """A runtime that gives its images, so many times as bright."""

    def __init__(self, factor):
        self._factor = factor

    def run(self, batch):
        return self._factor * batch


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_distances_are_those_to_the_dense_file_image_by_image(batch_size):
    pixels = np.random.default_rng(0).standard_normal((20, 2, 2, 1)).astype(np.float32)
    images = EvaluationSet(NpzSource("x.npz", pixels, None), np.arange(20), Preprocessing(None, 1), batch_size)
    files = {"file": Times(3), "short": Times(0)}
    found = compare_files(files, Times(2), (4,), {"short": 5}, images, show_nothing)
    powers = np.square(pixels.astype(np.float64)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(found["file"].sums[:, 0], np.stack([powers, 4 * powers, 9 * powers], axis=1), rtol=1e-6)
    assert found["short"].positions.tolist() == spread(20, 5).tolist()
    kept = powers[spread(20, 5)]
    np.testing.assert_allclose(found["short"].sums[:, 0], np.stack([4 * kept, 4 * kept, 0 * kept], axis=1), rtol=1e-6)


def test_distances_of_what_is_not_finite_are_none():
    with pytest.raises(InputError, match="must be finite"):
        measure_distances(np.array([[1.0, np.nan]]), np.ones((1, 2)), (2,))
