import functools
import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from reflow_tf.errors import InputError
from reflow_tf.sparsity import quadratic
from reflow_tf.sparsity.patterns import NM, Unstructured
from reflow_tf.sparsity.thresholding import chita
from reflow_tf.sparsity.updates import woodfisher


def make_problem(seed, shape=(2, 1, 1, 8), width=6, rank=4):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape).astype(np.float32)
    num_blocks = -(-kernel.size // width)
    gradients = np.zeros((rank, num_blocks * width), np.float32)
    gradients[:, : kernel.size] = rng.normal(size=(rank, kernel.size))
    by_block = gradients.reshape(rank, num_blocks, width).transpose(1, 2, 0)
    return kernel, {"fisher_blocks": by_block @ by_block.transpose(0, 2, 1) / rank}


def cost_of(kernel, mask, statistics):
    blocks = statistics["fisher_blocks"]
    moves = woodfisher(kernel, mask, statistics).astype(float) - kernel
    return quadratic.measure("fisher_blocks", blocks, quadratic.split_blocks(moves, blocks))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([Unstructured(), NM(2, 4)]))
def test_as_many_weights_of_the_pattern_and_never_a_higher_cost(seed, pattern):
    kernel, statistics = make_problem(seed)
    select = functools.partial(pattern.select, sparsity=0.5)
    start = select(np.abs(kernel))
    found = chita(kernel, start, statistics, select)
    assert found.shape == kernel.shape and np.count_nonzero(found) == np.count_nonzero(start) and pattern.admits(found)
    assert cost_of(kernel, found, statistics) <= cost_of(kernel, start, statistics) * (1 + 1e-5)


def test_without_a_pattern_the_count_is_the_masks():
    kernel, statistics = make_problem(0)
    start = np.abs(kernel) >= np.sort(np.abs(kernel), axis=None)[-5]
    assert np.count_nonzero(chita(kernel, start, statistics)) == 5


def test_it_is_much_nearer_to_the_best_mask_than_magnitude_is():
    """All 70 masks of 4 out of 8 weights are tried: the search is local, so it is not always at the best of them."""
    costs = []
    for seed in range(20):
        kernel, statistics = make_problem(seed, shape=(1, 8), width=8)
        start = Unstructured().select(np.abs(kernel), 0.5)
        masks = np.array([np.isin(np.arange(8), chosen) for chosen in itertools.combinations(range(8), 4)])
        best = min(cost_of(kernel, mask[None], statistics) for mask in masks)
        found = cost_of(kernel, chita(kernel, start, statistics), statistics)
        assert found >= best * (1 - 1e-5)
        costs.append((cost_of(kernel, start, statistics), found, best))
    start, found, best = np.mean(costs, axis=0)
    assert found - best < 0.3 * (start - best)


def test_independent_weights_keep_what_costs_most():
    kernel = np.array([[3.0, 1.0, -2.0, 0.5]], np.float32)
    fisher = np.diag([0.1, 4.0, 1.0, 9.0])[None].astype(np.float32)
    found = chita(kernel, np.array([[True, False, True, False]]), {"fisher_blocks": fisher})
    assert found.tolist() == [[False, True, True, False]]  # w^2 F: 0.9, 4, 4, 2.25


def test_missing_statistics_are_told():
    with pytest.raises(InputError, match="fisher_blocks is required"):
        chita(np.ones((1, 2), np.float32), np.ones((1, 2), bool), {})
