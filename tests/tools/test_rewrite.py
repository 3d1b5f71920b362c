"""Finished files: their zeros stored, their graphs rewritten, their outputs what they were."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.export.equivalence import compute_same, relative_difference
from reflow_tf.export.half_precision import allow_float16, allows_float16
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite
from reflow_tf.targets.xnnpack import XNNPack
from reflow_tf.tools import prune, rewrite


def build(share):
    """A network as Keras pads it, with so many of its 1x1 weights zero."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, 2, padding="same", activation="relu", name="stem")(image)
    x = layers.Conv2D(96, 1, activation="relu", name="wide")(layers.DepthwiseConv2D(3, padding="same")(x))
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D(name="pool")(x)))
    kernel = model.get_layer("wide").kernel
    kernel.assign(kernel * (np.random.default_rng(0).random(kernel.shape) >= share))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that somebody else converted: dense storage, no rewriting."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("files")
    model = build(0.9)
    (folder / "stock.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    (folder / "dense.tflite").write_bytes(export_tflite(build(0.0), storage="dense").content)
    images = [np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)]
    (folder / "int8.tflite").write_bytes(
        export_tflite(model, quantize="int8", calibration=images, storage="dense").content
    )
    half = export_tflite(model, quantize="float16", storage="dense", float16_arithmetic=False).content
    (folder / "half.tflite").write_bytes(allow_float16(half))
    (folder / "bad.tflite").write_bytes(b"hello, hello")
    build(0.9).save(folder / "model.keras")
    return folder


def test_a_stock_file_runs_sparse_and_computes_the_same(command, folder, tmp_path):
    outcome = command(rewrite, model=folder / "stock.tflite", output=tmp_path / "new.tflite")
    assert outcome.code == 0, outcome.err
    given, found = (path.read_bytes() for path in (folder / "stock.tflite", tmp_path / "new.tflite"))
    assert not XNNPack().judge(read_operators(export_tflite(build(0.9), storage="dense").content)).eligible
    assert XNNPack().judge(read_operators(found)).eligible
    assert len(found) < len(given) and f"{len(given):,} -> {len(found):,} bytes" in outcome.out
    assert relative_difference(export_tflite(build(0.9), storage="dense").content, found) < 1e-4
    assert "1 of " in outcome.out and "runs this file sparse" in " ".join(outcome.out.split())
    assert max(map(len, outcome.out.splitlines()[:-1])) <= 100


def test_bitmaps_for_tflm(command, folder, tmp_path):
    outcome = command(rewrite, model=folder / "int8.tflite", output=tmp_path / "new.tflite", target="tflm")
    assert outcome.code == 0, outcome.err
    from reflow_tf.runtimes.tflm.runtime import TFLM

    x = np.random.default_rng(1).normal(size=(4, 32, 32, 3)).astype(np.float32)
    outputs = [TFLM((folder / "int8.tflite").read_bytes()).run(x), TFLM((tmp_path / "new.tflite").read_bytes()).run(x)]
    np.testing.assert_array_equal(*outputs)
    assert (tmp_path / "new.tflite").stat().st_size < (folder / "int8.tflite").stat().st_size


def test_zeros_for_a_smaller_file_alone(command, folder, tmp_path):
    outcome = command(rewrite, model=folder / "stock.tflite", output=tmp_path / "new.tflite", target="storage")
    assert outcome.code == 0 and "  + " not in outcome.out
    assert relative_difference((tmp_path / "new.tflite").read_bytes(), export_tflite(build(0.9)).content) < 1e-4


def test_nothing_to_gain_is_exit_code_3(command, folder, tmp_path):
    outcome = command(rewrite, model=folder / "dense.tflite", output=tmp_path / "new.tflite", target="storage")
    assert outcome.code == 3 and "0 of " in outcome.out
    assert compute_same((folder / "dense.tflite").read_bytes(), (tmp_path / "new.tflite").read_bytes())


