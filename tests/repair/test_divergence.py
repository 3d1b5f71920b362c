import numpy as np
import pytest

from reflow_tf.repair.divergence import measure_divergence
from reflow_tf.task import Task


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_the_divergence_of_two_coins():
    dense, found = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert measure_divergence(found, dense) == pytest.approx(expected)


def test_logits_and_their_softmax_diverge_alike():
    rng = np.random.default_rng(0)
    dense, found = rng.normal(size=(2, 20, 7))
    assert measure_divergence(found, dense) == pytest.approx(measure_divergence(softmax(found), softmax(dense)))


def test_a_shift_of_all_logits_is_no_divergence():
    dense = np.random.default_rng(1).normal(size=(5, 4))
    assert measure_divergence(dense + 3, dense) == pytest.approx(0, abs=1e-12)
    assert measure_divergence(2 * dense, dense) > 0.01


def test_one_output_is_judged_by_its_squared_error():
    dense = np.array([[1.0], [3.0]])
    assert measure_divergence(dense + 1, dense) == pytest.approx(1.0)


def test_numbers_are_judged_by_what_they_vary_by():
    # Squared errors 1, 0, 0, 1; variances over the inputs 1 and 4.
    dense, found = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [3.0, 5.0]])
    assert measure_divergence(found, dense, Task.FIDELITY) == pytest.approx(0.5 / 2.5)
    assert measure_divergence(10 * found + 7, 10 * dense + 7, Task.FIDELITY) == pytest.approx(0.5 / 2.5)


def test_numbers_that_never_vary_are_judged_by_their_size():
    dense = np.full((3, 2), 2.0)
    assert measure_divergence(dense + 1, dense, Task.FIDELITY) == pytest.approx(0.25)
    assert np.isfinite(measure_divergence(dense, 0 * dense, Task.FIDELITY))
