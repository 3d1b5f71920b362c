import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from reflow_tf.errors import InputError
from reflow_tf.sparsity import quadratic
from reflow_tf.sparsity.updates import NEEDS, UPDATES


def make_problem(seed, density=0.5, shape=(4, 1, 2, 3), groups=2, width=5, rank=3):
    """A kernel, a mask and both statistics, of fewer samples than weights so that they are singular."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape).astype(np.float32)
    mask = rng.random(shape) < density
    num_blocks = -(-kernel.size // width)
    gradients = np.zeros((rank, num_blocks * width), np.float32)
    gradients[:, : kernel.size] = rng.normal(size=(rank, kernel.size))
    by_block = gradients.reshape(rank, num_blocks, width).transpose(1, 2, 0)
    patches = rng.normal(size=(groups, rank, kernel[0].size)) + 0.5
    statistics = {
        "fisher_blocks": by_block @ by_block.transpose(0, 2, 1) / rank,
        "input_gram": patches.transpose(0, 2, 1) @ patches / rank,
    }
    return kernel, mask, statistics


def rows_of(array, name, statistics):
    if NEEDS[name] == {"input_gram"}:
        return quadratic.split_groups(array, statistics["input_gram"])
    return quadratic.split_blocks(array, statistics["fisher_blocks"])[:, None]


def loss_of(kernel, dense, name, statistics):
    (need,) = NEEDS[name]
    return quadratic.measure(need, statistics[need], rows_of(kernel.astype(float) - dense, name, statistics))


problems = st.builds(make_problem, st.integers(0, 10**6), st.floats(0, 1))
both = pytest.mark.parametrize("name", list(UPDATES))


def test_the_measure_by_hand():
    matrices = np.array([[[2.0, 1.0], [1.0, 2.0]], [[4.0, 0.0], [0.0, 0.0]]])
    damping = quadratic.DAMPING["input_gram"] * 2
    moves = np.array([[1.0, -1.0], [0.5, 2.0]])
    assert quadratic.measure("input_gram", matrices, moves) == pytest.approx(
        0.5 * (2 + 2 * damping + 1 + 4.25 * damping)
    )


@both
@settings(max_examples=40)
@given(problem=problems)
def test_masked_weights_are_zero_and_the_quadratic_is_no_higher_than_after_masking_alone(name, problem):
    kernel, mask, statistics = problem
    updated = UPDATES[name](kernel, mask, statistics)
    assert updated.shape == kernel.shape and updated.dtype == kernel.dtype
    assert not updated[~mask].view(np.int32).any()
    masked = loss_of(np.where(mask, kernel, 0), kernel, name, statistics)
    assert loss_of(updated, kernel, name, statistics) <= masked * (1 + 1e-6)


@both
@settings(max_examples=40)
@given(problem=problems)
def test_the_gradient_is_zero_at_every_kept_weight(name, problem):
    """The KKT conditions: no kept weight can move to where the damped quadratic is lower."""
    kernel, mask, statistics = problem
    (need,) = NEEDS[name]
    updated = UPDATES[name](kernel, mask, statistics).astype(float)
    moves = rows_of(updated - kernel, name, statistics)
    matrices = quadratic.damp(statistics[need], quadratic.find_damping(need, statistics[need]))
    gradients = moves @ matrices
    rounding = np.finfo(np.float32).eps * rows_of(np.abs(updated), name, statistics)
    scale = (1e-6 * np.abs(moves) + rounding) @ np.abs(matrices) + 1e-12
    assert (np.abs(gradients / scale)[rows_of(mask, name, statistics)] < 1).all()


@both
def test_against_a_brute_force_minimum(name):
    """Descent along each kept weight in turn, until nothing moves, knows no algebra."""
    kernel, mask, statistics = make_problem(5, shape=(2, 1, 1, 4), groups=1)
    (need,) = NEEDS[name]
    moves = rows_of(np.where(mask, 0, -kernel).astype(float), name, statistics).copy()
    kept = rows_of(mask, name, statistics)
    matrices = quadratic.damp(statistics[need], quadratic.find_damping(need, statistics[need]))
    for _ in range(20000):
        for i in range(moves.shape[-1]):
            step = np.einsum("bri,bi->br", moves, matrices[:, i]) / matrices[:, i, i][:, None]
            moves[:, :, i] -= np.where(kept[:, :, i], step, 0)
    found = rows_of(UPDATES[name](kernel, mask, statistics).astype(float) - kernel, name, statistics)
    np.testing.assert_allclose(found, moves, atol=1e-5)


@both
def test_what_has_no_zeros_or_nothing_else_stays(name):
    kernel, _, statistics = make_problem(6)
    np.testing.assert_array_equal(UPDATES[name](kernel, np.ones(kernel.shape, bool), statistics), kernel)
    assert not UPDATES[name](kernel, np.zeros(kernel.shape, bool), statistics).any()


@both
def test_a_layer_that_no_signal_reaches_is_masked_and_otherwise_as_it_was(name):
    kernel, mask, statistics = make_problem(7)
    silent = {need: np.zeros_like(statistic) for need, statistic in statistics.items()}
    np.testing.assert_array_equal(UPDATES[name](kernel, mask, silent), np.where(mask, kernel, 0))


def test_two_equal_inputs_hand_over_what_one_loses():
    kernel = np.array([[1.0, 2.0]], np.float32)
    gram = np.ones((1, 2, 2))
    updated = UPDATES["obs"](kernel, np.array([[True, False]]), {"input_gram": gram})
    np.testing.assert_allclose(updated, [[1 + 2 / (1 + quadratic.DAMPING["input_gram"]), 0]], rtol=1e-6)


@pytest.mark.parametrize("density", [0.2, 0.8])
def test_rows_give_the_same_by_their_kept_and_by_their_masked_weights(density):
    kernel, mask, statistics = make_problem(8, density, shape=(6, 1, 1, 12), groups=1, rank=20)
    matrix = quadratic.damp(statistics["input_gram"], 0.1)[0]
    targets, kept = kernel.reshape(6, 12).astype(float), mask.reshape(6, 12)
    each = quadratic.minimize_each(np.repeat(matrix[None], 6, axis=0), targets, kept)
    np.testing.assert_allclose(quadratic.minimize_rows(matrix, targets, kept), each, atol=1e-9)


@both
def test_missing_statistics_are_told(name):
    kernel, mask, _ = make_problem(9)
    with pytest.raises(InputError, match="is required"):
        UPDATES[name](kernel, mask, {})


def test_every_update_says_what_it_needs():
    assert NEEDS.keys() == UPDATES.keys()
