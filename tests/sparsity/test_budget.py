"""Sharing out a budget: exact sums, and the optimum against every combination."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.errors import InputError
from reflow_tf.sparsity.budget import NUM_COST_STEPS, SPARSITY_STEP, SensitivityCurve, share_out
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
    found = share_out(specs, curves, 0.6, {"early": 16.0, "late": 1.0})
    assert found["early"] > found["late"]
    cost = 16 * (1 - found["early"]) + (1 - found["late"])
    assert cost == pytest.approx(0.4 * 17, abs=0.1)


def test_a_sparsity_beyond_the_curves_is_refused():
    with pytest.raises(InputError, match=r"what the kernels keep at 95\.0%\. Received: 99\.0%"):
        share_out([spec("a", 100)], {"a": curve(1.0)}, 0.99)
