import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from reflow_tf.errors import InputError
from reflow_tf.sparsity import criteria, quadratic
from reflow_tf.sparsity.criteria import CRITERIA, NEEDS, magnitude

SHAPE = (3, 2, 2, 4)
SHARE = criteria.SELECTION_DAMPING
finite = hnp.arrays(np.float32, SHAPE, elements=hnp.from_dtype(np.dtype("f4"), allow_nan=False, allow_infinity=False))


def make_statistics(size, width, groups, inputs, seed=0):
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(-(-size // width), 7, width)).astype(np.float32)
    samples.reshape(-1, 7, width)[-1, :, width - -size % width :] = 0
    patches = rng.normal(size=(groups, 9, inputs)) + 0.5
    return {
        "fisher_blocks": samples.transpose(0, 2, 1) @ samples / 7,
        "input_gram": patches.transpose(0, 2, 1) @ patches / 9,
    }


STATISTICS = make_statistics(48, 5, 1, 16)


def test_magnitude_by_hand():
    np.testing.assert_array_equal(magnitude(np.array([[-3.0, 0.0], [2.0, -0.5]]), {}), [[3.0, 0.0], [2.0, 0.5]])


@pytest.mark.parametrize("name", list(CRITERIA))
@settings(max_examples=30)
@given(kernel=finite)
def test_scores_have_the_kernels_shape_and_are_finite_and_not_negative(name, kernel):
    scores = CRITERIA[name](kernel, {need: STATISTICS[need] for need in NEEDS[name]})
    assert scores.shape == kernel.shape and scores.dtype == kernel.dtype
    assert np.isfinite(scores).all() and (scores >= 0).all()


@pytest.mark.parametrize("name", [name for name, needs in NEEDS.items() if needs])
def test_a_missing_or_misshapen_statistic_is_told(name):
    kernel = np.ones(SHAPE, np.float32)
    with pytest.raises(InputError, match=r"is required.*Received: no statistics"):
        CRITERIA[name](kernel, {})
    (need,) = NEEDS[name]
    for wrong in (STATISTICS[need][:, 1:], STATISTICS[need][:, 1:, 1:], np.repeat(STATISTICS[need], 2, axis=0)):
        with pytest.raises(InputError, match=f"{need} must be"):
            CRITERIA[name](kernel, {need: wrong})


def test_every_criterion_says_what_it_needs():
    assert NEEDS.keys() == CRITERIA.keys()


def test_activation_by_hand_and_by_group():
    kernel = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
    gram = np.array([[[4.0, 1.0], [1.0, 9.0]]])
    np.testing.assert_allclose(criteria.activation(kernel, {"input_gram": gram}), [[2, 6], [6, 12]])
    by_group = np.array([np.diag([1.0, 4.0]), np.diag([9.0, 16.0])])
    np.testing.assert_allclose(criteria.activation(kernel, {"input_gram": by_group}), [[1, 4], [9, 16]])


def test_fisher_and_woodfisher_against_what_a_weight_costs_alone():
    """One weight leaves: the rise of the damped quadratic, with the others fixed and with the others at their best."""
    kernel = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    blocks = STATISTICS["fisher_blocks"]
    flat, scores = kernel.ravel().astype(float), criteria.woodfisher(kernel, STATISTICS).ravel()
    damped = quadratic.damp(blocks, quadratic.find_damping("fisher_blocks", blocks))
    for index in (0, 7, 47):
        block, inside = divmod(index, 5)
        others = [i for i in range(5) if i != inside]
        h = damped[block]
        move = np.zeros(5)
        move[inside] = -flat[index]
        selecting = blocks[block] + quadratic.find_damping("fisher_blocks", blocks, SHARE) * np.eye(5)
        found = criteria.fisher(kernel, STATISTICS).ravel()[index]
        assert found == pytest.approx(0.5 * move @ selecting @ move, rel=1e-5)
        move[others] = -np.linalg.solve(h[np.ix_(others, others)], h[others, inside] * move[inside])
        assert scores[index] == pytest.approx(0.5 * move @ h @ move, rel=1e-4)


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (-1.5, [1.0, 1.0, 1.5]),  # 1 adds 2 - 1.5 once 0 is gone, so it goes before 2 and costs no more than 0 did
        (1.5, [1.0, 3.5, 1.5]),  # 1 adds 2 + 1.5 and stays longest
    ],
)
def test_cbs_counts_pairs_that_cancel_and_pairs_that_add_up(pair, expected):
    mean = 3 / (1 + SHARE)  # of the diagonal without the damping, so that it is 2, 4, 3 with it
    blocks = np.array([[[2.0, pair, 0.0], [pair, 4.0, 0.0], [0.0, 0.0, 3.0]]]) - SHARE * mean * np.eye(3)
    kernel = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(criteria.fisher(kernel, {"fisher_blocks": blocks}), [[1.0, 2.0, 1.5]], rtol=1e-6)
    scores = criteria.cbs(kernel, {"fisher_blocks": blocks})[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert scores[0] < min(scores[1:])


@pytest.mark.parametrize("name", [name for name, needs in NEEDS.items() if "fisher_blocks" in needs])
def test_weights_that_no_sample_speaks_of_go_by_size(name):
    """The quadratic of few samples is singular: what it does not see is not worth nothing, or it would all go first."""
    blocks = np.zeros((1, 4, 4), np.float32)
    blocks[0, 0, 0] = 4.0
    kernel = np.array([[0.1, 1.0, -3.0, 2.0]], np.float32)
    assert np.argsort(CRITERIA[name](kernel, {"fisher_blocks": blocks})[0]).tolist() == [0, 1, 3, 2]


def test_obs_follows_exhaustive_elimination():
    """Step by step: of all weights that remain, the one whose loss costs least after refitting the others."""
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(4, 1, 1, 6)).astype(np.float32)
    gram = make_statistics(24, 5, 2, 6, seed=3)["input_gram"]
    scores = criteria.obs(kernel, {"input_gram": gram}).reshape(4, 6)
    damping = quadratic.find_damping("input_gram", gram)
    for row in range(4):
        matrix, target = gram[row // 2] + damping * np.eye(6), kernel[row].ravel().astype(float)
        order, before, highest = [], 0.0, 0.0
        for _ in range(6):
            losses = {i: best_loss(matrix, target, [*order, i]) for i in range(6) if i not in order}
            order.append(min(losses, key=losses.__getitem__))
            highest = max(highest, losses[order[-1]] - before)
            before = losses[order[-1]]
            assert scores[row, order[-1]] == pytest.approx(highest, rel=1e-3)
        assert np.argsort(scores[row]).tolist() == order


def best_loss(matrix, target, gone):
    kept = [i for i in range(len(target)) if i not in gone]
    move = np.zeros(len(target))
    move[gone] = -target[gone]
    if kept:
        move[kept] = -np.linalg.solve(matrix[np.ix_(kept, kept)], matrix[np.ix_(kept, gone)] @ move[gone])
    return 0.5 * move @ matrix @ move


def test_obs_beyond_its_limit_eliminates_block_by_block(monkeypatch):
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(3, 1, 1, 7)).astype(np.float32)
    gram = make_statistics(21, 5, 1, 7)["input_gram"]
    monkeypatch.setattr(criteria, "OBS_COST_LIMIT", 21 * 4**2)
    assert criteria.find_obs_width(21, 7) == 4
    scores = criteria.obs(kernel, {"input_gram": gram})
    apart = gram.copy()
    apart[:, :4, 4:] = apart[:, 4:, :4] = 0  # what the blocks do not know of
    monkeypatch.undo()
    np.testing.assert_array_equal(
        np.argsort(scores[..., :4]), np.argsort(criteria.obs(kernel, {"input_gram": apart})[..., :4])
    )
    assert not np.allclose(scores, criteria.obs(kernel, {"input_gram": gram}))


