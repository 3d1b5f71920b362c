import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflow_tf.errors import InputError
from reflow_tf.sparsity.widths import Axis, Width, Workload, choose_widths, count_macs

CHAIN = (
    Workload(100, (Axis(3, ()), Axis(0, (0,)))),
    Workload(100, (Axis(0, (0,)), Axis(0, (1,)))),
    Workload(10, (Axis(0, (1, 1)), Axis(5, ()))),
)


def make_group(rng, size, multiple=1):
    return Width(size, np.concatenate([[0], np.cumsum(rng.uniform(size=size - 1) * np.arange(1, size))]), multiple)


def total_loss(groups, widths):
    return sum(group.losses[group.size - width] for group, width in zip(groups, widths, strict=True))


@settings(max_examples=50, derandomize=True)
@given(st.integers(0, 999), st.sampled_from([1, 2, 4]), st.floats(0.6, 1))
def test_the_budget_holds_and_nothing_that_helps_is_left_of_it(seed, multiple, share):
    rng = np.random.default_rng(seed)
    groups = [make_group(rng, int(size), multiple) for size in rng.integers(8, 24, 2)]
    dense = count_macs(CHAIN, [group.size for group in groups])
    widths = choose_widths(groups, CHAIN, share)
    assert count_macs(CHAIN, widths) <= share * dense
    for number, group in enumerate(groups):
        assert widths[number] in group.choices
        for wider in group.choices[group.choices > widths[number]][:1]:
            tried = [*widths[:number], wider, *widths[number + 1 :]]
            free = group.losses[group.size - widths[number]] == group.losses[group.size - wider]
            assert free or count_macs(CHAIN, tried) > share * dense


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 999), st.floats(0.4, 0.95))
def test_it_comes_near_the_best_of_all(seed, share):
    rng = np.random.default_rng(seed)
    groups = [make_group(rng, 12), make_group(rng, 10)]
    dense = count_macs(CHAIN, (12, 10))
    every = itertools.product(groups[0].choices, groups[1].choices)
    best = min(total_loss(groups, w) for w in every if count_macs(CHAIN, w) <= share * dense)
    step = max(np.diff(group.losses).max() for group in groups)
    assert total_loss(groups, choose_widths(groups, CHAIN, share)) <= best + 2 * step


def test_all_of_it_is_all_channels():
    groups = [make_group(np.random.default_rng(0), 6), make_group(np.random.default_rng(1), 7)]
    assert choose_widths(groups, CHAIN, 1.0) == (6, 7)


def test_a_group_that_costs_nothing_goes_first():
    free = Width(8, np.zeros(8))
    dear = Width(8, np.linspace(0, 100, 8))
    assert choose_widths([free, dear], CHAIN, 0.5)[1] == 8


def test_a_budget_that_no_width_meets_is_refused():
    groups = [make_group(np.random.default_rng(0), 16, 8)] * 2
    with pytest.raises(InputError, match=r"--max_macs must be at least 0\.\d+ here.*Received: 0\.01"):
        choose_widths(groups, CHAIN, 0.01)
