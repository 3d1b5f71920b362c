"""Networks turned inside their file: they compute the same, and every stride-2 convolution is padded evenly."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.constants import list_tensors
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.sparse_storage import store_sparse

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
NOISE = 1e-5


def downsample(sketch, kernels=(3, 5), padding=SAME):
    """A stem and a depthwise convolution with stride 2 for each kernel."""
    x = sketch.stem(padding=padding)
    for number, kernel in enumerate(kernels):
        x = sketch.conv(sketch.depthwise(x, kernel, 2, padding, name=f"down_{number}"), 8)
    return x


def downsample_from(sketch, x):
    return sketch.conv(sketch.depthwise(sketch.stem(x), 3, 2), 8)


def check(draw, content, *rewrites, noise=NOISE):
    """Rewrites, compares the outputs, and sees that nothing is left to pad."""
    rewritten = rewrite_exact(content)
    assert [applied.rewrite for applied in rewritten.applied] == list(rewrites) and rewritten.refused == ()
    assert draw.measure(content, rewritten.content) <= noise
    for kernel, paddings, padding in draw.list_strided(rewritten.content):
        assert padding == "VALID" and paddings == ((kernel // 2, kernel // 2),) * 2
    return rewritten


def check_refused(content, layer, *words):
    rewritten = rewrite_exact(content)
    assert rewritten.content is content and rewritten.applied == ()
    (refused,) = rewritten.refused
    assert (refused.rewrite, refused.operator) == ("rotation", layer)
    for word in words:
        assert word in refused.reason
    return refused.reason


@pytest.mark.parametrize(
    ("size", "turn", "reverses"),
    [
        ((32, 32), "turned by 180 degrees", 1),
        ((48, 32), "turned by 180 degrees", 1),
        ((32, 33), "mirrored along its height", 1),
        ((33, 32), "mirrored along its width", 1),
    ],
)
def test_even_sizes_are_mirrored_and_odd_ones_are_not(draw, size, turn, reverses):
    sketch = draw.Sketch(1, *size, 3)
    rewritten = check(draw, sketch.classify(downsample(sketch)), "rotation")
    (applied,) = rewritten.applied
    assert f"The image is {turn} inside the file, and 3 spatial kernels" in applied.statement
    assert applied.operators == ("stem", "down_0", "down_1")
    assert draw.count(rewritten.content, "REVERSE_V2") == reverses


def test_odd_sizes_only_need_their_padding_written_out(draw):
    sketch = draw.Sketch(1, 33, 33, 3)
    rewritten = check(draw, sketch.classify(downsample(sketch)), "padding", noise=0)
    assert rewritten.applied[0].operators == ("stem", "down_0", "down_1")
    assert draw.count(rewritten.content, "REVERSE_V2") == 0


def test_sizes_that_are_even_here_and_odd_there(draw):
    sketch = draw.Sketch(1, 36, 44, 3)  # 36, 18, 9, 5 and 44, 22, 11, 6
    check(draw, sketch.classify(downsample(sketch, kernels=(3, 5, 3))), "rotation")


def test_several_images_at_once(draw):
    sketch = draw.Sketch(2, 16, 16, 3)
    check(draw, sketch.classify(downsample(sketch)), "rotation")


def test_padding_of_its_own_is_folded_in(draw):
    """Keras's ZeroPadding2D(((0, 1), (0, 1))) in front of 'valid', as its MobileNets have it."""
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.stem(sketch.pad(sketch.input, (0, 1), (0, 1)), VALID)
    x = sketch.depthwise(sketch.pad(x, (1, 2), (1, 2)), 5, 2, VALID, name="down")
    rewritten = check(draw, sketch.classify(x), "rotation")
    assert draw.count(rewritten.content, "PAD") == 2


def test_even_padding_is_left_alone(draw):
    """torchvision's padding of 1: nothing to do, and the very same bytes."""
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.stem(sketch.pad(sketch.input, (1, 1), (1, 1)), VALID)
    content = sketch.classify(sketch.depthwise(sketch.pad(x, (1, 1), (1, 1)), 3, 2, VALID))
    rewritten = rewrite_exact(content)
    assert rewritten.content is content and rewritten.applied == rewritten.refused == ()


