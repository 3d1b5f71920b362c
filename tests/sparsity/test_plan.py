import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from reflow_tf.errors import InputError
from reflow_tf.sparsity.allocation import uniform_allocation
from reflow_tf.sparsity.criteria import magnitude
from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.patterns import NM, Block, Channel, Unstructured
from reflow_tf.sparsity.plan import PlannedGroup, PlannedLayer, PruningPlan, keep_zeros, make_plan

patterns = st.sampled_from([Unstructured(), NM(2, 4), Block(4, 1), Channel()])
layers = st.dictionaries(st.text(), st.builds(PlannedLayer, patterns, st.floats(0, 1)))
paths = st.lists(st.text()).map(tuple)
kept = st.sets(st.integers(0, 40), min_size=1).map(lambda channels: tuple(sorted(channels)))
groups = st.builds(PlannedGroup, paths, paths, st.integers(41, 50), kept)
plans = st.builds(PruningPlan, layers, st.lists(groups).map(tuple))


@given(plans)
def test_json_round_trip(plan):
    assert PruningPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "layers": {}}',
        '{"version": 1, "layers": []}',
        '{"version": 1, "layers": {"a": 0.5}}',
        '{"version": 1, "layers": {"a": {"pattern": "stripes", "sparsity": 0.5}}}',
        '{"version": 1, "layers": {"a": {"pattern": "channel", "sparsity": 1.5}}}',
        '{"version": 1, "layers": {"a": {"pattern": "channel", "sparsity": "0.5"}}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(InputError, match="Received: "):
        PruningPlan.from_json(text)


@pytest.mark.parametrize(
    ("changed", "received"),
    [
        ({"width": 3}, "with the width 3 and 2 channels"),
        ({"kept": [3, 1]}, "with the width 2 and 2 channels"),
        ({"kept": [1, 1]}, "with the width 2 and 2 channels"),
        ({"kept": [1, 4]}, "with the width 2 and 2 channels"),
        ({"kept": [-1, 3]}, "with the width 2 and 2 channels"),
        ({"kept": [], "width": 0}, "with the width 0 and 0 channels"),
        ({"kept": ["a", 3]}, r"not supported"),
        ({"size": "4"}, r"not supported"),
        ({"readers": None}, r"not iterable"),
    ],
)
def test_channels_that_cannot_be_kept_are_refused(changed, received):
    group = {"writers": ["a"], "readers": [], "size": 4, "width": 2, "kept": [1, 3]}
    assert PruningPlan.from_json(json.dumps({"version": 1, "layers": {}, "channels": [group]})).channels
    with pytest.raises(InputError, match=f"Received: .*{received}"):
        PruningPlan.from_json(json.dumps({"version": 1, "layers": {}, "channels": [group | changed]}))


def test_a_plan_of_an_earlier_release_has_no_channels():
    text = '{"version": 1, "layers": {"a": {"pattern": "channel", "sparsity": 0.5}}}'
    assert PruningPlan.from_json(text) == PruningPlan({"a": PlannedLayer(Channel(), 0.5)}, ())


def test_channels_are_a_line_each():
    plan = PruningPlan({}, (PlannedGroup(("a/kernel",), ("b/kernel",), 4, (1, 3)),))
    assert '"width": 2,\n      "kept": [1, 3]\n' in plan.to_json()


def test_a_plan_reads_like_a_list_of_layers():
    plan = PruningPlan({"block_1_expand/kernel": PlannedLayer(Block(4, 1), 0.75)})
    assert json.loads(plan.to_json())["layers"] == {"block_1_expand/kernel": {"pattern": "block:4x1", "sparsity": 0.75}}


def pointwise(path, inputs, outputs):
    return LayerSpec(path, Kind.POINTWISE_CONV, (1, 1, inputs, outputs), (3,), (2,))


def test_n_of_m_gives_every_layer_the_patterns_sparsity():
    specs = [pointwise("a", 8, 4), pointwise("b", 4, 4)]
    scores = {spec.path: np.ones(spec.canonical_shape) for spec in specs}
    plan = make_plan(specs, scores, dict.fromkeys(scores, NM(1, 4)), uniform_allocation, 0.75)
    assert {layer.sparsity for layer in plan.layers.values()} == {0.75}


def test_n_of_m_that_does_not_divide_the_channels_is_refused():
    spec = pointwise("a/kernel", 6, 4)
    with pytest.raises(InputError, match=r"6 input channels at a/kernel"):
        make_plan([spec], {"a/kernel": np.ones(spec.canonical_shape)}, {"a/kernel": NM(2, 4)}, uniform_allocation, 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), "0.5", True])
def test_sparsity_outside_the_half_open_interval_is_refused(sparsity):
    spec = pointwise("a", 4, 4)
    with pytest.raises(InputError, match=r"must be in \[0, 1\)"):
        make_plan([spec], {"a": np.ones(spec.canonical_shape)}, {"a": Unstructured()}, uniform_allocation, sparsity)


def test_masks_follow_the_plan():
    kernel = np.array([[[[0.1, -3.0, 0.2, 2.0]]]], np.float32)
    masks = build_masks(
        PruningPlan({"a": PlannedLayer(Unstructured(), 0.5)}), {"a": magnitude(kernel, {}), "b": kernel}
    )
    assert list(masks) == ["a"]
    np.testing.assert_array_equal(masks["a"], [[[[0, 1, 0, 1]]]])


@pytest.mark.parametrize(
    "pattern, sparsity, raised",
    [
        (Unstructured(), 0.3, 10 / 16),
        (Unstructured(), 0.75, 0.75),
        (Block(2, 2), 0.0, 8 / 16),  # of the first rows all but two weights of the second are zero
        (Channel(), 0.0, 4 / 16),
        (NM(2, 4), 0.5, 0.5),
    ],
)
def test_no_kernel_gets_less_sparse_than_it_came(pattern, sparsity, raised):
    kernel = np.ones((4, 4), np.float32)
    kernel[0], kernel[1, :2], kernel[2:, 2:] = 0, 0, 0
    plan = PruningPlan({"a": PlannedLayer(pattern, sparsity)})
    kept = keep_zeros(plan, {"a": kernel}).layers["a"]
    assert (kept.pattern, kept.sparsity) == (pattern, raised)
    if not isinstance(pattern, NM):
        mask = pattern.select(np.abs(kernel), kept.sparsity)
        assert sparsity == 0.75 or not kernel[~mask].any(), "only zeros are masked"
