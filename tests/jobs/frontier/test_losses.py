"""What a file is expected to lose: closed forms."""

import numpy as np
import pytest

from reflow_tf.data.batches import EvaluationSet
from reflow_tf.data.loading import load_evaluation
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.jobs.frontier.losses import ExpectedError, ExpectedLoss, open_loss, split
from reflow_tf.models.outputs import are_probabilities
from reflow_tf.task import Task

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2]])


class Fixed:
    """Outputs by the first pixel of each image, which is its number."""

    def __init__(self, outputs):
        self._outputs = np.asarray(outputs, np.float32)
        self.output_sizes = (self._outputs.shape[1],)

    def run(self, batch):
        return self._outputs[batch[:, 0, 0, 0].astype(int)]


@pytest.fixture
def images(tmp_path):
    x = np.zeros((4, 2, 2, 3), np.uint8)
    x[:, 0, 0, 0] = np.arange(4)
    np.savez(tmp_path / "images.npz", x=x)
    found = load_evaluation(
        str(tmp_path / "images.npz"),
        preprocessing=Preprocessing((2, 2), 3, "none"),
        num_classes=3,
        class_names_path=None,
        batch_size=3,
    )
    assert isinstance(found, EvaluationSet)
    return found


@pytest.mark.parametrize("outputs", [PROBABILITIES, np.log(PROBABILITIES) + 3.0], ids=["probabilities", "logits"])
def test_it_is_the_difference_of_probabilities(images, outputs):
    loss = ExpectedLoss(Fixed(outputs), images, 3)
    assert loss.measure(Fixed(outputs)) == (0.0, 0.0)
    # The second class is named of the first two images, and the best one of the others.
    named = np.eye(3)[[1, 1, 2, 0]]
    losses = np.array([0.5, 0.05, 0, 0])
    expected, error = loss.measure(Fixed(named))
    assert expected == pytest.approx(100 * losses.mean(), abs=1e-3)
    assert error == pytest.approx(100 * losses.std(ddof=1) / 2, abs=1e-3)


def test_where_none_is_classed_otherwise_one_might_be(images):
    """Or four images would be certain of any file that happens to class them alike."""
    loss = ExpectedLoss(Fixed(PROBABILITIES), images, 3)
    moved = PROBABILITIES + np.array([[-0.1, 0.1, 0.0], [0.0, 0.0, 0.0], [0.02, 0.0, -0.02], [0.15, -0.15, 0.0]])
    expected, error = loss.measure(Fixed(moved))
    least = np.mean([min(0.5, 0.2), 0, min(0.7, 0.04), min(0.2, 0.3)]) / 4
    assert expected == 0 and error == pytest.approx(100 * least, rel=1e-4)


def test_probabilities_in_int8_are_no_logits_though_they_do_not_add_up_to_1(images):
    loss = ExpectedLoss(Fixed(PROBABILITIES), images, 3)
    rounded = np.floor(PROBABILITIES * 30) / 30  # a sum of 0.93 at least
    assert not are_probabilities(rounded)
    expected, error = loss.measure(Fixed(rounded))
    moved = np.abs(rounded - PROBABILITIES).max(axis=1)
    assert expected == 0 and error == pytest.approx(100 * np.mean(2 * moved) / 4, rel=1e-4) and error < 2


@pytest.mark.parametrize("most_fitted", [8, 4, 1])
def test_what_is_left_judges(most_fitted):
    fitted, judged = split([bytes([number]) for number in range(10)], most_fitted)
    assert fitted.tolist() == list(range(most_fitted)) and sorted([*fitted, *judged]) == list(range(10))


@pytest.mark.parametrize("most_fitted", [9, 10, 1000])
def test_where_too_few_are_left_one_in_four_judges(most_fitted):
    fitted, judged = split([bytes([number]) for number in range(10)], most_fitted)
    assert judged.tolist() == [3, 7] and sorted([*fitted, *judged]) == list(range(10))


def test_nothing_is_fitted_to_copies_of_what_judges():
    digests = [b"a", b"b", b"c", b"b", b"b", b"d", b"d", b"a"]
    fitted, judged = split(digests, 8)
    assert judged.tolist() == [3, 7] and fitted.tolist() == [2, 5, 6]
    fitted, judged = split(digests, 4)
    assert judged.tolist() == [4, 5, 6, 7] and fitted.tolist() == [2]


def test_of_numbers_it_is_the_relative_error(images):
    dense = np.array([[3.0, 4.0], [0.0, 5.0], [5.0, 0.0], [4.0, 3.0]])
    loss = open_loss(Fixed(dense), images, None, Task.FIDELITY)
    assert isinstance(loss, ExpectedError) and loss.measure(Fixed(dense)) == (0.0, 0.0)
    # Squared errors 25, 0, 0, 0 of powers 25 each: a quarter, 12.5 of standard deviation.
    expected, error = loss.measure(Fixed(dense * [[0.0], [1.0], [1.0], [1.0]]))
    assert expected == pytest.approx(50.0)
    assert error == pytest.approx(100 * (12.5 / (25 * 2)) / (2 * 0.5))
