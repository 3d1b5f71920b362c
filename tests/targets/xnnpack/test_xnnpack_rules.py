"""The rules against what was seen in the runtimes; the words in which they are told."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflow_tf.errors import InputError
from reflow_tf.export.operators import read_operators
from reflow_tf.targets.operators import OperatorGraph
from reflow_tf.targets.xnnpack import XNNPack
from reflow_tf.targets.xnnpack.judgement import judge_version
from reflow_tf.targets.xnnpack.versions import LITERT_1_4, NEWEST, TFLITE_2_14, VERSIONS, find_version

EXACT = "--rewrite=exact does it without changing the outputs"


@pytest.fixture(scope="session")
def graphs(files):
    """name -> the graph of the file."""
    return {name: read_operators(case.content) for name, case in files.items()}


def letter(judgement):
    if judgement.corrupts:
        return "W"
    return "S" if judgement.eligible else "D"


def test_every_file_is_judged_as_every_runtime_was_seen_to_run_it(files, graphs):
    judged = {
        name: "".join(letter(judge_version(graph, version)) for version in VERSIONS) for name, graph in graphs.items()
    }
    assert judged == {name: case.seen for name, case in files.items()}
    assert len(files) > 50


def test_what_runs_dense_has_a_blocker_and_what_runs_sparse_alone_has_none(files, graphs):
    for name, graph in graphs.items():
        for version, seen in zip(VERSIONS, files[name].seen, strict=True):
            verdict = XNNPack().judge(graph, version=version)
            assert verdict.eligible == (seen == "S"), (name, version.name)
            assert (version.name in verdict.corrupted_by) == (seen == "W"), (name, version.name)
            if seen != "S" or "one blocked" in name:
                assert verdict.blockers, (name, version.name)
            else:
                assert verdict.blockers == (), (name, version.name)
            assert all(blocker.reason and blocker.remedy for blocker in verdict.blockers)


@pytest.mark.parametrize(
    ("name", "kind", "reason", "remedy"),
    [
        ("stem SAME", "CONV_2D", "padding (0,1,0,1); needs 1 on every side", EXACT),
        ("stem padded (0,1)", "CONV_2D", "padding (0,1,0,1); needs 1 on every side", EXACT),
        ("stem SAME, odd", "CONV_2D", "padding SAME, which XNNPACK does not read as 1 on every side", EXACT),
        ("stem of 4 channels", "CONV_2D", "reads 4 channels; needs 3", "begin the network"),
        (
            "stem with stride 1",
            "CONV_2D",
            "stride 1; the convolution that begins a cluster needs 2",
            "begin the network",
        ),
        ("stem 5x5", "CONV_2D", "5x5 kernel; the convolution that begins a cluster needs 3x3", "begin the network"),
        (
            "stem, then SAME, stride 2",
            "DEPTHWISE_CONV_2D",
            "padding (0,1,0,1); needs 1 on every side",
            "as conv_2d_1 already",
        ),
        ("depthwise 7x7", "DEPTHWISE_CONV_2D", "7x7 depthwise convolution; needs 3x3 or 5x5", "change the layer"),
        ("depthwise x 2", "DEPTHWISE_CONV_2D", "depth multiplier 2; needs 1", "copies each channel 2 times"),
        ("depthwise dilated", "DEPTHWISE_CONV_2D", "dilation (2, 2); needs 1", "no remedy"),
        ("subtract", "SUB", "SUB is never part of a cluster", "an ADD of the NEG"),
        ("times a scalar", "MUL", "constant of rank 0 as the second input; needs rank 4", EXACT),
        ("times a scalar of rank 4", "MUL", "constant of rank 4 as the second input; needs rank 4, and", EXACT),
        ("concatenate", "CONCATENATION", "CONCATENATION is never part of a cluster", "no remedy in this runtime"),
        ("not delegated", "SIGN", "the delegate does not take SIGN", "no remedy"),
        ("squeeze, dropped", "RESHAPE", "the MEAN must keep them", EXACT),
        ("no mean", "CONV_2D", "nothing ends the cluster", "GlobalAveragePooling2D"),
        ("average pool", "AVERAGE_POOL_2D", "ends no cluster, even of the whole image", EXACT),
        ("another output", "MAX_POOL_2D", "from outside of the cluster", "behind the cluster's end"),
        ("mean read twice", "RESHAPE", "beside conv_2d_7", "behind the cluster's end"),
        ("x plus x", "ADD", "reads one value twice", "multiply it by a constant"),
        ("padding read twice", "CONV_2D", "the PAD before it is not taken in", EXACT),
        ("float16, float32 bias", "CONV_2D", "weights in float16 and a bias in float32", "in the same type"),
        ("two clusters, one blocked", "CONV_2D", "padding (0,1,0,1)", "as conv_2d_1 already is"),
        ("chain into a 3x3", "CONV_2D", "computes wrong outputs, or refuses the file", "store it dense"),
        ("1x1 head, sparse", "MEAN", "computes wrong outputs, or refuses the file", EXACT),
        ("mean kept, softmax", "MEAN", "with dimensions that it keeps", "keepdims=False"),
        ("stem with stride 1, SAME behind", "DEPTHWISE_CONV_2D", "padding (0,1,0,1)", "other outputs: train again"),
        ("no stem, times a scalar", "MUL", "needs rank 4, and the constant first", "store it with four dimensions"),
        ("mean over height", "MEAN", "computes wrong outputs, or refuses the file", "keepdims=False"),
        (
            "stored dense",
            "",
            "stored dense: the delegate asks for sparse kernels only where",
            "export it with reflow_tf",
        ),
        ("65 % zeros", "", "3,993 of 6,144 weights are zero (65.0%); needs more than two thirds", "prune more"),
        ("dense head, kept", "", "90.0% without fully_connected_7", "keep fully_connected_7 out of the cluster"),
        ("1x1 head", "", "90.0% without conv_2d_7", "--rewrite=exact takes conv_2d_7 out of the count"),
    ],
)
def test_the_blocker_says_what_is_so_what_is_needed_and_what_helps(graphs, name, kind, reason, remedy):
    found = XNNPack().judge(graphs[name]).blockers
    matching = [blocker for blocker in found if blocker.kind == kind and reason in blocker.reason]
    assert len(matching) == 1, found
    assert remedy in matching[0].remedy


def test_equal_reasons_are_one_blocker(network):
    n = network()
    x = n.stem()
    for _ in range(5):
        x = n.depthwise(x, kernel=7)
    graph = read_operators(n.file(n.mean(n.conv(x, 8))))
    (blocker,) = [blocker for blocker in XNNPack().judge(graph).blockers if "7x7" in blocker.reason]
    assert blocker.operator == "depthwise_conv_2d_2, depthwise_conv_2d_3 and 3 more"


def _find_end(network, pool):
    """The blockers of a network that ends in an average pooling of 16x16 pixels."""
    n = network()
    blockers = XNNPack().judge(read_operators(n.file(pool(n, n.body())))).blockers
    return [blocker for blocker in blockers if "end" in blocker.reason]


def test_a_pooling_of_the_whole_map_needs_no_training(network):
    (blocker,) = _find_end(network, lambda n, x: n.reshape(n.pool(x, "AVERAGE_POOL_2D", 16), (1, 64)))
    assert (blocker.kind, blocker.remedy) == ("AVERAGE_POOL_2D", EXACT)


def test_nor_does_it_where_rewriting_leaves_the_network_alone(network):
    n = network(shape=(1, 8, 8, 3))
    blockers = (
        XNNPack().judge(read_operators(n.file(n.pool(n.block(n.conv(n.image, 32)), "AVERAGE_POOL_2D", 8)))).blockers
    )
    (blocker,) = [blocker for blocker in blockers if blocker.kind == "AVERAGE_POOL_2D"]
    assert blocker.remedy == "GlobalAveragePooling2D computes the same with the same weights"


@pytest.mark.parametrize(
    "pool",
    [
        lambda n, x: n.pool(x, "AVERAGE_POOL_2D", 16, window=15),
        lambda n, x: n.pool(x, "AVERAGE_POOL_2D", 8),
        lambda n, x: n.pool(x, "MAX_POOL_2D", 16),
        lambda n, x: n.dense(n.reshape(x, (1, 16 * 16 * 64)), 5),
    ],
)
def test_any_other_end_does(network, pool):
    (blocker,) = _find_end(network, pool)
    assert blocker.remedy == "end the convolutions with GlobalAveragePooling2D, and train again"


def test_the_would_be_cluster_reaches_from_the_stem_to_the_mean(graphs):
    (cluster,) = XNNPack().judge(graphs["stem SAME"]).clusters
    assert (cluster.operators[0], cluster.operators[-1], len(cluster.operators)) == ("conv_2d_0", "mean_5", 6)
    assert (cluster.num_weights, cluster.num_zeros) == (32 * 64 + 64 * 64, round(0.9 * 32 * 64) + round(0.9 * 64 * 64))
    assert cluster.num_zeros / cluster.num_weights == pytest.approx(0.9, abs=1e-3)
    assert not cluster.runs_sparse


def test_a_file_that_lacks_only_zeros_or_storage_fits(graphs):
    for name in ("stored dense", "65 % zeros", "plain", "1x1 head"):
        fits = XNNPack().judge(graphs[name]).fits
        assert fits == (name != "1x1 head"), name  # pruned far enough, that one would give wrong outputs
    assert not XNNPack().judge(graphs["stem SAME"]).fits


def test_a_network_without_1x1_convolutions_is_told_so(network):
    n = network()
    verdict = XNNPack().judge(read_operators(n.file(n.mean(n.depthwise(n.stem())))))
    assert not verdict.fits
    assert [blocker.reason for blocker in verdict.blockers] == [
        "no 1x1 convolution with stride 1, and nothing else has sparse kernels"
    ]


def test_versions_that_judge_differently_are_named(graphs):
    (note,) = XNNPack().judge(graphs["tanh"]).version_notes
    assert note.startswith("tflite-runtime 2.14.0 would not run it sparse: tanh_2: TANH is never part of a cluster")
    (note,) = XNNPack().judge(graphs["dense head, kept"]).version_notes
    assert note == "tflite-runtime 2.14.0 would run it sparse."
    verdict = XNNPack().judge(graphs["1x1 head, sparse"], version=TFLITE_2_14)
    assert verdict.eligible
    assert verdict.corrupted_by == (NEWEST.name, LITERT_1_4.name)
    (note,) = verdict.version_notes
    assert note.startswith("LiteRT.js 2.5.3 and ai-edge-litert 1.4.0 would compute wrong outputs")
    assert XNNPack().judge(graphs["chain into a pool"]).version_notes == ()
    assert XNNPack().judge(graphs["plain"]).version_notes == ()


def test_a_shape_that_only_some_runtimes_get_wrong(graphs):
    verdict = XNNPack().judge(graphs["mean kept"])
    assert verdict.eligible
    assert verdict.corrupted_by == (LITERT_1_4.name,)
    (note,) = verdict.version_notes
    assert note.startswith("ai-edge-litert 1.4.0 would compute wrong outputs with this file")


def test_find_version():
    assert find_version("ai-edge-litert 1.4.0") is LITERT_1_4
    with pytest.raises(InputError, match=r"tflite-runtime 2\.14\.0\. Received: LiteRT 3"):
        find_version("LiteRT 3")


def test_a_file_that_runs_dense_promises_nothing(graphs):
    for name in ("stem SAME", "stored dense", "chain into a pool"):
        assert XNNPack().judge(graphs[name]).speedups == {"browser": 1, "arm": 1}


def with_zeros(graph, share):
    values = [
        dataclasses.replace(value, num_zeros=int(share * value.num_elements))
        if value.constant and len(value.shape) > 1
        else value
        for value in graph.values
    ]
    return OperatorGraph(graph.operators, tuple(values), graph.inputs, graph.outputs)


@settings(max_examples=60)
@given(data=st.data(), share=st.floats(0, 1), more=st.floats(0, 1), version=st.sampled_from(VERSIONS))
def test_more_zeros_never_turn_sparse_into_dense(graphs, data, share, more, version):
    graph = graphs[data.draw(st.sampled_from(sorted(graphs)))]
    few, many = (judge_version(with_zeros(graph, zeros), version) for zeros in sorted((share, more)))
    assert few.fits == many.fits
    assert few.sparse <= many.sparse


@settings(max_examples=60)
@given(data=st.data(), position=st.integers(0, len(VERSIONS) - 1))
def test_an_unknown_operator_in_a_network_that_runs_sparse_never_helps(files, graphs, data, position):
    """Whatever becomes something that the delegate does not know, nothing more runs sparse than before."""
    name = data.draw(st.sampled_from([name for name, case in files.items() if case.seen[position] == "S"]))
    graph = graphs[name]
    broken = data.draw(st.integers(0, len(graph.operators) - 1))
    operators = list(graph.operators)
    operators[broken] = dataclasses.replace(operators[broken], kind="CUSTOM")
    spoiled = OperatorGraph(tuple(operators), graph.values, graph.inputs, graph.outputs)
    after, before = (judge_version(each, VERSIONS[position]) for each in (spoiled, graph))
    assert after.sparse <= before.sparse - {broken}


@pytest.mark.parametrize("position", range(1, 6))
def test_whatever_breaks_the_only_chain_makes_it_dense_and_is_blamed(graphs, position):
    graph = graphs["plain"]
    operators = list(graph.operators)
    operators[position] = dataclasses.replace(operators[position], kind="CUSTOM", name="the culprit")
    verdict = XNNPack().judge(OperatorGraph(tuple(operators), graph.values, graph.inputs, graph.outputs))
    assert not verdict.eligible
    if position == 1:
        assert "no convolution of the image comes before it" in verdict.blockers[0].reason
    else:
        assert "the culprit" in [blocker.operator for blocker in verdict.blockers] or verdict.corrupted_by


def test_weights_of_other_kinds_are_left_out_of_the_count(graphs):
    (cluster,) = XNNPack().judge(graphs["dense head"]).clusters
    assert cluster.num_weights == 32 * 64 + 64 * 64


def test_graphs_hold_no_arrays(graphs):
    for graph in graphs.values():
        assert not any(isinstance(field, np.ndarray) for value in graph.values for field in vars(value).values())


@pytest.mark.parametrize(("zeros", "eligible"), [(4096, False), (4097, True)])
def test_two_thirds_are_not_enough_and_one_weight_more_is(graphs, zeros, eligible):
    graph = graphs["plain"]
    first, second = (op.inputs[1] for op in graph.operators if op.kind == "CONV_2D" and op.name != "conv_2d_1")
    counts = {first: 2048, second: zeros - 2048}  # of 2,048 and 4,096
    values = tuple(
        dataclasses.replace(value, num_zeros=counts.get(value.index, value.num_zeros)) for value in graph.values
    )
    verdict = XNNPack().judge(OperatorGraph(graph.operators, values, graph.inputs, graph.outputs))
    assert verdict.clusters[0].num_weights == 6144
    assert verdict.eligible == eligible


def test_one_version_counts_no_negative_zeros_in_float16(graphs):
    """Seen in ai-edge-litert 1.4.0: 38 files of random networks with -0.0 in float16 ran dense there."""
    for name, expected in (("float16", {LITERT_1_4.name}), ("plain", set())):
        graph = graphs[name]
        values = tuple(dataclasses.replace(value, num_negative_zeros=value.num_zeros) for value in graph.values)
        signed = OperatorGraph(graph.operators, values, graph.inputs, graph.outputs)
        dense = {version.name for version in VERSIONS if not judge_version(signed, version).eligible}
        assert dense == expected
