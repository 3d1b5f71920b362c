import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.data.split import draw_indices, even_batches, split_indices

contents = st.lists(st.integers(0, 12), min_size=2, max_size=80).map(lambda ids: [bytes([number]) for number in ids])
seeds = st.integers(0, 2**32 - 1)


@given(contents, st.integers(1, 100), seeds)
def test_split_is_disjoint_complete_and_deterministic(digests, samples, seed):
    split = split_indices(digests, samples, seed)
    everything = np.concatenate([split.calibration, split.evaluation, split.dropped])
    assert sorted(everything) == list(range(len(digests)))
    held_out = {digests[index] for index in split.evaluation}
    assert not held_out & {digests[index] for index in split.calibration}
    assert {digests[index] for index in split.dropped} <= held_out
    assert len(split.calibration) + len(split.dropped) == min(samples, len(digests) // 2)
    again = split_indices(digests, samples, seed)
    for side in ("calibration", "evaluation", "dropped"):
        np.testing.assert_array_equal(getattr(split, side), getattr(again, side))


def test_split_depends_on_the_seed():
    digests = [bytes([number]) for number in range(100)]
    sides = {tuple(split_indices(digests, 50, seed).calibration) for seed in range(5)}
    assert len(sides) == 5


@given(st.integers(1, 200), st.integers(1, 300), seeds)
def test_draw(num_images, samples, seed):
    drawn = draw_indices(num_images, samples, seed)
    assert len(set(drawn)) == len(drawn) == min(num_images, samples)
    assert set(drawn) <= set(range(num_images))
    np.testing.assert_array_equal(drawn, draw_indices(num_images, samples, seed))


@given(st.integers(0, 5000), st.integers(1, 600))
def test_batches_are_near_equal(num_images, batch_size):
    batches = even_batches(num_images, batch_size)
    sizes = [len(batch) for batch in batches]
    assert [index for batch in batches for index in batch] == list(range(num_images))
    assert len(sizes) == -(-num_images // batch_size)
    if sizes:
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1


def test_batches_by_hand():
    assert [len(batch) for batch in even_batches(1000, 256)] == [250] * 4
    assert [len(batch) for batch in even_batches(10, 4)] == [3, 3, 4]
