import pytest

from reflow_tf.choices import TARGETS
from reflow_tf.errors import InputError
from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.sparsity.patterns import NM, Block, Unstructured
from reflow_tf.targets.selection import select_kernels
from reflow_tf.targets.storage import Storage
from reflow_tf.targets.xnnpack import XNNPack

SPECS = (
    LayerSpec("stem/kernel", Kind.CONV, (3, 3, 3, 8), (3,), (2,)),
    LayerSpec("dw/kernel", Kind.DEPTHWISE_CONV, (3, 3, 8, 1), (2, 3), ()),
    LayerSpec("project/kernel", Kind.POINTWISE_CONV, (1, 1, 8, 8), (3,), (2,)),
    LayerSpec("head/kernel", Kind.DENSE, (8, 10), (1,), (0,)),
)


def choose(prunable="target", target=XNNPack(), pattern=Unstructured()):  # noqa: B008
    selection = select_kernels(SPECS, prunable=prunable, target=target, pattern=pattern)
    return [spec.path for spec in selection.chosen], {skip.path: skip.reason for skip in selection.skipped}


def test_xnnpack_rewards_1x1_convolutions_only():
    chosen, skipped = choose()
    assert chosen == ["project/kernel"]
    assert skipped["dw/kernel"] == "XNNPACK runs no depthwise conv sparse"


def test_storage_rewards_every_kernel():
    assert len(choose(target=Storage())[0]) == 4


def test_all_overrides_the_target():
    assert len(choose(prunable="all")[0]) == 4


def test_regular_expression_searches_paths():
    chosen, skipped = choose(prunable="^(stem|head)/")
    assert chosen == ["stem/kernel", "head/kernel"]
    assert "does not match" in skipped["dw/kernel"]


def test_n_of_m_leaves_depthwise_out():
    chosen, skipped = choose(prunable="all", pattern=NM(2, 4))
    assert "dw/kernel" not in chosen and "dw/kernel" in skipped


def test_regular_expression_that_matches_nothing_names_what_there_is():
    with pytest.raises(InputError, match=r"Received: .*--prunable=conv9 .* on a model with stem/kernel \(conv\), "):
        choose(prunable="conv9")


def refuse(specs, **changed):
    options = {
        "prunable": "target",
        "target": XNNPack(),
        "pattern": Unstructured(),
        "others": TARGETS.values(),
    } | changed
    with pytest.raises(InputError) as caught:
        select_kernels(specs, **options)
    return str(caught.value)


def test_where_the_target_rewards_no_kernel_the_refusal_says_what_does():
    assert refuse([SPECS[0], SPECS[3]]) == (
        "There must be kernels to prune. Of stem/kernel: XNNPACK runs no conv sparse. Take --target=storage, "
        "--target=tflm, --target=ethos_u, --target=cortex_m or --prunable=all. Received: --target=xnnpack, "
        "--prunable=target and --pattern=unstructured on a model with stem/kernel (conv), head/kernel (dense)"
    )


@pytest.mark.parametrize(
    ("specs", "changed", "advice"),
    [
        (SPECS, {"prunable": "conv9"}, "Take --prunable=target or --prunable=all. Received"),
        (SPECS[1:2], {"prunable": "all", "pattern": NM(2, 4)}, ". Take another pattern. Received"),
        ((), {}, "There must be kernels to prune. Received: "),
        (SPECS[:1], {"others": ()}, "sparse. Take --prunable=all. Received"),
    ],
)
def test_advice_is_what_helps(specs, changed, advice):
    assert advice in refuse(specs, **changed)


def test_bad_regular_expression():
    with pytest.raises(InputError, match=r"Received: \("):
        choose(prunable="(")


def test_blocks_of_output_channels_come_with_a_caution_where_speed_is_the_purpose():
    assert "WebAssembly" in XNNPack().caution(Block(4, 1))
    assert XNNPack(device="arm").caution(Block(4, 1)) is None, "there they are quick"
    assert XNNPack().caution(Block(1, 4)) is None
    assert XNNPack().caution(Unstructured()) is None
    assert Storage().caution(Block(4, 1)) is None
