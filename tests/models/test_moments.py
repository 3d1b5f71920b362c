import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from reflow_tf.models.moments import MovingAverage, PartialMoments, PooledMoments


def pool(batches, axis=-1, masks=None):
    pooled = PooledMoments(batches[0].shape[axis])
    for i, batch in enumerate(batches):
        pooled.update(tf.constant(batch), axis, None if masks is None else tf.constant(masks[i]))
    return pooled.moments()


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from([(), (1,), (3, 2), (2, 1, 2)]),
    st.floats(-100, 100),
    st.integers(0, 2**32 - 1),
)
def test_pooling_any_batches_equals_one_batch(sizes, spatial, mean, seed):
    rng = np.random.default_rng(seed)
    batches = [(rng.normal(mean * i, 1 + i, (n, *spatial, 3))).astype(np.float32) for i, n in enumerate(sizes)]
    everything = np.concatenate(batches).astype(np.float64).reshape(-1, 3)
    moments = pool(batches)
    assert moments.count == len(everything)
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(moments.variance, everything.var(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1_000_000, 3), (100, 100, 100, 3), (1, 1_000_000, 3)])
def test_a_million_samples_far_from_zero_lose_no_digits_that_matter(shape):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(shape) * [1e-2, 1.0, 30.0] + [10.0, 1000.0, -5000.0]).astype(np.float32)
    exact = values.astype(np.float64).reshape(-1, 3)
    moments = pool([values])
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(moments.variance, exact.var(0), rtol=2e-5)


def test_between_batch_variance_counts():
    moments = pool([np.zeros((4, 1), np.float32), np.full((4, 1), 2.0, np.float32)])
    assert moments.variance == [1.0]  # each batch by itself has none


@pytest.mark.parametrize("axis", [1, -3, 2, 3])
def test_any_axis(axis):
    values = np.random.default_rng(0).normal(3, 2, (5, 2, 3, 4)).astype(np.float32)
    others = tuple(a for a in range(4) if a != axis % 4)
    moments = pool([values], axis)
    np.testing.assert_allclose(moments.mean, values.mean(others), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, values.var(others), rtol=1e-5)


def test_masked_entries_do_not_count():
    values = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)
    mask = np.random.default_rng(1).random((4, 6)) < 0.5
    moments = pool([values, values * 9], masks=[mask, np.zeros_like(mask)])
    assert moments.count == mask.sum()
    np.testing.assert_allclose(moments.variance, values[mask].var(0), rtol=1e-5)


def test_half_precision_activations():
    values = np.random.default_rng(0).normal(300, 1, (50, 40, 2)).astype(np.float16)
    moments = pool([values])
    np.testing.assert_allclose(moments.variance, values.astype(np.float64).reshape(-1, 2).var(0), rtol=1e-4)


def test_nothing_seen_counts_zero():
    assert PooledMoments(2).moments().count == 0


def test_moving_average_by_hand():
    average = MovingAverage(np.array([1.0]), np.array([4.0]), 0.9)
    average.add(PartialMoments.of(tf.constant([[0.0], [2.0]]), -1))  # mean 1, variance 1
    average.add(PartialMoments.of(tf.constant([[5.0], [5.0]]), -1))  # mean 5, variance 0
    moments = average.moments()
    np.testing.assert_allclose(moments.mean, [0.9 * 1.0 + 0.1 * 5])
    np.testing.assert_allclose(moments.variance, [0.9 * (0.9 * 4 + 0.1 * 1)])
