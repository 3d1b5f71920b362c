import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.errors import InputError
from reflow_tf.report.interval import mean_interval, student_quantile, wilson_interval
from reflow_tf.report.scores import (
    Parity,
    Score,
    compare_numbers,
    compare_outputs,
    score_accuracy,
    score_agreement,
    score_fidelity,
    score_iou,
)

RANKED = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 4, 3, 2, 1], [2, 3, 4, 5, 0]])


def test_accuracy_by_hand():
    # Right at once; right in second place; not among five; right in fifth place.
    labels = np.array([0, 0, 0, 0])
    assert score_accuracy(RANKED, labels, 6) == Score(0.25, 0.75, 4, wilson_interval(1, 4))


@pytest.mark.parametrize("num_classes, top5", [(2, None), (5, None), (6, 0.75)])
def test_top5_says_something_from_six_classes_on(num_classes, top5):
    assert score_accuracy(RANKED, np.zeros(4, np.int64), num_classes).top5 == top5


def test_agreement_looks_at_the_best_class_only():
    reference = RANKED[:, ::-1].copy()
    reference[0] = RANKED[0]
    assert score_agreement(RANKED, reference) == Score(0.25, None, 4, wilson_interval(1, 4))
    assert score_agreement(RANKED, RANKED).top1 == 1.0


def test_two_classes_have_two_ranks():
    assert score_accuracy(np.array([[0, 1], [1, 0]]), np.array([0, 0]), 2).top1 == 0.5


def test_more_predictions_than_labels_are_refused():
    with pytest.raises(InputError, match=r"predictions of shape \(4,\), labels of shape \(3,\)"):
        score_accuracy(RANKED, np.zeros(3, np.int64), 6)


def test_scores_are_plain_numbers_for_json():
    score = score_accuracy(RANKED, np.zeros(4, np.int64), 6)
    assert [type(value) for value in (score.top1, score.top5, score.n, *score.top1_interval)] == [float] * 2 + [
        int,
        float,
        float,
    ]


def test_parity_by_hand():
    reference = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    outputs = np.array([[0.0, 0.5], [0.25, 0.5]], np.float32)
    # |differences| 0, 0.5, 0.75, 0.5; the first image keeps its class, the second does not.
    assert compare_outputs(outputs, reference) == Parity(2, 0.75, 1.75 / 4, 0.5)


def test_parity_subtracts_in_float64():
    reference = np.array([[60000.0, 0.0]], np.float16)
    assert compare_outputs(-reference, reference).max_abs == 2 * float(reference[0, 0])


def test_parity_of_equal_outputs_with_further_axes():
    outputs = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    assert compare_outputs(outputs, outputs) == Parity(2, 0.0, 0.0, 1.0, positions=12)


def test_maps_are_scored_image_by_image():
    ranked = np.zeros((3, 2, 2, 2), np.uint8)
    ranked[..., 1] = 1
    labels = np.zeros((3, 2, 2), np.int64)
    labels[0], labels[1, 0] = 1, 1  # none, half and all of the positions are right
    score = score_accuracy(ranked, labels, 2)
    assert score == Score(0.5, None, 3, mean_interval(np.array([0.0, 0.5, 1.0])), positions=4)
    assert score_agreement(ranked, ranked) == Score(1.0, None, 3, (1.0, 1.0), positions=4)


def test_positions_of_one_image_say_nothing_of_others():
    ranked = np.random.default_rng(0).integers(0, 3, (1, 8, 8, 3))
    assert score_agreement(ranked, ranked[:, ::-1]).top1_interval is None


def test_a_map_of_one_position_is_one_prediction():
    labels = np.array([0, 0, 0, 0])
    assert score_accuracy(RANKED[:, None, None], labels, 6) == score_accuracy(RANKED, labels, 6)


def test_label_maps_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"predictions of shape \(3, 4, 2\), labels of shape \(3, 2, 4\)"):
        score_accuracy(np.zeros((3, 4, 2, 5), int), np.zeros((3, 2, 4), int), 6)


def sums_of(outputs, dense):
    parts = outputs - dense, dense, outputs
    return np.stack([np.square(part.astype(np.float64)).sum(axis=1, keepdims=True) for part in parts], axis=2)


