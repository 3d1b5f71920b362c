import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflow_tf.sparsity import channels as channels_module
from reflow_tf.sparsity.channels import CHANNEL_CRITERIA, Members, Reader, activation, eliminate, magnitude


def make_gram(rng, size):
    samples = rng.normal(size=(4 * size, size)) @ rng.normal(size=(size, size))
    return samples.T @ samples / len(samples)


def make_reader(rng, channels, taps, others=0):
    """Its channels' columns are anywhere among all of them."""
    size = channels * taps + others
    places = rng.permutation(size)[: channels * taps].reshape(channels, taps)
    gram = make_gram(rng, size)
    weights = rng.normal(size=(3, size))
    return Reader(weights, weights, gram, gram, places)


def refit_loss(reader, gone, judging=None):
    """What is lost at least if these channels are gone: by the normal equations of those that are left."""
    left = ~np.isin(np.arange(reader.weights.shape[1]), reader.places[gone])
    pulled = np.linalg.solve(
        reader.gram[np.ix_(left, left)], reader.gram[np.ix_(left, ~left)] @ reader.weights[:, ~left].T
    )
    best = np.zeros_like(reader.weights)
    best[:, left] = reader.weights[:, left] + pulled.T
    moved = best - reader.weights
    return float(np.einsum("od,de,oe->", moved, reader.gram if judging is None else judging, moved))


@settings(max_examples=25, derandomize=True)
@given(st.integers(2, 9), st.sampled_from([1, 2, 4]), st.sampled_from([0, 3]), st.integers(1, 3), st.integers(0, 99))
def test_each_channel_that_leaves_is_the_cheapest_and_costs_what_refitting_leaves(channels, taps, others, count, seed):
    rng = np.random.default_rng(seed)
    readers = [make_reader(rng, channels, taps, others) for _ in range(count)]
    found = eliminate(readers)
    assert sorted(found.order) == list(range(channels))
    for number in range(channels - 1):
        gone = list(found.order[:number])
        rest = [c for c in range(channels) if c not in gone]
        costs = {c: sum(refit_loss(reader, [*gone, c]) for reader in readers) for c in rest}
        assert costs[found.order[number]] == pytest.approx(min(costs.values()), rel=1e-6)
        assert found.losses[number + 1] == pytest.approx(costs[found.order[number]], rel=1e-6)


def test_the_loss_is_that_on_the_inputs_that_judge():
    rng = np.random.default_rng(0)
    fitted = make_reader(rng, 6, 1)
    judging = make_gram(rng, 6)
    found = eliminate([Reader(fitted.weights, fitted.judged, fitted.gram, judging, fitted.places)])
    np.testing.assert_array_equal(found.order, eliminate([fitted]).order)
    missed = [refit_loss(fitted, found.order[:number], judging) for number in range(6)]
    np.testing.assert_allclose(found.losses, np.maximum.accumulate(missed), rtol=1e-6)


def test_of_large_readers_some_channels_leave_at_a_time(monkeypatch):
    monkeypatch.setattr(channels_module, "_ONE_BY_ONE", 50)
    monkeypatch.setattr(channels_module, "_AT_A_TIME", 1 / 8)
    reader = make_reader(np.random.default_rng(0), 40, 2)
    found = eliminate([reader])
    assert sorted(found.order) == list(range(40)) and (np.diff(found.losses) >= 0).all()
    monkeypatch.undo()
    exact = eliminate([reader])
    assert exact.losses[20] <= found.losses[20] * 1.01 and found.losses[20] < 2 * exact.losses[20]


def test_many_channels_are_looked_at_here_and_there():
    found = eliminate([make_reader(np.random.default_rng(0), 100, 1)])
    assert found.losses.shape == (100,)
    assert (np.diff(found.losses) >= 0).all()
    assert found.losses[-1] > found.losses[1] > 0


def test_of_two_equal_channels_one_is_free():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 4))
    samples[:, 3] = samples[:, 1]
    gram = samples.T @ samples / 200 + 1e-9 * np.eye(4)
    weights = rng.normal(size=(5, 4))
    found = eliminate([Reader(weights, weights, gram, gram, np.arange(4)[:, None])])
    assert found.order[0] in (1, 3)
    assert found.losses[1] < 1e-6 < found.losses[2]


def test_the_readers_stay_as_they_are():
    reader = make_reader(np.random.default_rng(0), 6, 2)
    before = reader.weights.copy(), reader.gram.copy()
    eliminate([reader])
    np.testing.assert_array_equal(reader.weights, before[0])
    np.testing.assert_array_equal(reader.gram, before[1])


def test_criteria_by_hand():
    """Two channels: 3-4 and 0-1 in what gives them, read once with two taps and two outputs."""
    written = np.array([[3.0, 4.0], [0.0, 1.0]])
    read = np.array([[[1.0, 0.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 1.0]]])  # outputs, channels, taps
    powers = np.array([[2.0, 7.0], [3.0, 1.0]])
    by_channel = read.transpose(1, 0, 2).reshape(2, -1)
    members = Members((written, by_channel), (read,), (powers,))
    np.testing.assert_allclose(magnitude(members), np.sqrt([25 + 1, 1 + 9]))
    np.testing.assert_allclose(activation(members), [1 * 2, (4 * 3 + 4 * 1) + 1 * 1])
    assert [name for name, criterion in CHANNEL_CRITERIA.items() if criterion is None] == ["elimination"]


@settings(max_examples=25, derandomize=True)
@given(st.integers(2, 9), st.sampled_from([1, 4]), st.integers(1, 3), st.integers(0, 99))
def test_by_scores_the_lowest_leaves_first_and_costs_what_refitting_leaves(channels, taps, count, seed):
    rng = np.random.default_rng(seed)
    readers = [make_reader(rng, channels, taps) for _ in range(count)]
    scores = rng.permutation(channels).astype(float)
    found = eliminate(readers, scores)
    np.testing.assert_array_equal(found.order, np.argsort(scores))
    lost = [sum(refit_loss(reader, found.order[:number]) for reader in readers) for number in range(channels)]
    np.testing.assert_allclose(found.losses, lost, rtol=1e-6, atol=1e-12)


def test_scores_name_channels_also_once_many_have_left():
    """What has left is cut off on the way, and those that are left are numbered anew inside."""
    rng = np.random.default_rng(0)
    scores = rng.permutation(60).astype(float)
    np.testing.assert_array_equal(eliminate([make_reader(rng, 60, 1)], scores).order, np.argsort(scores))
