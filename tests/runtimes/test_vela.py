import dataclasses
import importlib
import sys
import types

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.export.operators import read_operators
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes.vela.compiler import _last_words
from reflow_tf.runtimes.vela.estimate import compare, estimate
from reflow_tf.targets.ethos_u import ACCELERATORS


def build(*, sparsity=0.0, two_of_four=False, sine=False):
    """Two convolutions and a dense layer; `sine`: something between them that has no int8 form."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 8), batch_size=1)
    x = layers.Conv2D(64, 3, padding="same", activation="relu", name="spatial")(image)
    if sine:
        x = keras.ops.sin(x)
    x = layers.Conv2D(128, 1, activation="relu", name="wide")(x)
    model = keras.Model(image, layers.Dense(10, name="classes")(layers.GlobalAveragePooling2D()(x)))
    rng = np.random.default_rng(0)
    for layer in (model.get_layer(name) for name in ("spatial", "wide", "classes")):
        kernel = rng.standard_normal(layer.kernel.shape).astype(np.float32)
        if two_of_four:
            scores = rng.random(kernel.shape).reshape(*kernel.shape[:-2], -1, 4, kernel.shape[-1])
            keep = (scores.argsort(-2).argsort(-2) >= 2).reshape(kernel.shape)
        else:
            keep = rng.random(kernel.shape) >= sparsity
        layer.kernel.assign(kernel * keep)
    return model


def export(model, quantize="int8"):
    calibration = [np.random.default_rng(1).standard_normal((16, 32, 32, 8)).astype(np.float32)]
    return export_tflite(model, quantize=quantize, calibration=calibration, storage="dense").content


@pytest.fixture(scope="session")
def vela_files():
    return {
        "dense": export(build()),
        "half": export(build(sparsity=0.5)),
        "sparse": export(build(sparsity=0.9)),
        "2:4": export(build(two_of_four=True)),
        "float": export(build(), "none"),
        "mixed": export(build(sine=True)),
    }


@pytest.fixture(scope="session")
def estimates(vela_files):
    return {name: estimate(vela_files[name]) for name in ("dense", "half", "sparse", "mixed")}


def test_zeros_take_fewer_bytes(estimates):
    dense, half, sparse = (estimates[name] for name in ("dense", "half", "sparse"))
    assert dense.weight_bytes > half.weight_bytes > sparse.weight_bytes
    assert dense.flash_bytes - sparse.flash_bytes == pytest.approx(dense.weight_bytes - sparse.weight_bytes, abs=256)
    assert dense.compiled_size_bytes > sparse.compiled_size_bytes > sparse.flash_bytes
    wide = [next(layer for layer in one.layers if layer.operator == 1).weight_bytes for one in (dense, half, sparse)]
    np.testing.assert_allclose(np.array(wide) / (64 * 128), [1, 0.63, 0.15], atol=0.03)


def test_layers_add_up_to_the_whole(estimates):
    for one in estimates.values():
        for column in ("cycles", "npu_cycles", "macs", "weight_bytes"):
            assert sum(getattr(layer, column) for layer in one.layers) == getattr(one, column) > 0, column
    for name in ("dense", "half", "sparse"):  # not 'mixed', whose peak is the CPU's
        peak = max(layer.sram_bytes for layer in estimates[name].layers)
        assert 0.9 * estimates[name].sram_bytes <= peak <= estimates[name].sram_bytes


def test_layers_are_the_operators_of_the_file(vela_files, estimates):
    kinds = {"Conv2D": "CONV_2D", "FullyConnected": "FULLY_CONNECTED", "Mean": "MEAN"}
    graph = read_operators(vela_files["dense"])
    layers = estimates["dense"].layers
    assert [(one.operator, kinds[one.kind]) for one in layers] == [(one.index, one.kind) for one in graph.operators]
    assert [one.name for one in layers[:2]] == [graph.values[one.outputs[0]].name for one in graph.operators[:2]]
    spatial, wide, *_ = layers
    assert (spatial.macs, wide.macs) == (32 * 32 * 9 * 8 * 64, 32 * 32 * 64 * 128)
    # 128 multiply-accumulates a cycle are the most that an ethos-u55-128 does.
    assert spatial.macs / 128 <= spatial.npu_cycles <= spatial.cycles


def test_it_says_what_it_is_and_what_it_assumes(vela_files, estimates):
    one = estimates["dense"]
    assert one.name == (
        f"estimate of Vela {one.version} for ethos-u55-128 (Ethos_U55_High_End_Embedded, Shared_Sram, 500 MHz)"
    )
    assert one.inference_ms == pytest.approx(one.cycles / 500e3)
    assert one.dram_bytes == 0
    other = estimate(vela_files["dense"], system_config="Ethos_U55_Deep_Embedded", memory_mode="Sram_Only")
    assert (other.system_config, other.memory_mode, other.clock_mhz) == ("Ethos_U55_Deep_Embedded", "Sram_Only", 200)


@pytest.mark.parametrize("accelerator", ["ethos-u55-32", "ethos-u65-256", "ethos-u85-256"])
def test_other_accelerators(vela_files, estimates, accelerator):
    one = estimate(vela_files["dense"], accelerator)
    assert one.accelerator == accelerator and one.macs == estimates["dense"].macs
    assert (one.npu_cycles > estimates["dense"].npu_cycles) == (accelerator == "ethos-u55-32")
    assert (one.flash_bytes, one.dram_bytes > 0) == (0, True) or accelerator.startswith("ethos-u55")


def test_the_u85_alone_skips_two_of_four(vela_files):
    half, fitting = (estimate(vela_files[name], "ethos-u85-256") for name in ("half", "2:4"))
    assert not any(layer.skips_zeros for layer in half.layers)
    # 'wide' could be, but waits for its output; a mean has no zeros.
    assert [layer.skips_zeros for layer in fitting.layers] == [True, False, False, True]
    assert fitting.layers[3].macs == half.layers[3].macs / 2
    assert fitting.layers[0].cycles < 0.5 * half.layers[0].cycles
    assert fitting.cycles < 0.8 * half.cycles
    assert not any(layer.skips_zeros for layer in estimate(vela_files["2:4"], "ethos-u65-256").layers)


def test_what_the_cpu_runs_is_told(estimates):
    left = {layer.kind for layer in estimates["mixed"].layers if not layer.on_npu}
    assert left == {"Dequantize", "Sin", "Quantize"}
    assert (estimates["mixed"].num_cpu_operators, estimates["dense"].num_cpu_operators) == (3, 0)


def test_side_by_side(estimates):
    pairs = compare(estimates["dense"], estimates["sparse"])
    assert [(dense.operator, dense.kind) for dense, _ in pairs] == [
        (pruned.operator, pruned.kind) for _, pruned in pairs
    ]
    assert [pruned.weight_bytes < dense.weight_bytes for dense, pruned in pairs[:2]] == [True, True]
    with pytest.raises(InputError, match=r"same hardware\. Received: .*u55-128.*u85-256"):
        compare(estimates["dense"], dataclasses.replace(estimates["sparse"], accelerator="ethos-u85-256"))
    with pytest.raises(InputError, match="same network"):
        compare(estimates["dense"], estimates["mixed"])
    with pytest.raises(InputError, match=r"same network\. Received: 4 and 3 operators"):
        compare(estimates["dense"], dataclasses.replace(estimates["dense"], layers=estimates["dense"].layers[:3]))


def test_a_float_file_is_refused(vela_files):
    with pytest.raises(
        InputError, match=r"export with --quantize=int8\. Received: .* leaves all 4 operators to the CP"
    ):
        estimate(vela_files["float"])


@pytest.mark.parametrize("accelerator", ["ethos-u55-128", "ethos-u85-256"])
def test_weights_must_be_stored_dense(vela_files, accelerator):
    with pytest.raises(InputError, match=r"weights dense\. Received: weights stored as sparse tensors"):
        estimate(store_sparse(vela_files["sparse"]), accelerator)
    with pytest.raises(InputError, match="Received: weights stored as TFLM's bitmaps"):
        estimate(vela_files["dense"] + b"TFLM_DECODE", accelerator)


def test_vela_is_quoted_when_it_fails(vela_files):
    with pytest.raises(InputError, match=r"compile the file\. Received: .*No networks.* \(exit code 1\)"):
        estimate(b"no file")
    with pytest.raises(InputError, match=r"Received: Failed to load TfLite model.* \(killed by SIGSEGV\)"):
        estimate(vela_files["dense"][:6000])
    with pytest.raises(
        InputError, match=r"Received: Incorrect argument to CLI option --system-config=Fast.*exit code 1"
    ):
        estimate(vela_files["dense"], system_config="Fast")


def test_unknown_accelerator(vela_files):
    with pytest.raises(InputError, match=r"must be one of ethos-u55-32, .*Received: ethos-u55"):
        estimate(vela_files["dense"], "ethos-u55")


def test_accelerators_are_velas():
    features = importlib.import_module("ethosu.vela.architecture_features")
    assert set(ACCELERATORS) == set(features.Accelerator.member_list())


def test_vela_that_is_not_there_says_how_to_bring_it(vela_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "ethosu.vela", None)
    with pytest.raises(InputError, match=r"pip install '\.\[vela\]' in the clone.*Received: .*ethosu"):
        estimate(vela_files["dense"])
    monkeypatch.setitem(sys.modules, "ethosu.vela", types.SimpleNamespace(__version__="4.5.0"))
    with pytest.raises(InputError, match=r"5\.2 or newer: pip install '\.\[vela\]' in the clone\. Received: 4\.5\.0"):
        estimate(vela_files["dense"])


def test_warnings_are_not_its_last_words():
    assert _last_words("Warning: No system configuration\n\n") == "a file that it says nothing about"
    assert _last_words("RuntimeError: No way\nWarning: No system configuration\n") == "No way"
