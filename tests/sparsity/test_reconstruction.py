"""Least squares with zeros: against brute force over all masks, and against the conditions of an optimum."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reflow_tf.sparsity.patterns import Block
from reflow_tf.sparsity.reconstruction import NormalEquations, choose_mask, solve_together


def draw(seed, groups=1, outputs=3, width=6, samples=200):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, samples, width)) @ rng.normal(size=(groups, width, width))
    weights = rng.normal(size=(groups, outputs, width))
    t = np.einsum("god,gsd->gso", weights, x) + 0.1 * rng.normal(size=(groups, samples, outputs))
    gram, cross = np.einsum("gsd,gse->gde", x, x) / samples, np.einsum("gso,gsd->god", t, x) / samples
    return NormalEquations(gram, cross, np.mean(t**2, axis=1)), weights, x, t


@given(st.integers(0, 2**32 - 1))
def test_errors_are_the_mean_squares(seed):
    equations, weights, x, t = draw(seed, groups=2)
    found = np.mean((np.einsum("god,gsd->gso", weights * 0.7, x) - t) ** 2, axis=1)
    np.testing.assert_allclose(equations.errors(weights * 0.7), found, rtol=1e-8)


@given(st.integers(0, 2**32 - 1))
def test_the_gradient_vanishes_on_kept_weights_and_the_rest_is_zero(seed):
    equations, weights, _, _ = draw(seed)
    assume(np.linalg.cond(equations.gram) < 1e6)  # beyond, rounding errors show
    kept = np.random.default_rng(seed).random(weights.shape) < 0.5
    found = equations.solve(kept)
    assert not found[~kept].any()
    gradient = found @ equations.gram - equations.cross
    scale = np.abs(equations.cross).max()
    assert np.abs(gradient[kept]).max(initial=0) < 1e-7 * scale


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.floats(1e-3, 1))
def test_regularization_leaves_dense_weights_that_fit_exactly_where_they_are(seed, shrinkage, ridge):
    equations, weights, _, _ = draw(seed)
    exact = NormalEquations.of_own_output(equations.gram, weights).regularized(weights, shrinkage, ridge)
    np.testing.assert_allclose(exact.solve(np.ones(weights.shape, bool)), weights, rtol=1e-6, atol=1e-8)


def test_stronger_regularization_pulls_towards_the_dense_weights():
    equations, weights, _, _ = draw(3)
    other = NormalEquations.of_own_output(equations.gram, weights + 1)
    kept = np.ones(weights.shape, bool)
    distances = [
        np.linalg.norm(other.regularized(weights, 0.1, ridge).solve(kept) - weights) for ridge in (1e-3, 0.1, 10.0)
    ]
    assert distances[0] > 1.1 * distances[1] > 1.1 * distances[2]


def test_the_mask_is_close_to_the_best_of_all():
    gaps, plain = [], []
    for seed in range(20):
        equations, weights, _, _ = draw(seed, outputs=1, width=8)
        regularized = equations.regularized(weights, 0.0, 1e-6)

        def select(scores):
            mask = np.zeros(scores.shape, bool)
            mask.ravel()[np.argsort(-scores.ravel())[:3]] = True
            return mask

        def error(mask, regularized=regularized):
            return float(regularized.errors(regularized.solve(mask)).sum())

        chosen = choose_mask(regularized, weights, np.ones((1, 1, 1)), select)
        assert chosen.sum() == 3
        every = []
        for places in itertools.combinations(range(8), 3):
            mask = np.zeros((1, 1, 8), bool)
            mask[..., list(places)] = True
            every.append(error(mask))
        best = min(every)
        gaps.append(error(chosen) / best)
        plain.append(error(select(np.abs(weights))) / best)
    assert np.median(gaps) < 1.25
    assert np.mean(gaps) < 0.7 * np.mean(plain), "hardly better than magnitude"


def test_an_output_that_counts_for_more_keeps_more_weights():
    equations, weights, _, _ = draw(5, outputs=2, width=20)

    def select(scores):
        return scores >= np.partition(scores.ravel(), -10)[-10]

    kept = [
        choose_mask(equations.regularized(weights), weights, np.diag([g**2, 1.0])[None], select) for g in (0.1, 10.0)
    ]
    assert kept[0][0, 0].sum() < kept[1][0, 0].sum()


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_are_independent(groups):
    equations, weights, _, _ = draw(7, groups=groups)
    kept = np.random.default_rng(0).random(weights.shape) < 0.6
    alone = [
        NormalEquations(equations.gram[g : g + 1], equations.cross[g : g + 1], equations.power[g : g + 1]).solve(
            kept[g : g + 1]
        )[0]
        for g in range(groups)
    ]
    np.testing.assert_allclose(equations.solve(kept), alone)


def draw_worth(seed, groups=1, outputs=3):
    roots = np.random.default_rng(seed).normal(size=(groups, outputs, 2 * outputs))
    return roots @ roots.transpose(0, 2, 1)


def measure_cost(equations, worth, weights):
    """The trace of worth (w - best) gram (w - best)^T."""
    away = weights - equations.cross @ equations.inverse
    return float(np.einsum("gop,god,gde,gpe->", worth, away, equations.gram, away))


@given(st.integers(0, 2**32 - 1))
def test_outputs_solved_together_are_at_the_optimum(seed):
    equations, weights, _, _ = draw(seed, groups=2)
    equations = equations.regularized(weights)
    worth, kept = draw_worth(seed, groups=2), np.random.default_rng(seed).random(weights.shape) < 0.5
    found = solve_together(equations, kept, worth)
    assert not found[~kept].any()
    gradient = worth @ (found @ equations.gram - equations.cross)
    before = worth @ (equations.solve(kept) @ equations.gram - equations.cross)
    assert np.linalg.norm(gradient[kept]) <= 0.05 * np.linalg.norm(before[kept]) + 1e-9
    alone = measure_cost(equations, worth, equations.solve(kept))
    assert measure_cost(equations, worth, found) <= alone * (1 + 1e-9)


@given(st.integers(0, 2**32 - 1))
def test_outputs_that_have_nothing_to_do_with_each_other_are_solved_alone(seed):
    equations, weights, _, _ = draw(seed)
    kept = np.random.default_rng(seed).random(weights.shape) < 0.5
    worth = np.diag([1.0, 4.0, 9.0])[None]
    np.testing.assert_array_equal(solve_together(equations, kept, worth), equations.solve(kept))


@given(st.integers(0, 2**32 - 1))
def test_outputs_that_all_read_the_same_inputs_are_solved_alone(seed):
    """Whatever their errors cost together: the best of each reaches what the others' would ask of it."""
    equations, weights, _, _ = draw(seed)
    equations = equations.regularized(weights)
    kept = np.broadcast_to(np.random.default_rng(seed).random(weights.shape[-1]) < 0.5, weights.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reflow_tf.sparsity.reconstruction._MOST_SOLVER_STEPS", 0)
        without = solve_together(equations, kept, draw_worth(seed))
    np.testing.assert_array_equal(solve_together(equations, kept, draw_worth(seed)), without)


def test_the_search_knows_what_errors_cost_together():
    better = []
    for seed in range(20):
        equations, weights, _, _ = draw(seed, outputs=6, width=10)
        equations, worth = equations.regularized(weights), draw_worth(seed, outputs=6)
        alone = worth * np.eye(6)

        def select(scores):
            return scores >= np.partition(scores.ravel(), -30)[-30]

        masks = [choose_mask(equations, weights, known, select) for known in (worth, alone)]
        costs = [measure_cost(equations, worth, solve_together(equations, mask, worth)) for mask in masks]
        better.append(costs[0] / costs[1])
    assert np.median(better) < 0.95


def test_blocks_are_kept_by_energy():
    """One large weight in a pair is worth more than two middling ones, whose absolute values have the higher mean."""
    weights = np.array([[[3.0, 1.9], [0.5, 1.9]]])
    equations = NormalEquations.of_own_output(np.eye(2)[None], weights).regularized(weights)
    mask = choose_mask(equations, weights, np.eye(2)[None], lambda e: Block(2, 1).select(e[0], 0.5)[None])
    np.testing.assert_array_equal(mask, [[[True, False], [True, False]]])