def test_even_padding_that_two_layers_share_is_written_twice(draw):
    """XNNPACK fuses a PAD only into its one reader."""
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.pad(sketch.stem(sketch.pad(sketch.input, (1, 1), (1, 1)), VALID), (1, 1), (1, 1))
    x = sketch.binary("ADD", sketch.depthwise(x, 3, 2, VALID), sketch.depthwise(x, 3, 2, VALID))
    rewritten = check(draw, sketch.classify(x), "padding", noise=0)
    assert draw.count(rewritten.content, "PAD") == 3


def test_layers_that_want_different_orientations(draw):
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.stem(sketch.pad(sketch.input, (1, 1), (1, 1)), VALID)
    content = sketch.classify(sketch.depthwise(x, 5, 2, name="down"))
    reason = check_refused(content, "stem", "No orientation of the height suits every layer")
    assert "As it is: down (kernel 5, stride 2, 16 -> 8 pixels) reads 1 and 2 zeros" in reason
    assert "Mirrored: stem (kernel 3, stride 2, 32 -> 16 pixels) reads 0 and 1 zeros" in reason


def test_windows_that_are_too_few(draw):
    """Without padding there is one window less than with symmetric padding."""
    sketch = draw.Sketch(1, 33, 33, 3)
    check_refused(sketch.classify(sketch.depthwise(sketch.stem(), 3, 2, VALID, name="down")), "down", "17 -> 8 pixels")


def test_pixels_that_no_window_sees(draw):
    sketch = draw.Sketch()
    x = sketch.conv(sketch.stem(), 8, 1, 2, name="every_other")
    check_refused(sketch.classify(x), "every_other", "every_other leaves out its last 1 pixels")


def test_uneven_padding_elsewhere(draw):
    sketch = draw.Sketch(1, 48, 48, 3)
    x = sketch.conv(downsample(sketch, kernels=(3,)), 8, 4)  # SAME pads 1 before, 2 after
    x = sketch.conv(x, 8, 2, dilation=2)  # and here 1 and 1
    x = sketch.conv(sketch.pad(x, (2, 1), (0, 3)), 8, 3, 1, VALID)
    x = sketch.conv(sketch.pad(x, (1, 2), (0, 2)), 8, 3, 2, VALID)  # its windows do not reach all of the zeros
    padded = sketch.pad(x, (3, 0), (1, 0))  # read by an elementwise operator, and by a convolution
    x = sketch.binary("MUL", padded, sketch.conv(padded, 8, 3))
    places = sketch.constant(sketch.rng.standard_normal(sketch.shape(x)).astype(np.float32))
    content = sketch.classify(sketch.binary("MUL", x, places))
    rewritten = rewrite_exact(content)
    assert [applied.rewrite for applied in rewritten.applied] == ["rotation"]
    assert draw.measure(content, rewritten.content) <= NOISE


def test_zeros_that_no_window_reads(draw):
    """Mirrored, the windows lie as before, but the zeros behind them would move in front."""
    sketch = draw.Sketch()
    x = sketch.pad(downsample(sketch, kernels=(3,)), (1, 2), (1, 2))  # 4 -> 7 pixels
    content = sketch.classify(sketch.conv(x, 8, 3, 3, VALID))  # reads 6 of them
    rewritten = rewrite_exact(content)
    assert [applied.rewrite for applied in rewritten.applied] == ["rotation"]
    assert draw.measure(content, rewritten.content) <= NOISE


def test_poolings_are_mirrored_where_they_cover_the_image_evenly(draw):
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.pool(downsample(sketch, kernels=(3,)), "MAX_POOL_2D", 2, 2, VALID)
    check(draw, sketch.classify(sketch.pool(x, "AVERAGE_POOL_2D", 3, 1, SAME)), "rotation")


def test_poolings_have_no_padding_to_move(draw):
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.pool(downsample(sketch, kernels=(3,)), "MAX_POOL_2D", 3, 2, SAME)
    check_refused(sketch.classify(x), "max_pool_2d_4", "lie 0 before and 1 after the image")


def test_what_is_flattened_is_turned_back(draw):
    sketch = draw.Sketch()
    x = downsample(sketch, kernels=(3,))
    batch, height, width, channels = sketch.shape(x)
    content = sketch.finish(sketch.dense(sketch.reshape(x, batch, height * width * channels), 5), x)
    rewritten = check(draw, content, "rotation")
    assert rewritten.applied[0].statement.endswith("It is turned back in front of 2 operators.")
    assert draw.count(rewritten.content, "REVERSE_V2") == 3


