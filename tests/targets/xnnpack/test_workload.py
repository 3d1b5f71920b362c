"""Which kernel XNNPACK takes, how often its loops go round, and how much of a network's work that is."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reflow_tf.export.operators import read_operators
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.targets.operators import Blocks, Value, find_blocks
from reflow_tf.targets.xnnpack.costs import DEVICES
from reflow_tf.targets.xnnpack.workload import (
    SparseTile,
    choose_rows,
    count_channels_first,
    count_dense,
    count_macs,
    count_sparse,
)

ARM, BROWSER = DEVICES["arm"].tiles, DEVICES["browser"].tiles


def weigh(kept):
    """The weights of a 1x1 convolution of which these are not zero."""
    kept = np.asarray(kept, bool)
    shape = (kept.shape[0], 1, 1, kept.shape[1])
    zeros = int(np.count_nonzero(~kept))
    return Value(0, "weights", shape, "float32", constant=True, num_zeros=zeros, blocks=find_blocks(kept))


def choose_as_xnnpack(kept):
    """`xnn_analyze_f32_spmm_w` and `create_spmm_path`, line by line."""
    outputs, inputs = kept.shape
    nonzeros = blocks2 = blocks4 = 0
    for row in range(0, outputs // 4 * 4, 4):
        for column in range(inputs):
            a, b, c, d = (bool(kept[row + i, column]) for i in range(4))
            nonzeros += a + b + c + d
            blocks2 += (a or b) + (c or d)
            blocks4 += a or b or c or d
    in4 = nonzeros
    for row in range(outputs // 4 * 4, outputs // 2 * 2, 2):
        for column in range(inputs):
            a, b = bool(kept[row, column]), bool(kept[row + 1, column])
            nonzeros += a + b
            blocks2 += a or b
    in2 = nonzeros
    if in4 * 5 >= blocks4 * 18:
        return 4
    return 2 if in2 * 5 >= blocks2 * 9 else 1


@given(arrays.arrays(bool, st.tuples(st.integers(1, 11), st.integers(1, 6)), elements=st.booleans()), st.booleans())
def test_rows_are_chosen_as_xnnpack_chooses_them(kept, doubled):
    kept = np.repeat(kept, 2, axis=0) if doubled else kept
    assert choose_rows(weigh(kept)) == choose_as_xnnpack(kept)


def test_blocks_are_counted_and_the_last_channels_fill_none():
    kept = np.zeros((7, 3), bool)
    kept[0, 0] = kept[1, 0] = kept[5, 2] = kept[6, 1] = True
    assert find_blocks(kept) == (Blocks(2, 2, 3), Blocks(4, 1, 2))
    assert count_sparse(32, weigh(kept), ARM)["sparse1_whole"] == 4


def test_blocks_are_read_from_a_file_however_it_stores_them(network):
    def blocks(half, store):
        net = network(half=half, half_bias=half, zeros=0.8)
        graph = read_operators(store(net.file(net.mean(net.conv(net.stem(), 40)))))
        (product,) = (op for op in graph.operators if op.kind == "CONV_2D" and op.index > 1)
        return graph.values[product.inputs[1]].blocks

    plain = blocks(False, bytes)
    assert [block.rows for block in plain] == [2, 4] and plain[0].num_nonzeros == round(0.2 * 32 * 40)
    assert plain == blocks(False, store_sparse) == blocks(True, store_sparse)


def test_nothing_else_has_blocks(network):
    net = network()
    graph = read_operators(net.file(net.mean(net.body())))
    shapes = {value.shape for value in graph.values if value.blocks}
    assert shapes == {(64, 1, 1, 32), (64, 1, 1, 64)}


@pytest.mark.parametrize(
    ("pixels", "expected"), [(32, (1, 0, 0)), (49, (1, 2, 5)), (1, (0, 1, 1)), (12544, (392, 0, 0)), (196, (6, 1, 1))]
)
def test_a_map_is_cut_into_tiles_and_halves_of_them(pixels, expected):
    assert SparseTile(32, 4).split(pixels) == expected


@given(st.integers(1, 5000))
def test_the_halves_hold_what_the_tiles_leave(pixels):
    whole, halves, registers = SparseTile(8, 1).split(pixels)
    assert whole * 8 + registers == pixels and halves <= 3


def test_sparse_kernels_walk_the_non_zeros_and_the_rows():
    kept = np.zeros((6, 10), bool)
    kept[[0, 1, 4, 5], 3] = True  # two full blocks of 2, and none of 4: two rows at a time
    work = count_sparse(64 + 4, weigh(kept), ARM)
    assert work == {
        **{"sparse2_whole": 2 * 2, "sparse2_pass": 2, "sparse2_vector": 2},
        **{"sparse2_row_whole": 3 * 2, "sparse2_row_pass": 3, "sparse2_row_vector": 3},
    }
    kept[0, 3] = False
    assert count_sparse(32, weigh(kept), ARM) == {"sparse1_whole": 3, "sparse1_row_whole": 6} | dict.fromkeys(
        ("sparse1_pass", "sparse1_vector", "sparse1_row_pass", "sparse1_row_vector"), 0
    )


def find_product(net, x, filters):
    graph = read_operators(net.file(net.conv(x, filters)))
    return graph, graph.operators[-1]


@pytest.mark.parametrize(
    ("filters", "kind", "amount"),
    [
        (64, "product", 11 * 8 * 32),  # of 64 pixels by 6, 64 outputs by 8
        (63, "product", 11 * 8 * 32),  # two at a time would waste one, too
        (62, "narrow", 16 * 31 * 32),  # by 4 and by 2: 8 at a time would waste two
        (790, "product", 11 * 99 * 32),  # less than 1 %
        (6, "narrow", 16 * 3 * 32),
    ],
)
def test_a_dense_product_goes_by_tiles(network, filters, kind, amount):
    net = network((1, 16, 16, 3))
    assert count_dense(*find_product(net, net.stem(), filters), ARM)[kind] == amount


def test_a_product_of_one_pixel_has_a_kernel_of_its_own(network):
    net = network((1, 16, 16, 3))
    work = count_dense(*find_product(net, net.mean(net.stem(), True), 24), ARM)
    assert work == {"operator": 1, "vector": 3 * 32, "vector_tile": 3}


def test_layers_channels_first_go_by_bands_of_rows(network):
    net = network((1, 28, 28, 3))
    graph = read_operators(net.file(net.mean(net.block(net.stem(), kernel=3))))
    stem, depthwise, _, mean = (op for op in graph.operators if op.kind != "PAD")
    assert count_channels_first(graph, stem, ARM, False) == {"operator": 1, "stem": 7 * 7 * 8}
    assert count_channels_first(graph, depthwise, ARM, False)["depthwise3s1"] == 32 * 5 * 4
    assert count_channels_first(graph, depthwise, BROWSER, False)["depthwise3s1_band"] == 32 * 7
    assert count_channels_first(graph, mean, ARM, False)["mean_first"] == 14 * 14 * 64 // 4


def test_padding_that_a_convolution_takes_in_is_no_work(network):
    net = network()
    graph = read_operators(net.file(net.mean(net.body())))
    (pad,) = (op for op in graph.operators if op.kind == "PAD")
    assert not count_dense(graph, pad, ARM)
    alone = dataclasses.replace(graph, operators=(pad,))
    assert count_dense(alone, pad, ARM)["binary"] == 34 * 34 * 3 / 4


def test_multiplications_are_counted(network):
    net = network(shape=(1, 8, 8, 3))
    graph = read_operators(net.file(net.dense(net.mean(net.conv(net.stem(), 64)), 10)))
    conv, pointwise, dense = (op for op in graph.operators if op.kind in ("CONV_2D", "FULLY_CONNECTED"))
    assert count_macs(graph, conv) == 4 * 4 * 32 * 27
    assert count_macs(graph, pointwise) == 4 * 4 * 64 * 32
    assert count_macs(graph, dense) == 640


def test_deep_maps_come_from_a_further_cache():
    near, far = (count_sparse(64, weigh(np.eye(8, depth, dtype=bool)), ARM) for depth in (256, 257))
    assert "sparse1_far" not in near and far["sparse1_far"] == far["sparse1_whole"] == 16
