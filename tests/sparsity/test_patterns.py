import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from reflow_tf.errors import InputError
from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.sparsity.patterns import NM, Block, Channel, Unstructured, drop_groups, drop_lowest, parse

shapes = st.tuples(st.integers(1, 9), st.integers(1, 2), st.integers(1, 2), st.integers(1, 9))
# Few distinct values, so that ties are the rule.
scores = hnp.arrays(np.float32, shapes, elements=st.integers(0, 5).map(float))
sparsities = st.floats(0, 1)
free_patterns = st.one_of(
    st.just(Unstructured()), st.just(Channel()), st.builds(Block, st.integers(1, 5), st.integers(1, 5))
)


@given(free_patterns, scores, sparsities)
def test_selected_masks_are_admitted(pattern, scores, sparsity):
    mask = pattern.select(scores, sparsity)
    assert mask.shape == scores.shape and mask.dtype == bool
    assert pattern.admits(mask)


@given(scores, sparsities)
def test_unstructured_count_is_exact(scores, sparsity):
    mask = Unstructured().select(scores, sparsity)
    assert np.count_nonzero(~mask) == round(sparsity * scores.size)


@given(scores, sparsities)
def test_nothing_kept_scores_lower_than_anything_dropped(scores, sparsity):
    mask = Unstructured().select(scores, sparsity)
    if mask.any() and not mask.all():
        assert scores[mask].min() >= scores[~mask].max()


@given(st.builds(Block, st.integers(1, 5), st.integers(1, 5)), scores, sparsities)
def test_block_count_is_within_one_group_of_the_request(pattern, scores, sparsity):
    mask = pattern.select(scores, sparsity)
    largest = min(pattern.outputs, scores.shape[0]) * min(pattern.inputs, scores.shape[-1])
    assert abs(np.count_nonzero(~mask) - sparsity * scores.size) <= largest


@given(scores, sparsities)
def test_channel_count_is_within_one_channel_of_the_request(scores, sparsity):
    mask = Channel().select(scores, sparsity)
    assert abs(np.count_nonzero(~mask) - sparsity * scores.size) <= scores[0].size


@given(free_patterns, scores)
def test_pooled_scores_are_constant_on_groups_and_keep_the_sum(pattern, scores):
    pooled = pattern.pool(scores)
    assert pooled.shape == scores.shape
    np.testing.assert_allclose(pooled.sum(), scores.sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pattern.pool(pooled), pooled, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_n_of_m_keeps_exactly_n(n, extra, data):
    pattern = NM(n, n + extra)
    values = data.draw(hnp.arrays(np.float32, (3, 1, 1, 3 * pattern.m), elements=st.integers(0, 5).map(float)))
    mask = pattern.select(values, pattern.sparsity)
    assert pattern.admits(mask)
    np.testing.assert_array_equal(mask.reshape(3, 3, pattern.m).sum(-1), n)


def test_n_of_m_by_hand():
    values = np.array([[3, 1, 2, 4, 5, 5, 5, 5]], np.float32)
    np.testing.assert_array_equal(NM(2, 4).select(values, 0.5), [[1, 0, 0, 1, 0, 0, 1, 1]])


def test_n_of_m_admits_no_group_with_more():
    assert not NM(2, 4).admits(np.array([[1, 1, 1, 0]], bool))
    assert NM(2, 4).admits(np.array([[1, 0, 0, 0]], bool))
    assert not NM(2, 4).admits(np.ones((1, 6), bool))


def test_n_of_m_has_one_sparsity():
    with pytest.raises(InputError, match=r"nm:2,4 has sparsity 0\.5 and no other\. Received: 0\.7"):
        NM(2, 4).select(np.ones((1, 4)), 0.7)


def test_ties_drop_the_first():
    np.testing.assert_array_equal(drop_lowest(np.array([1.0, 0, 1, 1, 2]), 3), [0, 0, 0, 1, 1])


def test_block_by_hand():
    values = np.array([[9, 9, 0, 0, 5], [9, 9, 1, 1, 5], [0, 0, 0, 0, 0]], np.float32)
    expected = [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(Block(2, 2).select(values, 9 / 15), expected)
    assert not Block(2, 2).admits(np.array([[1, 0], [1, 1]], bool))


def test_channel_by_hand():
    values = np.array([[1, 9], [3, 3], [0, 1]], np.float32)
    np.testing.assert_array_equal(Channel().select(values, 2 / 3), [[1, 1], [0, 0], [0, 0]])
    assert not Channel().admits(np.array([[1, 0]], bool))


def test_groups_of_different_sizes_stop_nearest_to_the_request():
    keep = drop_groups(np.array([1.0, 2, 3]), np.array([4, 4, 1]), 5)
    np.testing.assert_array_equal(keep, [False, True, True])


@given(st.one_of(free_patterns, st.builds(NM, st.integers(1, 3), st.integers(4, 8))))
def test_spelling_round_trips(pattern):
    assert parse(str(pattern)) == pattern


@pytest.mark.parametrize("text", ["", "nm:4,2", "nm:0,4", "nm:2", "block:0x1", "block:4", "random", "channel "])
def test_other_spellings_are_refused(text):
    with pytest.raises(InputError, match="Received: "):
        parse(text)


def test_n_of_m_needs_divisible_channels_and_skips_depthwise():
    conv = LayerSpec("stem/kernel", Kind.CONV, (3, 3, 3, 8), (3,), (2,))
    depthwise = LayerSpec("dw/kernel", Kind.DEPTHWISE_CONV, (3, 3, 8, 1), (2, 3), ())
    with pytest.raises(InputError, match=r"Received: 3 input channels at stem/kernel"):
        NM(2, 4).check(conv)
    assert NM(2, 4).obstacle(conv) is None
    assert "depthwise" in NM(2, 4).obstacle(depthwise)
    assert Unstructured().obstacle(depthwise) is None
