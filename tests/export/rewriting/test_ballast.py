"""Ballast: files with too few zeros run sparse, and every output stays what it was to the last bit."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.export.equivalence import compute_same
from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.rewriting.ballast import add_ballast
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflite import export_tflite
from reflow_tf.export.verification import check_masks
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import write_masks
from reflow_tf.targets.xnnpack import XNNPack
from reflow_tf.targets.xnnpack.judgement import judge_version
from reflow_tf.targets.xnnpack.shortfall import Shortfall, find_shortfalls, is_ballast
from reflow_tf.targets.xnnpack.versions import NEWEST, VERSIONS

BROWSER = ("browser",)


def draw_network(draw, zeros=0.6, size=33, batch=1, excite=False):
    """A stem, two wide 1x1 convolutions of which this share is zero, and a mean."""
    sketch = draw.Sketch(batch, size, size, 3)
    x = sketch.conv(sketch.input, 32, 3, 2, padding=0, name="stem")
    for name in ("first", "second"):
        weights = thin(sketch, (96, 1, 1, sketch.shape(x)[3]), zeros)
        x = sketch.conv(x, 96, weights=weights, name=name)
    if excite:
        pixel = sketch.mean(x, keep=True)
        pixel = sketch.conv(pixel, 96, weights=thin(sketch, (96, 1, 1, 96), zeros), name="excite")
        x = sketch.binary("MUL", x, pixel)
        x = sketch.conv(x, 96, weights=thin(sketch, (96, 1, 1, 96), zeros), name="third")
    return sketch.finish(sketch.dense(sketch.mean(x), 5))


def thin(sketch, shape, zeros):
    values = sketch.rng.standard_normal(shape).astype(np.float32)
    return sketch.constant(np.where(sketch.rng.random(shape) < zeros, 0, values), "weights")


@pytest.mark.parametrize(("batch", "excite"), [(1, False), (1, True), (3, False)])
def test_a_cluster_with_too_few_zeros_runs_sparse_and_gives_the_same(draw, batch, excite):
    content = draw_network(draw, batch=batch, excite=excite)
    assert not XNNPack().judge(read_operators(store_sparse(content))).eligible
    ballasted = rewrite_exact(content, BROWSER)
    assert [applied.rewrite for applied in ballasted.applied][-1] == "ballast"
    plain = rewrite_exact(content)
    stored = store_sparse(ballasted.content)
    for version in VERSIONS:
        verdict = judge_version(read_operators(stored), version)
        assert verdict.eligible and not verdict.corrupts, version.name
    images = [draw.make_images((batch, 33, 33, 3), seed) for seed in (0, 1)]
    for file in (ballasted.content, stored):
        assert np.array_equal(draw.run(file, *images), draw.run(plain.content, *images))
    assert len(stored) - len(store_sparse(plain.content)) < 4000


def test_the_least_number_of_kernels_is_added_on_the_cheapest_value(draw):
    content = draw_network(draw)
    (shortfall,) = find_shortfalls(read_operators(rewrite_exact(content).content), NEWEST)
    (applied,) = [each for each in rewrite_exact(content, BROWSER).applied if each.rewrite == "ballast"]
    assert applied.operators == ("stem",)  # 32 channels, the others have 96
    count = shortfall.count_kernels(32**2)
    assert f"{count} 1x1 convolutions of one pixel" in applied.statement
    assert draw.count(rewrite_exact(content, BROWSER).content, "CONV_2D") == draw.count(content, "CONV_2D") + count


@given(st.integers(1, 10**7), st.floats(0, 1), st.integers(1, 10**6))
def test_kernels_are_counted_as_xnnpack_counts_zeros(num_weights, share, size):
    shortfall = Shortfall(num_weights, min(int(share * num_weights), num_weights * 2 // 3), (0,))
    count = shortfall.count_kernels(size)

    def is_enough(kernels):
        return 3 * (shortfall.num_zeros + kernels * size) > 2 * (num_weights + kernels * size)

    assert is_enough(count) and not is_enough(count - 1)


def test_what_runs_sparse_already_is_left_alone(draw):
    content = draw_network(draw, zeros=0.75)
    assert rewrite_exact(content, BROWSER).content == rewrite_exact(content).content


def test_twice_is_once(draw):
    once = rewrite_exact(draw_network(draw), BROWSER)
    again = rewrite_exact(once.content, BROWSER)
    assert again.content is once.content and again.applied == again.refused == ()


def test_without_ballast_nothing_is_added(draw):
    assert all(applied.rewrite != "ballast" for applied in rewrite_exact(draw_network(draw)).applied)


def test_a_network_that_nobody_pruned_gets_none_and_no_word(draw):
    rewritten = rewrite_exact(draw_network(draw, zeros=0), BROWSER)
    assert rewritten.refused == () and all(applied.rewrite != "ballast" for applied in rewritten.applied)


def test_a_file_with_an_open_batch_gets_none(draw):
    sketch = draw.Sketch(1, 33, 33, 3)
    sketch.tensors[sketch.input].shapeSignature = [-1, 33, 33, 3]
    x = sketch.conv(sketch.input, 8, 3, 2, padding=0)
    content = sketch.finish(sketch.mean(sketch.conv(x, 96, weights=thin(sketch, (96, 1, 1, 8), 0.6))))
    assert rewrite_exact(content, BROWSER).applied == ()


def test_no_mask_finds_its_kernel_in_the_ballast(draw):
    """The kernel of ballast is all zeros, which every mask of its shape would explain."""
    content = rewrite_exact(draw_network(draw), BROWSER).content
    names = {value.name for value in read_operators(content).values}
    assert any(is_ballast(name) for name in names)
    mask = np.zeros((96, 1, 1, 96), bool)
    (check,) = check_masks(content, {"second/kernel": mask})
    assert not check.ok


def test_a_file_in_float16(strided):
    pruned = keras.models.load_model(strided)
    masks = {}
    for spec in find_kernels(pruned).specs:
        masks[spec.path] = np.random.default_rng(0).random(spec.canonical_shape) >= 0.6
    write_masks(find_kernels(pruned), masks)
    settings = {"quantize": "float16", "rewrite": "exact", "device": "browser"}
    file, plain = (export_tflite(pruned, ballast=ballast, **settings) for ballast in ("auto", "off"))
    assert XNNPack().judge(read_operators(file.content)).eligible
    assert not XNNPack().judge(read_operators(plain.content)).eligible
    assert [tensor.name for tensor in file.tensors] == [tensor.name for tensor in plain.tensors]
    assert compute_same(plain.content, file.content)


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6])
def test_many_shares(draw, share):
    content = draw_network(draw, zeros=share)
    ballasted = add_ballast(rewrite_exact(content).content, ())
    assert XNNPack().judge(read_operators(store_sparse(ballasted.content))).eligible