def test_fidelity_by_hand():
    dense = np.array([[3.0, 4.0], [0.0, 5.0]])
    found = score_fidelity(sums_of(np.array([[3.0, 4.0], [3.0, 1.0]]), dense))
    # Squares of errors 0 and 9 + 16; of the dense outputs 25 and 25.
    assert found.relative_error == pytest.approx(np.sqrt(25 / 50)) and found.worst == 1.0
    assert found.cosine == pytest.approx((1 + 1 / np.sqrt(10)) / 2) and found.n == 2


@given(st.integers(1, 6), st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_fidelity_knows_no_unit_and_no_order(n, unit, seed):
    rng = np.random.default_rng(seed)
    dense, outputs = rng.standard_normal((2, n, 3))
    found = score_fidelity(sums_of(outputs, dense))
    order = rng.permutation(n)
    other = score_fidelity(sums_of(unit * outputs[order], unit * dense[order]))
    for mine, theirs in ((found.relative_error, other.relative_error), (found.worst, other.worst)):
        assert theirs == pytest.approx(mine, rel=1e-6)
    assert other.cosine == pytest.approx(found.cosine, abs=1e-9) and -1 <= found.cosine <= 1
    assert found.relative_error <= found.worst * (1 + 1e-9)
    assert (found.error_interval is None) is (n == 1)
    if n > 1:
        assert found.error_interval[0] <= found.relative_error * (1 + 1e-9)
        assert found.relative_error <= found.error_interval[1] * (1 + 1e-9)


def test_outputs_that_are_the_dense_ones_or_nothing():
    dense = np.arange(6.0).reshape(3, 2)
    same = score_fidelity(sums_of(dense, dense))
    assert (same.relative_error, same.worst, same.error_interval) == (0.0, 0.0, (0.0, 0.0)) and same.cosine == 1.0
    nothing = score_fidelity(sums_of(0 * dense, dense))
    assert nothing.relative_error == 1.0 and nothing.cosine is None
    assert score_fidelity(sums_of(dense, 0 * dense)).relative_error > 1e6


def test_numbers_are_compared_whatever_their_shape():
    found = compare_numbers(np.array([[[1.0], [2.0]]]), np.array([[1.5, 2.0]]))
    assert (found.n, found.max_abs, found.mean_abs, found.top1_agreement) == (1, 0.5, 0.25, None)


def iou_by_hand(predicted, right, num_classes):
    ratios = []
    for c in range(num_classes):
        both, either = np.sum((predicted == c) & (right == c)), np.sum((predicted == c) | (right == c))
        if either:
            ratios.append(both / either)
    return sum(ratios) / len(ratios)


def test_mean_iou_of_a_table_by_hand():
    predicted, right = np.array([[[0, 0], [1, 1]], [[1, 1], [1, 1]]]), np.array([[[0, 1], [1, 1]], [[1, 1], [1, 0]]])
    score = score_iou(predicted[..., None], right, 4)  # classes 2 and 3 are nowhere: they do not count
    assert score.value == pytest.approx((1 / 3 + 5 / 7) / 2) and score.n == 2


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_mean_iou_counts_positions_of_all_inputs_and_its_interval_is_the_jackknifes(n, num_classes, seed):
    rng = np.random.default_rng(seed)
    predicted, right = rng.integers(0, num_classes, (2, n, 3, 2))
    score = score_iou(predicted[..., None], right, num_classes)
    assert score.value == pytest.approx(iou_by_hand(predicted, right, num_classes))
    left = [iou_by_hand(np.delete(predicted, i, 0), np.delete(right, i, 0), num_classes) for i in range(n)]
    error = np.sqrt((n - 1) / n * np.sum((left - np.mean(left)) ** 2))
    half = student_quantile(0.975, n - 1) * error
    assert score.interval == pytest.approx((max(0, score.value - half), min(1, score.value + half)))


def test_one_map_says_nothing_of_others():
    assert score_iou(np.zeros((1, 2, 2, 1), int), np.zeros((1, 2, 2), int), 2).interval is None
