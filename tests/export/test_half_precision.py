"""The mark in a file that lets CPUs compute in float16: how it is spelled, and that no sparse file ever has it."""

import keras
import numpy as np
import pytest

from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer
from reflow_tf.export.half_precision import allow_float16, allows_float16, stores_sparse
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes.litert import LiteRT


@pytest.fixture(scope="module")
def plain(settled):
    return export_tflite(settled[0], storage="dense").content


@pytest.mark.parametrize(
    "value, allowed",
    [
        (b"fp16accfp16", True),
        (b"fp16bf16accfp16", True),
        (b"bf16fp16accfp16", True),
        (b"fp16accfp32", False),
        (b"bf16accfp16", False),
        (b"accfp16", False),
        (b"fp16", False),
        (b"fp16accfp16 ", False),
        (b"", False),
    ],
)
def test_spellings_as_litert_reads_them(plain, mark, value, allowed):
    marked = mark(plain, value)
    assert allows_float16(marked) is allowed
    assert read_operators(marked).allows_float16 is allowed


def test_other_metadata_says_nothing(plain, mark):
    assert not allows_float16(mark(plain, b"fp16accfp16", b"min_runtime_version"))


def test_the_mark_changes_no_output_and_comes_once(plain, settled):
    marked = allow_float16(plain)
    assert allows_float16(marked) and not allows_float16(plain)
    assert allow_float16(marked) == marked
    images = settled[1]
    np.testing.assert_array_equal(LiteRT(marked).run(images), LiteRT(plain).run(images))


def test_one_entry_says_it(settled):
    """The converter writes one for float16 weights, too, which says that they are summed in float32."""
    plain = export_tflite(settled[0], quantize="float16", float16_arithmetic=False).content
    for content in (plain, allow_float16(plain)):
        names = [entry.name for entry in flatbuffer.parse(content).metadata]
        assert names.count(b"reduced_precision_support") == 1
    assert allows_float16(allow_float16(plain)) and not allows_float16(plain)


def test_of_several_entries_the_last_counts(plain, mark):
    assert not allows_float16(mark(mark(plain, b"fp16accfp16"), b"fp16accfp32"))
    assert allows_float16(mark(mark(plain, b"fp16accfp32"), b"fp16accfp16"))


def test_dense_float16_files_have_it_and_no_others(settled):
    dense = export_tflite(settled[0], quantize="float16")
    assert allows_float16(dense.content) and allows_float16(dense.dense_content)
    assert not allows_float16(export_tflite(settled[0]).content)
    assert not allows_float16(export_tflite(settled[0], quantize="float16", float16_arithmetic=False).content)


def test_never_beside_sparse_tensors(settled):
    model = keras.models.clone_model(settled[0])
    for layer in model.layers:
        if "conv" in layer.name:
            layer.kernel.assign(layer.kernel * (np.random.default_rng(0).random(layer.kernel.shape) > 0.95))
    sparse = export_tflite(model, quantize="float16")
    assert stores_sparse(flatbuffer.parse(sparse.content)) and not allows_float16(sparse.content)
    assert allows_float16(sparse.dense_content)
    with pytest.raises(InputError, match=r"needs a file without sparse tensors.+Received: \d+ bytes with some"):
        allow_float16(sparse.content)