@settings(max_examples=25)
@given(
    kernel=hnp.arrays(np.float32, SHAPE, elements=st.integers(-2, 2).map(float)), name=st.sampled_from(["cbs", "obs"])
)
def test_elimination_scores_rise_strictly_within_a_block(kernel, name):
    """Equal weights included: a tie would be broken by position, not by the order of elimination."""
    scores = CRITERIA[name](kernel, STATISTICS).ravel()
    width = 5 if name == "cbs" else 16
    for start in range(0, 45, width):
        of_weights = scores[start : start + width][kernel.ravel()[start : start + width] != 0]
        assert len(set(of_weights)) == len(of_weights)


@pytest.mark.parametrize("name", list(CRITERIA))
@settings(max_examples=20)
@given(kernel=hnp.arrays(np.float32, SHAPE, elements=st.integers(-2, 2).map(float)), dead=st.integers(0, 15))
def test_weights_that_are_zero_alone_score_nothing(name, kernel, dead):
    """Or a kernel that came with zeros would lose weights of inputs that are always zero in their place."""
    statistics = {need: STATISTICS[need].copy() for need in NEEDS[name]}
    for array in statistics.values():
        array[:, : min(dead, array.shape[1])] = 0
        array[:, :, : min(dead, array.shape[1])] = 0
    scores = CRITERIA[name](kernel, statistics)
    np.testing.assert_array_equal(scores == 0, kernel == 0)
