import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reflow_tf.models.channels.groups import find_channel_groups
from reflow_tf.models.channels.permutation import permute

SIZE = 6
SAMPLES = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)


def shuffle(model, seed=0):
    """Permutes every group that is free to be; returns how many there were."""
    rng = np.random.default_rng(seed)
    free = [group for group in find_channel_groups(model) if group.frozen is None]
    for group in free:
        permute(group, rng.permutation(group.size))
    return len(free)


def assert_same_outputs(model, samples=SAMPLES):
    before = keras.tree.flatten(model(samples, training=False))
    count = shuffle(model)
    after = keras.tree.flatten(model(samples, training=False))
    for one, other in zip(before, after, strict=True):
        one, other = np.array(one), np.array(other)
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4 * max(np.abs(one).max(), 1e-3))
    return count


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_any_graph_gives_what_it_gave(build_network, steps, data):
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(steps), st.sampled_from([2, 3, 4])), min_size=1, max_size=5))
    model = build_network(*zip(*chosen, strict=True))
    assert assert_same_outputs(model) >= 1  # the head's hidden channels are always free


def test_each_step_gives_what_it_gave(build_network, step):
    assert assert_same_outputs(build_network(["conv", step, "conv"], [4, 4, 4])) >= 1
