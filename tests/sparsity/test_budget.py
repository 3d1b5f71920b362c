"""Sharing out a budget: exact sums, and the optimum against every combination."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflow_tf.errors import InputError
from reflow_tf.sparsity.budget import NUM_COST_STEPS, SPARSITY_STEP, Price, SensitivityCurve, find_most, share_out
from reflow_tf.sparsity.layers import Kind, LayerSpec

MEASURED = (0.4, 0.6, 0.8, 0.95)


def spec(path, size):
    return LayerSpec(path, Kind.DENSE, (size, 10), (1,), (0,))


def curve(scale, power=3.0):
    return SensitivityCurve(MEASURED, tuple(scale * s**power for s in MEASURED))


def test_a_curve_passes_through_what_was_measured_and_never_falls():
    found = SensitivityCurve((0.5, 0.7, 0.9), (0.1, 0.05, 2.0))
    np.testing.assert_allclose(found.at(np.array([0.0, 0.5, 0.7, 0.9])), [0, 0.1, 0.1, 2.0])
    assert (np.diff(found.at(np.linspace(0, 0.9, 50))) >= 0).all()


@given(
    st.lists(st.tuples(st.integers(20, 400), st.floats(1e-4, 10)), min_size=1, max_size=6),
    st.floats(0, 0.9),
)
def test_the_budget_is_met(layers, sparsity):
    specs = [spec(f"l{i}", size) for i, (size, _) in enumerate(layers)]
    found = share_out(specs, {s.path: curve(scale) for s, (_, scale) in zip(specs, layers, strict=True)}, sparsity)
    zeros = sum(found[s.path] * s.num_weights for s in specs)
    assert all(0 <= value <= 1 for value in found.values())
    assert zeros == pytest.approx(sparsity * sum(s.num_weights for s in specs), abs=len(specs))


def test_nothing_on_the_grid_is_better():
    specs = [spec("a", 100), spec("b", 300), spec("c", 200)]
    curves = {"a": curve(5.0), "b": curve(0.3, 6), "c": curve(1.0, 2)}
    found = share_out(specs, curves, 0.7)
    total = sum(curves[path].at(np.array([s]))[0] for path, s in found.items())
    grid = np.append(np.arange(0, 0.95 - SPARSITY_STEP / 2, SPARSITY_STEP), 0.95)
    values = {path: c.at(grid) for path, c in curves.items()}
    best = min(
        values["a"][i] + values["b"][j] + values["c"][k]
        for i, j, k in itertools.product(range(len(grid)), repeat=3)
        if 1000 * (1 - grid[i]) + 3000 * (1 - grid[j]) + 2000 * (1 - grid[k]) <= 1800 + 6000 / NUM_COST_STEPS
    )
    assert total <= best * 1.02


def test_the_layer_that_hurts_most_keeps_most():
    specs = [spec("tender", 100), spec("tough", 100)]
    found = share_out(specs, {"tender": curve(10.0), "tough": curve(0.1)}, 0.6)
    assert found["tender"] < 0.55 < 0.65 < found["tough"]


def test_costs_count_not_weights():
    specs = [spec("early", 100), spec("late", 100)]
    curves = {"early": curve(1.0), "late": curve(1.0)}
    found = share_out(specs, curves, 0.6, {"early": Price(16.0), "late": Price(1.0)})
    assert found["early"] > found["late"]
    cost = 16 * (1 - found["early"]) + (1 - found["late"])
    assert cost == pytest.approx(0.4 * 17, abs=0.1)


def test_a_sparsity_beyond_the_curves_is_refused():
    with pytest.raises(InputError, match=r"what the kernels keep at 95\.0%\. Received: 99\.0%"):
        share_out([spec("a", 100)], {"a": curve(1.0)}, 0.99)


def test_a_price_never_exceeds_that_of_dense_storage():
    np.testing.assert_allclose(Price(5.0, 4.0).per_weight(np.array([0, 0.1, 0.2, 0.6, 1])), [4, 4, 4, 2, 0])


def test_zeros_that_save_nothing_are_not_made():
    specs = [spec("a", 100), spec("b", 100)]
    curves = {"a": curve(1.0), "b": curve(1e-6)}
    found = share_out(specs, curves, 0.5, {"a": Price(5.0, 4.0)})
    assert found["b"] == 0.0
    assert 5 * (1 - found["a"]) <= 0.5 * 4 < 5 * (1 - found["a"] + 0.001)
    assert share_out(specs, curves, 0.01, {"a": Price(5.0, 4.0)})["a"] >= 0.2, "up to there, dense storage is cheaper"


LAYERS = st.lists(
    st.tuples(st.integers(20, 400), st.floats(1e-4, 10), st.sampled_from([1, 4, 16])), min_size=1, max_size=5
)


@settings(max_examples=40)
@given(LAYERS, st.floats(0, 0.9), st.floats(0, 0.9))
def test_cost_and_zeros_are_both_as_asked(layers, sparsity, share):
    specs = [spec(f"l{i}", size) for i, (size, _, _) in enumerate(layers)]
    curves = {s.path: curve(scale) for s, (_, scale, _) in zip(specs, layers, strict=True)}
    prices = {s.path: Price(float(price)) for s, (_, _, price) in zip(specs, layers, strict=True)}
    least = int(share * sum(s.num_weights for s in specs))
    found = share_out(specs, curves, sparsity, prices, least)
    cost = sum(prices[s.path].kept * s.num_weights * (1 - found[s.path]) for s in specs)
    assert cost <= (1 - sparsity) * sum(prices[s.path].kept * s.num_weights for s in specs) + 1e-3
    assert sum(round(found[s.path] * s.num_weights) for s in specs) >= least


def test_nothing_on_the_grid_is_much_better_with_so_many_zeros():
    """The cheap kernel need not be touched for its cost; for the zeros it must."""
    specs = [spec("early", 30), spec("middle", 100), spec("late", 300)]
    costs = np.array([16.0, 4.0, 1.0]) * [300, 1000, 3000]
    curves = {"early": curve(1.0), "middle": curve(0.5, 2), "late": curve(4.0, 4)}
    prices = {"early": Price(16.0), "middle": Price(4.0), "late": Price(1.0)}
    least = 4300 * 2 // 3 + 1
    found = share_out(specs, curves, 0.5, prices, least)
    total = sum(curves[path].at(np.array([s]))[0] for path, s in found.items())
    grid = np.append(np.arange(0, 0.95 - SPARSITY_STEP / 2, SPARSITY_STEP), 0.95)
    values = [curves[s.path].at(grid) for s in specs]
    best = min(
        sum(v[i] for v, i in zip(values, at, strict=True))
        for at in itertools.product(range(len(grid)), repeat=3)
        if costs @ (1 - grid[list(at)]) <= 0.5 * costs.sum() and np.array([300, 1000, 3000]) @ grid[list(at)] >= least
    )
    assert total <= best * 1.03
    assert share_out(specs, curves, 0.5, prices)["late"] < found["late"]


def test_more_zeros_than_the_curves_reach_are_refused():
    with pytest.raises(InputError, match=r"At most 950 weights can be zero here. Received: at least 951 asked for"):
        share_out([spec("a", 100)], {"a": curve(1.0)}, 0.1, {"a": Price(1.0)}, 951)


def test_the_highest_sparsity_can_be_shared_out():
    specs = [spec(f"l{i}", 17 + i) for i in range(40)]
    curves, prices = {s.path: curve(1.0) for s in specs}, {s.path: Price(6.0, 4.0) for s in specs}
    most = find_most(specs, curves, prices)
    assert most == pytest.approx(1 - 0.05 * 6 / 4)
    assert list(share_out(specs, curves, most, prices).values()) == pytest.approx([0.95] * 40, abs=0.01)


# Sparse kernels: a weight by itself costs twice what it costs among all others, and a full kernel 1.2 times.
SPARSE = Price(2.0, full=1.2, dense=1.0)


def test_a_full_kernel_among_sparse_ones_has_a_price_of_its_own():
    np.testing.assert_allclose(SPARSE.per_weight(np.array([0, 0.1, 0.5, 1])), [1.2, 1.8, 1, 0])
    assert (SPARSE.dense_weight, Price(5.0, 4.0).dense_weight, Price(3.0).dense_weight) == (1, 4, 3)


@given(
    st.lists(st.tuples(st.integers(20, 400), st.floats(1e-4, 10)), min_size=1, max_size=4),
    st.floats(0, 0.85),
)
def test_shares_of_the_cost_are_shares_of_the_dense_cost(layers, sparsity):
    specs = [spec(f"l{i}", size) for i, (size, _) in enumerate(layers)]
    curves = {s.path: curve(scale) for s, (_, scale) in zip(specs, layers, strict=True)}
    prices = {s.path: SPARSE for s in specs}
    assert find_most(specs, curves, prices) == pytest.approx(1 - 0.05 * 2)
    found = share_out(specs, curves, sparsity, prices)
    cost = sum(s.num_weights * float(SPARSE.per_weight(np.asarray(found[s.path]))) for s in specs)
    assert cost <= (1 - sparsity) * sum(s.num_weights for s in specs) + 1e-3


def test_a_layer_is_left_dense_where_a_few_zeros_would_cost_more_than_none():
    specs = [spec("tender", 100), spec("tough", 500)]
    curves = {"tender": curve(50.0), "tough": curve(0.1)}
    found = share_out(specs, curves, 0.2, dict.fromkeys(curves, SPARSE))
    assert found["tender"] == 0 and found["tough"] > 0.6
    grid = np.append(np.arange(0, 0.95 - SPARSITY_STEP / 2, SPARSITY_STEP), 0.95)
    costs = SPARSE.per_weight(grid)
    best = min(
        curves["tender"].at(grid)[i] + curves["tough"].at(grid)[j]
        for i, j in itertools.product(range(len(grid)), repeat=2)
        if 1000 * costs[i] + 5000 * costs[j] <= 0.8 * 6000 * (1 + 1 / NUM_COST_STEPS)
    )
    assert sum(float(curves[path].at(np.array([s]))[0]) for path, s in found.items()) <= best * 1.02
