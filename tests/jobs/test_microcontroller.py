import dataclasses

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.bitmap_storage import store_bitmaps
from reflow_tf.export.slimming import slim
from reflow_tf.export.tflite import ExportedFile
from reflow_tf.jobs.microcontroller import Files, measure_cortex_m, measure_ethos_u, measure_tflm
from reflow_tf.runtimes.tflm.arena import find_arena


def as_export(content, dense):
    return ExportedFile(content, dense, 0, (), ())


@pytest.fixture(scope="module")
def measured(int8_file):
    content, inputs = int8_file
    stored = store_bitmaps(slim(content))
    return measure_tflm(Files(as_export(stored, content), as_export(content, content), inputs)), stored


def test_flash_and_ram_are_those_of_the_two_files(measured, int8_file):
    footprint, stored = measured
    assert (footprint.flash_bytes, footprint.dense_flash_bytes) == (len(stored), len(int8_file[0]))
    assert footprint.arena_bytes == find_arena(stored) > footprint.dense_arena_bytes == find_arena(int8_file[0])
    assert footprint.decode_bytes == 48 * 64  # the filter of conv_2, the larger of the two that are expanded
    assert footprint.arena_beside_bytes < footprint.arena_bytes


def test_what_takes_most_is_named_by_its_layer(measured):
    footprint, _ = measured
    assert footprint.flash_largest[0].name == "conv_2/weights"
    assert footprint.flash_largest[0].size_bytes == pytest.approx(48 * 64 / 8 + 16 + 0.2 * 48 * 64, abs=2)
    sizes = {part.name: part.size_bytes for part in footprint.ram_largest}
    assert sizes["conv_2"] == 8 * 8 * 48 + 8 * 8 * 64 + 48 * 64  # input, output, filter
    assert [*sizes.values()] == sorted(sizes.values(), reverse=True)


def test_outputs_are_counted_that_are_equal(measured, int8_file):
    footprint, stored = measured
    assert (footprint.num_compared, footprint.num_equal) == (128, 128)
    content, inputs = int8_file
    model = flatbuffer.parse(content)
    bias = model.subgraphs[0].tensors[model.subgraphs[0].operators[-2].inputs[2]]
    values = np.frombuffer(model.buffers[bias.buffer].data, np.int32)
    model.buffers[bias.buffer].data = (values + 200).view(np.uint8)
    other = measure_tflm(Files(as_export(stored, flatbuffer.serialize(model)), as_export(content, content), inputs))
    assert other.num_equal < 128


def test_a_file_without_bitmaps_needs_no_memory_for_them(int8_file):
    content, inputs = int8_file
    plain = as_export(content, content)
    footprint = measure_tflm(Files(plain, plain, inputs[:2]))
    assert (footprint.arena_beside_bytes, footprint.decode_bytes) == (None, 0)
    assert dataclasses.asdict(footprint)["num_equal"] == 2


@pytest.mark.usefixtures("cortex_m")
def test_c_is_counted_on_every_board_and_compared_with_the_reference(int8_file):
    content, inputs = int8_file
    model = flatbuffer.parse(content)
    for tensor in model.subgraphs[0].tensors:  # the unpruned network: no zeros
        buffer = model.buffers[tensor.buffer]
        if tensor.type == schema.TensorType.INT8 and buffer.data is not None:
            buffer.data = np.where(buffer.data == 0, 1, buffer.data).astype(np.uint8)
    files = Files(as_export(content, content), as_export(flatbuffer.serialize(model), content), inputs[:5])
    footprint = measure_cortex_m(files, ("m4", "m3"))
    assert (footprint.num_compared, footprint.num_equal, footprint.estimated) == (5, 5, False)
    assert list(footprint.instructions) == ["m4", "m3"]
    for work in footprint.instructions.values():
        assert 0 < work.file < work.dense
    assert footprint.flash_bytes < footprint.dense_flash_bytes
    assert footprint.flash_largest[0].name == "conv_2"
    assert "cortex-m4" in footprint.runtime


def test_vela_estimates_and_says_so(int8_file):
    content, inputs = int8_file
    plain = as_export(content, content)
    footprint = measure_ethos_u(Files(plain, plain, inputs), "ethos-u55-128")
    assert footprint.estimated and "estimate of Vela" in footprint.runtime and footprint.num_compared == 0
    assert footprint.npu_cycles.file == footprint.npu_cycles.dense > 0
    assert footprint.flash_bytes == footprint.dense_flash_bytes > 0
