import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflow_tf.sparsity import pairing
from reflow_tf.sparsity.pairing import ScoredRows, order_rows
from reflow_tf.sparsity.patterns import Block


def draw(rows, inputs, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, inputs)).astype(np.float32) ** 2


def measure_kept(energies, order, sparsity, height=2):
    """The share of all energy in blocks that stay."""
    ordered = energies[order]
    return ordered[Block(height, 1).select(ordered, sparsity)].sum() / energies.sum()


@pytest.mark.parametrize("height", [2, 4])
def test_rows_that_want_the_same_inputs_come_together(height):
    kinds = np.repeat(np.eye(3), height, axis=0) + 0.01 * draw(3 * height, 3)
    mixed = np.random.default_rng(0).permutation(3 * height)
    order = order_rows([ScoredRows(kinds[mixed], 2 / 3)], height)
    blocks = mixed[order].reshape(3, height) // height
    assert (blocks == blocks[:, :1]).all()


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(1, 6), st.integers(0, 99), st.sampled_from([0.25, 0.5, 0.75]))
def test_the_matching_is_the_best_there_is(rows, inputs, seed, sparsity):
    weights = pairing._weigh([ScoredRows(draw(rows, inputs, seed), sparsity)], [(0, 1)])
    np.fill_diagonal(weights, 0)
    found = sum(weights[one, other] for one, other in pairing._match(weights.copy()))
    orders = itertools.permutations(range(rows))
    best = max(sum(weights[a, b] for a, b in zip(order[::2], order[1::2], strict=False)) for order in orders)
    assert found == pytest.approx(best, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 30, 101])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 6])
def test_every_row_has_a_place(rows, height):
    order = order_rows([ScoredRows(draw(rows, 5), 0.5)], height)
    np.testing.assert_array_equal(np.sort(order), np.arange(rows))
    if height % 2:
        np.testing.assert_array_equal(order, np.arange(rows))


def test_the_odd_row_comes_last():
    energies = np.array([[9, 0], [1, 1], [0, 9], [8, 0], [0, 8]], np.float32)
    assert order_rows([ScoredRows(energies, 0.5)], 2)[-1] == 1


@pytest.mark.parametrize("rows", [60, 200])
def test_pairs_keep_more_than_neighbours(rows):
    energies = draw(rows, 16)
    order = order_rows([ScoredRows(energies, 0.5)], 2)
    singles, neighbours = np.sort(energies.ravel())[energies.size // 2 :].sum() / energies.sum(), np.arange(rows)
    lost = [1 - measure_kept(energies, places, 0.5) for places in (neighbours, order)]
    # Gaussian weights lose 0.07 in the lower half, at random in pairs 0.15.
    assert 1 - singles < lost[1] < 0.8 * lost[0]


def test_few_partners_do_as_well_as_all(monkeypatch):
    energies = draw(200, 30)
    few = measure_kept(energies, order_rows([ScoredRows(energies, 0.5)], 2), 0.5)
    monkeypatch.setattr(pairing, "NUM_PARTNERS", 199)
    every = measure_kept(energies, order_rows([ScoredRows(energies, 0.5)], 2), 0.5)
    assert few == pytest.approx(every, abs=2e-4)


def test_large_layers_are_looked_at_in_part(monkeypatch):
    energies = draw(40, 64)
    monkeypatch.setattr(pairing, "MOST_PRODUCTS", 40 * 40 * 16)
    assert measure_kept(energies, order_rows([ScoredRows(energies, 0.5)], 2), 0.5) > measure_kept(
        energies, np.arange(40), 0.5
    )


def test_a_stream_is_ordered_for_all_its_kernels():
    """One kernel pairs rows 0 and 1, the other, of a millionth of its size, 0 and 2: shares of energy count."""
    loud = 1e6 * np.array([[1, 0.2], [1, 0.2], [0.9, 0.3], [0.2, 1]], np.float32)
    quiet = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    order = order_rows([ScoredRows(loud, 0.5), ScoredRows(quiet, 0.5)], 2)
    assert sorted(map(sorted, order.reshape(2, 2).tolist())) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("energies", [np.zeros((6, 4)), np.ones((6, 4))])
def test_rows_that_are_all_alike(energies):
    np.testing.assert_array_equal(np.sort(order_rows([ScoredRows(energies, 0.5)], 2)), np.arange(6))