def test_one_pixel_need_not_be_turned_back(draw):
    sketch = draw.Sketch()
    x = sketch.pool(downsample(sketch, kernels=(3,)), "MAX_POOL_2D", 4, 4, VALID)
    rewritten = check(draw, sketch.finish(sketch.dense(sketch.reshape(x, 1, 8), 5)), "rotation")
    assert draw.count(rewritten.content, "REVERSE_V2") == 1


def test_squeeze_and_excitation_does_not_see_the_mirror(draw):
    sketch = draw.Sketch(1, 32, 32, 3)
    x = downsample(sketch)
    x = sketch.binary("MUL", x, sketch.conv(sketch.mean(x, keep=True), 8))
    rewritten = check(draw, sketch.classify(x), "rotation")
    assert draw.count(rewritten.content, "REVERSE_V2") == 1


def test_constants_with_pixels_are_mirrored(draw):
    sketch = draw.Sketch(1, 32, 32, 3)
    x = sketch.binary("MUL", sketch.input, sketch.constant(sketch.rng.uniform(0.5, 1.5, (32, 32, 1)).astype("f4")))
    x = downsample_from(sketch, x)
    places = sketch.constant(sketch.rng.standard_normal((1, 8, 8, 8)).astype(np.float32))
    check(draw, sketch.classify(sketch.binary("ADD", x, places)), "rotation")


def test_the_image_is_turned_in_front_of_its_normalization(draw):
    """One run of XNNPACK, not two; its constants are one a channel, and channels are reversed, too."""
    sketch = draw.Sketch()
    x = sketch.binary("MUL", sketch.input, sketch.constant(np.array([0.5, 1, 2], np.float32)))
    x = sketch.binary("SUB", x, sketch.constant(np.array([[[[0.1, 0.2, 0.4]]]], np.float32)))
    rewritten = check(draw, sketch.classify(downsample_from(sketch, x)), "rotation")
    kinds = [code.builtinCode for code in flatbuffer.parse(rewritten.content).operatorCodes]
    model = flatbuffer.parse(rewritten.content)
    order = [kinds[operator.opcodeIndex] for operator in model.subgraphs[0].operators]
    code = schema.BuiltinOperator
    assert order[:5] == [code.RESHAPE, code.REVERSE_V2, code.RESHAPE, code.MUL, code.SUB]


def test_an_image_that_others_read_keeps_its_channels(draw):
    """The depthwise branch could not undo reversed channels, so pixels are turned as they are."""
    sketch = draw.Sketch()
    x = downsample(sketch, kernels=(3,))
    branch = sketch.conv(sketch.depthwise(sketch.depthwise(sketch.input, 3, 2), 3, 2), 8)
    other = sketch.reshape(sketch.input, 1, 768)  # reads the upright image
    content = sketch.finish(sketch.mean(sketch.binary("ADD", x, branch)), sketch.dense(other, 3))
    rewritten = check(draw, content, "rotation")
    assert draw.count(rewritten.content, "REVERSE_V2") == 1


def test_two_stems_on_one_image(draw):
    sketch = draw.Sketch()
    x = sketch.binary("ADD", sketch.stem(name="left"), sketch.stem(name="right"))
    rewritten = check(draw, sketch.classify(sketch.depthwise(x, 3, 2)), "rotation")
    assert draw.count(rewritten.content, "REVERSE_V2") == 1


def test_a_kernel_that_others_read_upright(draw):
    """The same weights in front of a flatten and behind it: only the mirrored reader gets the mirrored copy."""
    sketch = draw.Sketch()
    weights = sketch.weights(8, 3, 3, 8, name="shared")
    x = sketch.conv(downsample(sketch, kernels=(3,)), 8, 3, weights=weights)
    flat = sketch.reshape(x, 1, 128)
    x = sketch.conv(sketch.reshape(flat, 1, 4, 4, 8), 8, 3, weights=weights)
    content = sketch.finish(sketch.dense(sketch.reshape(x, 1, 128), 5))
    rewritten = check(draw, content, "rotation")
    names = [tensor.name for tensor in flatbuffer.parse(rewritten.content).subgraphs[0].tensors]
    assert names.count(b"shared") == 2


