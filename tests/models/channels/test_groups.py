import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from reflow_tf.models.channels.groups import find_channel_groups
from reflow_tf.models.channels.permutation import permute
from reflow_tf.models.zoo.architectures import ARCHITECTURES

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


@settings(max_examples=25, derandomize=True)
@given(st.data())
def test_any_graph_gives_what_it_gave(build_network, steps, data):
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(steps), st.sampled_from([2, 3, 4])), min_size=1, max_size=5))
    model = build_network(*zip(*chosen, strict=True))
    assert assert_same_outputs(model) >= 1  # the head's hidden channels are always free


def test_each_step_gives_what_it_gave(build_network, step):
    assert assert_same_outputs(build_network(["conv", step, "conv"], [4, 4, 4])) >= 1


def describe(model):
    """(size, names of the variables it numbers, whether it is free) of every group."""
    return [
        (group.size, {f"{span.variable.path}[{span.axis}]" for span in group.spans}, group.frozen is None)
        for group in find_channel_groups(model)
    ]


def test_the_channels_of_an_inverted_residual():
    inputs = keras.Input((SIZE, SIZE, 3), name="input")
    stream = layers.Conv2D(4, 1, use_bias=False, name="stem")(inputs)
    x = layers.Conv2D(8, 1, use_bias=False, name="expand")(stream)
    x = layers.ReLU()(layers.BatchNormalization(scale=False, name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    squeezed = layers.Dense(2, "relu", name="squeeze")(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 8))(layers.Dense(8, "sigmoid", name="excite")(squeezed))])
    x = layers.Add()([stream, layers.Conv2D(4, 1, name="project")(x)])
    model = keras.Model(inputs, layers.Dense(5, name="classes")(layers.Flatten()(x)))
    classes = [("classes/kernel[0]", start) for start in range(0, 4 * SIZE * SIZE, 4)]
    (stream,) = [group for group in find_channel_groups(model) if group.size == 4]
    assert [(f"{s.variable.path}[{s.axis}]", s.start) for s in stream.spans if "classes" in s.variable.path] == classes
    found = {size: (names, free) for size, names, free in describe(model)}
    assert found == {
        3: ({"stem/kernel[2]"}, False),
        4: ({"stem/kernel[3]", "expand/kernel[2]", "project/kernel[3]", "project/bias[0]", "classes/kernel[0]"}, True),
        8: (
            {"expand/kernel[3]", "norm/beta[0]", "norm/moving_mean[0]", "norm/moving_variance[0]"}
            | {"depthwise/kernel[2]", "depthwise/bias[0]", "squeeze/kernel[0]", "excite/kernel[1]", "excite/bias[0]"}
            | {"project/kernel[2]"},
            True,
        ),
        2: ({"squeeze/kernel[1]", "squeeze/bias[0]", "excite/kernel[0]"}, True),
        5: ({"classes/kernel[1]", "classes/bias[0]"}, False),
    }  # fmt: skip


def test_what_is_not_known_freezes_what_touches_it(build_network):
    """Between two convolutions, a layer of somebody's own: the first one's outputs, the second one's inputs."""
    for step in ("own", "layer norm", "softmax", "permute", "multiplied", "grouped", "constant", "clip", "shuffle"):
        model = build_network(["pointwise", step, "pointwise"], [4, 4, 3])
        kernels = [layer.kernel for layer in model.layers if isinstance(layer, layers.Conv2D)]
        before, behind = kernels[1], kernels[-1]
        frozen = {
            (id(span.variable), span.axis)
            for group in find_channel_groups(model) if group.frozen is not None for span in group.spans
        }  # fmt: skip
        assert {(id(before), 3), (id(behind), 2)} <= frozen and (id(behind), 3) not in frozen


def test_of_a_subclassed_model_nothing_is_known(subclassed):
    assert find_channel_groups(subclassed) == ()


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "resnet8", "mobilenet_v1_025"])
def test_whole_networks_give_what_they_gave(name, randomize):
    model = ARCHITECTURES[name].build(32, 10)
    samples = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype(np.float32)
    before = np.array(model(samples, training=False))
    groups = find_channel_groups(model)
    assert shuffle(model) >= len(groups) - 2  # but the inputs and the outputs
    np.testing.assert_allclose(model(samples, training=False), before, atol=1e-4 * np.abs(before).max())


def test_an_activation_over_all_channels_freezes_them():
    """It would bear another order, but not that one of them leaves."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, "softmax", name="mixed"), layers.Dense(2)])
    (group,) = [group for group in find_channel_groups(model) if group.size == 5]
    assert group.frozen == "goes through the activation of mixed, which may mix channels"