def test_sparse_weights_never_go_with_float16_arithmetic(command, folder, tmp_path):
    outcome = command(rewrite, model=folder / "half.tflite", output=tmp_path / "new.tflite", target="storage")
    assert outcome.code == 3 and "allows float16 arithmetic" in " ".join(outcome.out.split())
    assert (tmp_path / "new.tflite").read_bytes() == (folder / "half.tflite").read_bytes()


def test_float16_arithmetic_is_allowed_and_no_constant_is_changed(command, folder, tmp_path):
    given = {"model": folder / "dense.tflite", "float16_arithmetic": True}
    outcome = command(rewrite, **given, output=tmp_path / "new.tflite")
    assert outcome.code == 0 and "compute the file in it" in outcome.out
    content = (tmp_path / "new.tflite").read_bytes()
    assert allows_float16(content) and compute_same((folder / "dense.tflite").read_bytes(), content)
    again = command(rewrite, **given | {"model": tmp_path / "new.tflite"}, output=tmp_path / "again.tflite")
    assert again.code == 3 and (tmp_path / "again.tflite").read_bytes() == content
    command(rewrite, model=folder / "stock.tflite", output=tmp_path / "sparse.tflite")
    refused = command(rewrite, **given | {"model": tmp_path / "sparse.tflite"}, output=tmp_path / "none.tflite")
    assert refused.code == 2 and "float16 arithmetic needs a file without sparse tensors" in refused.error
    assert not (tmp_path / "none.tflite").exists()


def test_it_is_done_once(command, folder, tmp_path):
    command(rewrite, model=folder / "stock.tflite", output=tmp_path / "once.tflite")
    command(rewrite, model=tmp_path / "once.tflite", output=tmp_path / "twice.tflite")
    once, twice = (tmp_path / f"{name}.tflite" for name in ("once", "twice"))
    assert compute_same(once.read_bytes(), twice.read_bytes()) and twice.stat().st_size == once.stat().st_size


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("bad.tflite", {}, "Received: "),
        ("gone.tflite", {}, "Received: "),
        ("model.keras", {}, "--model must be a .tflite file; for what Keras saved, prune --sparsity=existing"),
        ("stock.tflite", {"target": "tflm"}, "--target=tflm needs a file that it runs, and that has zeros enough"),
        ("stock.tflite", {"target": "cpu"}, "target must be one of xnnpack, storage, tflm"),
        ("stock.tflite", {"target": "storage", "device": "arm"}, "Received: "),
        ("stock.tflite", {"ballast": "some"}, "ballast must be one of"),
        ("bad.tflite", {"float16_arithmetic": True}, "Received: "),
        ("int8.tflite", {"float16_arithmetic": True}, "float16 arithmetic needs a file with float weights. Received: "),
        (
            "dense.tflite",
            {"float16_arithmetic": True, "target": "storage"},
            "--float16_arithmetic changes nothing else",
        ),
    ],
)
def test_bad_input_writes_nothing(command, folder, tmp_path, left, name, flags, message):
    outcome = command(rewrite, model=folder / name, output=tmp_path / "new.tflite", **flags)
    assert outcome.code == 2 and message in outcome.error
    assert left() == {}


def test_files_that_are_there_stay(command, folder, tmp_path):
    (tmp_path / "new.tflite").write_bytes(b"years of work")
    given = {"model": folder / "stock.tflite", "output": tmp_path / "new.tflite"}
    assert command(rewrite, **given).code == 2
    assert (tmp_path / "new.tflite").read_bytes() == b"years of work"
    assert command(rewrite, **given, overwrite=True).code == 0
    before = (folder / "stock.tflite").read_bytes()
    assert command(rewrite, model=folder / "stock.tflite", output=folder / "stock.tflite", overwrite=True).code == 2
    assert (folder / "stock.tflite").read_bytes() == before


def test_what_prunes_says_what_takes_such_files(command, folder, tmp_path):
    outcome = command(prune, model=folder / "stock.tflite", data=tmp_path)
    assert outcome.code == 2
    assert "explain, evaluate, benchmark, frontier, device_kit, firmware and rewrite take it" in outcome.error