def test_half_precision_weights(draw):
    sketch = draw.Sketch(1, 32, 32, 3, half=True)
    rewritten = check(draw, sketch.classify(downsample(sketch)), "rotation")
    assert draw.count(rewritten.content, "DEQUANTIZE") == 0  # all of constants, which the graph of operators leaves out


@pytest.mark.parametrize("half", [True, False])
def test_resizing_by_centers_has_a_mirror_image(draw, half):
    sketch = draw.Sketch()
    x = downsample(sketch, kernels=(3,))
    options = schema.ResizeBilinearOptionsT(halfPixelCenters=half)
    size = sketch.constant(np.array([7, 9], np.int32))
    content = sketch.classify(sketch.add("RESIZE_BILINEAR", [x, size], (1, 7, 9, 8), options, name="resize"))
    if half:
        check(draw, content, "rotation")
    else:
        check_refused(content, "resize", "RESIZE_BILINEAR samples from a corner")


def test_mirrored_images_do_not_mix_with_others(draw):
    sketch = draw.Sketch()
    x = downsample(sketch, kernels=(3,))
    folded = sketch.reshape(sketch.reshape(x, 1, 128), 1, 4, 4, 8)  # turned back
    check_refused(sketch.classify(sketch.binary("ADD", x, folded, name="both")), "both", "ADD mixes the mirrored image")


def test_nothing_is_done_to_a_network_that_cannot_be_turned(draw):
    sketch = draw.Sketch()
    x = sketch.binary("MUL", downsample(sketch), sketch.constant(np.float32(0.5)))
    check_refused(sketch.classify(sketch.conv(x, 8, 1, 2, name="every_other")), "every_other")


def test_operators_without_a_known_mirror_image(draw):
    sketch = draw.Sketch()
    x = downsample(sketch, kernels=(3,))
    x = sketch.add("DEPTH_TO_SPACE", [x], (1, 8, 8, 2), schema.DepthToSpaceOptionsT(blockSize=2), name="unfold")
    check_refused(sketch.finish(x), "unfold", "no mirror image of DEPTH_TO_SPACE is known")


def test_spatial_kernels_that_are_stored_sparse_are_turned_and_stored_dense(draw):
    sketch = draw.Sketch()
    kernel = sketch.rng.standard_normal((64, 3, 3, 8)) * (sketch.rng.random((64, 3, 3, 8)) > 0.9)
    x = sketch.conv(downsample(sketch, (3,)), 64, 3, weights=sketch.constant(kernel.astype(np.float32)), name="pruned")
    content = store_sparse(sketch.classify(x))
    assert any(stored.storage == "sparse" for stored in list_tensors(content))
    rewritten = check(draw, content, "rotation")
    assert all(stored.storage == "dense" for stored in list_tensors(rewritten.content))


def test_pointwise_kernels_may_be_stored_sparse(draw):
    sketch = draw.Sketch()
    kernel = sketch.rng.standard_normal((256, 1, 1, 8)) * (sketch.rng.random((256, 1, 1, 8)) > 0.9)
    x = sketch.conv(downsample(sketch, (3,)), 256, weights=sketch.constant(kernel.astype(np.float32), "pruned"))
    content = store_sparse(sketch.classify(x))
    rewritten = check(draw, content, "rotation")
    assert [stored.name for stored in list_tensors(rewritten.content) if stored.storage == "sparse"] == ["pruned"]


def test_the_contract_of_the_file_stays(draw):
    sketch = draw.Sketch()
    content = sketch.classify(downsample(sketch))
    old, new = (flatbuffer.parse(each).subgraphs[0] for each in (content, rewrite_exact(content).content))
    for before, after in zip([*old.inputs, *old.outputs], [*new.inputs, *new.outputs], strict=True):
        ours, theirs = new.tensors[after], old.tensors[before]
        assert (ours.name, list(ours.shape), ours.type) == (theirs.name, list(theirs.shape), theirs.type)
    kept = {bytes(tensor.name) for tensor in new.tensors}
    assert {bytes(tensor.name) for tensor in old.tensors} <= kept, "weights are found by their names"


def test_rewriting_twice_changes_nothing_more(draw):
    sketch = draw.Sketch()
    once = rewrite_exact(sketch.classify(downsample(sketch)))
    twice = rewrite_exact(once.content)
    assert once.applied and twice.content is once.content and twice.applied == twice.refused == ()
