"""The arena: nothing that is needed at the same time shares memory."""

import itertools

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.export.c_kernels.arena import ALIGNMENT, Buffer, Overlaps, plan_arena
from reflow_tf.export.c_kernels.generation import generate_c

BUFFERS = st.dictionaries(
    st.text("abc", min_size=1),
    st.builds(
        lambda size, first, length: Buffer(size, first, first + length),
        st.integers(1, 100),
        st.integers(0, 9),
        st.integers(0, 4),
    ),
    max_size=12,
)


@given(BUFFERS)
def test_buffers_that_meet_do_not_overlap(buffers):
    plan = plan_arena(buffers)
    assert set(plan.offsets) == set(buffers)
    for one, other in itertools.combinations(buffers, 2):
        if buffers[one].meets(buffers[other]):
            ends = [plan.offsets[name] + buffers[name].size_bytes for name in (one, other)]
            assert ends[0] <= plan.offsets[other] or ends[1] <= plan.offsets[one]
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
    assert all(plan.offsets[name] + buffer.size_bytes <= plan.size_bytes for name, buffer in buffers.items())


@given(BUFFERS)
def test_an_arena_is_no_larger_than_all_its_buffers_side_by_side(buffers):
    rounded = [-(-buffer.size_bytes // ALIGNMENT) * ALIGNMENT for buffer in buffers.values()]
    assert plan_arena(buffers).size_bytes <= sum(rounded)


@given(BUFFERS, st.data())
def test_what_may_overlap_does_so_only_as_it_may(buffers, data):
    pairs = itertools.permutations(buffers, 2)
    handing = [(one, other) for one, other in pairs if buffers[one].first == buffers[other].last]
    chosen = st.sampled_from(handing) if handing else st.nothing()
    overlaps = Overlaps(data.draw(st.dictionaries(chosen, st.integers(-20, 120))), data.draw(st.lists(chosen)))
    plan = plan_arena(buffers, overlaps)
    begins = plan.offsets
    for one, other in itertools.combinations(buffers, 2):
        ends = [begins[name] + buffers[name].size_bytes for name in (one, other)]
        if buffers[one].meets(buffers[other]) and ends[0] > begins[other] and ends[1] > begins[one]:
            assert any(
                (pair in overlaps.leads and begins[pair[0]] + overlaps.leads[pair] <= begins[pair[1]])
                or (pair in overlaps.same and begins[pair[0]] == begins[pair[1]])
                for pair in ((one, other), (other, one))
            )
    assert all(offset % ALIGNMENT == 0 for offset in begins.values())
    assert all(begins[name] + buffer.size_bytes <= plan.size_bytes for name, buffer in buffers.items())


def test_a_residual_block_takes_two_tensors_rather_than_three():
    """x is added behind the second convolution, which writes over what it read, a row and a pixel behind."""
    buffers = {"x": Buffer(800, 0, 2), "hidden": Buffer(800, 1, 2), "result": Buffer(800, 2, 3)}
    assert plan_arena(buffers).size_bytes == 2400
    plan = plan_arena(buffers, Overlaps({("result", "hidden"): 100}))
    assert plan.offsets == {"result": 0, "hidden": 104, "x": 904}
    assert plan.size_bytes == 1704


def test_a_smaller_output_in_the_place_of_its_input_leaves_the_rest_free():
    buffers = {"input": Buffer(400, 0, 1), "output": Buffer(100, 1, 2), "next": Buffer(200, 2, 3)}
    assert plan_arena(buffers, Overlaps(same=[("output", "input")])).size_bytes == 400


def test_a_later_buffer_takes_the_place_of_one_that_is_done():
    plan = plan_arena({"first": Buffer(80, 0, 1), "second": Buffer(40, 1, 2), "third": Buffer(64, 2, 3)})
    assert plan.offsets == {"first": 0, "third": 0, "second": 80}
    assert plan.size_bytes == 120


def draw_relus(drawing, added):
    """Three ReLUs one after the other, and the sum of two of their outputs."""
    tensors = [drawing.activation((1, 4, 4, 8), 0.05, 0)]
    for _ in range(3):
        tensors.append(drawing.operator("RELU", tensors[-1:], drawing.activation((1, 4, 4, 8), 0.05, 0), version=2))
    output = drawing.activation((1, 4, 4, 8), 0.1, 0)
    drawing.operator("ADD", [tensors[index] for index in added], output, schema.AddOptionsT(), version=2)
    return drawing.finish(tensors[0], output)


def test_what_nobody_reads_again_is_written_over(drawing, compare):
    sources, _ = compare(draw_relus(drawing, (3, 3)))
    assert sources.arena_bytes == 128


def test_what_is_read_again_is_kept(drawing, compare):
    sources, _ = compare(draw_relus(drawing, (1, 3)))
    assert sources.arena_bytes == 256


def test_the_input_is_never_written(drawing):
    """It is the caller's, and constant: the first ReLU writes to the arena, not over it."""
    content = draw_relus(drawing, (0, 3))
    assert "reflow_relu(&layer_0_tensor1, input, AT(0))" in generate_c(content).files["model.c"]


def test_depthwise_convolutions_work_in_place(drawing, compare):
    source = drawing.activation((1, 6, 6, 4), 0.05, 0)
    relu = drawing.operator("RELU", [source], drawing.activation((1, 6, 6, 4), 0.05, 0), version=2)
    options = schema.DepthwiseConv2DOptionsT(
        strideH=1, strideW=1, depthMultiplier=1, dilationHFactor=1, dilationWFactor=1
    )
    values = np.random.default_rng(0).integers(-127, 128, (1, 3, 3, 4)).astype(np.int8)
    result = drawing.activation((1, 6, 6, 4), 0.5, 0)
    drawing.weighted("DEPTHWISE_CONV_2D", relu, values, np.zeros(4, np.int64), result, options)
    output = drawing.operator("RELU", [result], drawing.activation((1, 6, 6, 4), 0.5, 0), version=2)
    sources, _ = compare(drawing.finish(source, output))
    plane = 8 * 10 * 2  # of one channel with its padding, as int16
    assert sources.arena_bytes == 144 + plane
