import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from reflow_tf.sparsity.allocation import ALLOCATIONS, erk_allocation, global_allocation, lamp_allocation
from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.sparsity.masks import build_masks, count_masked
from reflow_tf.sparsity.patterns import Block, Channel, Unstructured
from reflow_tf.sparsity.plan import make_plan

score_arrays = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.just(1), st.just(1), st.integers(1, 12)),
    elements=st.integers(0, 9).map(float),
)
layers = st.lists(score_arrays, min_size=1, max_size=5)
names = pytest.mark.parametrize("name", list(ALLOCATIONS))


def describe(arrays):
    """One 1x1 convolution for each array of canonical shape (o, 1, 1, i)."""
    specs = [
        LayerSpec(f"l{i}", Kind.POINTWISE_CONV, (1, 1, a.shape[-1], a.shape[0]), (3,), (2,))
        for i, a in enumerate(arrays)
    ]
    return specs, {spec.path: array for spec, array in zip(specs, arrays, strict=True)}


@names
@given(arrays=layers, sparsity=st.floats(0, 0.999))
def test_global_budget_is_exact(name, arrays, sparsity):
    specs, scores = describe(arrays)
    sparsities = ALLOCATIONS[name](specs, scores, sparsity)
    zeros = [round(sparsities[s.path] * s.num_weights) for s in specs]
    total = sum(s.num_weights for s in specs)
    assert list(sparsities) == [s.path for s in specs]
    assert all(0 <= z <= s.num_weights for z, s in zip(zeros, specs, strict=True))
    assert abs(sum(zeros) - sparsity * total) <= 0.5 + 1e-9
    masks = build_masks(
        make_plan(specs, scores, dict.fromkeys(scores, Unstructured()), ALLOCATIONS[name], sparsity), scores
    )
    assert count_masked(masks) == sum(zeros)


@names
@given(arrays=layers, sparsity=st.floats(0, 0.999))
def test_block_budget_is_met_within_one_group_a_layer_boundary(name, arrays, sparsity):
    specs, scores = describe(arrays)
    pattern = Block(2, 2)
    masks = build_masks(make_plan(specs, scores, dict.fromkeys(scores, pattern), ALLOCATIONS[name], sparsity), scores)
    assert all(pattern.admits(mask) for mask in masks.values())
    wanted = ALLOCATIONS[name](specs, {p: pattern.pool(s) for p, s in scores.items()}, sparsity)
    for spec in specs:
        assert abs(count_masked({0: masks[spec.path]}) - wanted[spec.path] * spec.num_weights) <= 4


def test_ranked_allocations_meet_a_channel_budget_within_one_channel():
    rng = np.random.default_rng(0)
    specs, scores = describe([rng.random((16, 1, 1, 8), np.float32), rng.random((32, 1, 1, 4), np.float32)])
    for name in ("global", "lamp"):
        for sparsity in (0.3, 0.55, 0.9):
            masks = build_masks(
                make_plan(specs, scores, dict.fromkeys(scores, Channel()), ALLOCATIONS[name], sparsity), scores
            )
            assert abs(count_masked(masks) - sparsity * 256) <= 8


def test_global_is_one_threshold_over_all_layers():
    specs, scores = describe([np.array([[[[1, 2, 3, 4]]]], np.float32), np.array([[[[3, 5, 6, 7]]]], np.float32)])
    assert global_allocation(specs, scores, 0.5) == {"l0": 0.75, "l1": 0.25}  # the tie at 3 goes in the order of layers


def test_lamp_by_hand():
    # Layer 0: 1/(1+4+9)=.071, 4/13=.31, 1. Layer 1: 1/(1+100)=.0099, 1. The three lowest go.
    specs, scores = describe([np.array([[[[3, 1, 2]]]], np.float32), np.array([[[[1, 10]]]], np.float32)])
    assert lamp_allocation(specs, scores, 3 / 5) == {"l0": 2 / 3, "l1": 1 / 2}


def test_lamp_never_empties_a_layer_while_another_has_two_weights_left():
    specs, scores = describe(
        [np.full((1, 1, 1, 4), 1e-3, np.float32) * [1, 2, 3, 4], np.full((1, 1, 1, 4), 9.0) * [1, 2, 3, 4]]
    )
    sparsities = lamp_allocation(specs, scores, 0.75)
    assert sparsities == {"l0": 0.75, "l1": 0.75}
    assert global_allocation(specs, scores, 0.75)["l0"] == 1.0


def test_erk_by_hand():
    # Densities proportional to (o+i)/(oi): (8+8)/64=.25 and (16+16)/256=.125; kept = .25*64k + .125*256k = 48k.
    specs, scores = describe([np.ones((8, 1, 1, 8)), np.ones((16, 1, 1, 16))])
    kept = 0.3 * 320  # k = 2: densities .5 and .25
    sparsities = erk_allocation(specs, scores, 1 - kept / 320)
    assert sparsities["l0"] == pytest.approx(0.5) and sparsities["l1"] == pytest.approx(0.75)


def test_erk_leaves_a_layer_dense_that_would_be_overfull():
    specs, scores = describe([np.ones((2, 1, 1, 2)), np.ones((32, 1, 1, 32))])
    sparsities = erk_allocation(specs, scores, 0.5)
    assert sparsities["l0"] == 0.0
    assert sparsities["l1"] == pytest.approx(514 / 1024)
