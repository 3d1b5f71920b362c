import ast
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes import device_script
from reflow_tf.runtimes.litert import LiteRT

SOURCE = pathlib.Path(device_script.__file__)


@pytest.fixture(scope="module")
def files():
    """A small network as float32, as int8, and with room for three samples."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(image))
    model = keras.Model(image, layers.Dense(4, activation="softmax")(x))
    batches = [images(16)]
    return {
        "float": export_tflite(model).content,
        "int8": export_tflite(model, quantize="int8", calibration=batches).content,
        "three": export_tflite(model, batch_size=3).content,
        "two heads": export_tflite(keras.Model(image, [model.output, layers.Dense(2)(x)])).content,
    }


def images(count):
    return np.random.default_rng(2).standard_normal((count, 6, 6, 3)).astype(np.float32)


@pytest.fixture
def kit(files, tmp_path):
    """`kit(name, ...)`: the arguments that check a file against other outputs, or against LiteRT's own."""

    def make(name, outputs="right", **arrays):
        (tmp_path / "model.tflite").write_bytes(files[name])
        if isinstance(outputs, str):
            outputs = LiteRT(files[name]).run(images(5))
        if outputs is not None:
            arrays["outputs"] = outputs
        np.savez(tmp_path / "data.npz", inputs=images(5), **arrays)
        return [f"--model={tmp_path}/model.tflite", f"--data={tmp_path}/data.npz", "--rounds=3", "--warm_up=1"]

    return make


def run(capfd, *arguments):
    code = device_script.main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_the_script_is_python_3_9_and_needs_only_numpy():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"numpy"}


@pytest.mark.parametrize("name", ["float", "int8", "three", "two heads"])
def test_right_outputs_pass(kit, capfd, name):
    code, result = run(capfd, *kit(name))
    assert (code, result["outputs_agree"]) == (0, True)
    assert result["largest_difference"] <= result["tolerance"]
    assert 0 < result["model"]["lower_quartile_ms"] <= result["model"]["median_ms"]
    assert (result["threads"], result["rounds"], result["warm_up"]) == (1, 3, 1)
    assert result["runtime"].startswith("ai_edge_litert ")
    assert 1e6 < result["peak_memory_bytes"] < 1e11


def test_integers_are_handed_over_as_litert_does(files, kit, capfd, tmp_path):
    run(capfd, *kit("int8"), f"--save_outputs={tmp_path}/outputs.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), LiteRT(files["int8"]).run(images(5)))


def test_integers_may_be_some_steps_apart_and_no_more(files, kit, capfd):
    outputs = LiteRT(files["int8"]).run(images(5))
    for apart, code in ((0.08, 0), (0.15, 1)):
        expected = outputs.copy()
        expected[2, 1] += apart * np.abs(outputs).max()
        assert run(capfd, *kit("int8", expected))[0] == code


@pytest.mark.parametrize("wrong", [0.02, np.nan])
def test_wrong_outputs_fail(files, kit, capfd, wrong):
    outputs = LiteRT(files["float"]).run(images(5))
    outputs[4, 3] += wrong  # one number of the last sample
    code, result = run(capfd, *kit("float", outputs))
    assert (code, result["outputs_agree"]) == (1, False)
    assert device_script.main(kit("float", outputs)) == 1
    assert "outputs DIFFER" in capfd.readouterr().out


def test_outputs_that_nobody_expects_are_said_not_to_be_checked(kit, capfd):
    assert device_script.main(kit("float", None)) == 0
    assert "not checked" in capfd.readouterr().out


def test_the_ratio_is_stated_where_sparse_kernels_are(files, kit, capfd, monkeypatch, tmp_path):
    arguments = [*kit("float"), f"--baseline={tmp_path}/model.tflite"]
    monkeypatch.setattr(device_script.platform, "machine", lambda: "aarch64")
    _, result = run(capfd, *arguments)
    assert result["baseline"]["median_ms"] > 0
    assert result["speedup"]["lower_quartile"] <= result["speedup"]["median"] <= result["speedup"]["upper_quartile"]
    assert device_script.main(arguments) == 0
    assert "times as fast as the baseline" in capfd.readouterr().out


@pytest.mark.parametrize(("wrong", "which"), [(0.0, None), (0.5, "outputs"), (0.5, "baseline_outputs")])
def test_no_ratio_of_wrong_outputs(files, kit, capfd, monkeypatch, tmp_path, wrong, which):
    monkeypatch.setattr(device_script.platform, "machine", lambda: "aarch64")
    right = LiteRT(files["float"]).run(images(5))
    arrays = {name: right + wrong * (name == which) for name in ("outputs", "baseline_outputs")}
    arguments = [*kit("float", **arrays), f"--baseline={tmp_path}/baseline.tflite"]
    (tmp_path / "baseline.tflite").write_bytes(files["float"])
    code, result = run(capfd, *arguments)
    assert (code, "speedup" in result) == ((0, True) if which is None else (1, False))
    assert result["outputs_agree"] is (which != "outputs")
    assert result["baseline_check"]["outputs_agree"] is (which != "baseline_outputs")
    assert device_script.main(arguments) == code
    said = capfd.readouterr().out
    assert ("outputs of the baseline DIFFER" in said) is (which == "baseline_outputs")
    assert ("no speed-up is stated: outputs are wrong" in said) is (which is not None)


def test_nothing_is_expected_of_another_baseline(files, kit, capfd, tmp_path):
    arguments = kit("float", baseline_outputs=np.zeros((5, 4), np.float32))
    (tmp_path / "other.tflite").write_bytes(files["float"])
    assert device_script.main([*arguments, f"--baseline={tmp_path}/other.tflite"]) == 0
    assert "outputs of the baseline not checked" in capfd.readouterr().out


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "i386", "i686"])
def test_x86_has_no_sparse_kernels(monkeypatch, machine):
    monkeypatch.setattr(device_script.platform, "machine", lambda: machine)
    assert not device_script.has_sparse_kernels()


def test_no_ratio_is_stated_on_x86(kit, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(device_script.platform, "machine", lambda: "x86_64")
    arguments = [*kit("float"), f"--baseline={tmp_path}/model.tflite"]
    _, result = run(capfd, *arguments)
    assert "speedup" not in result
    assert device_script.main(arguments) == 0
    assert "no speed-up is stated: XNNPACK has no sparse kernels for x86_64" in capfd.readouterr().out


def test_runs_take_turns_and_the_order_turns_around():
    order, ticks = [], iter(range(1000))
    runs = [lambda: order.append("a"), lambda: order.append("b")]
    times = device_script.time_in_turns(runs, 1, 3, lambda: next(ticks))
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    np.testing.assert_array_equal(times, np.full((3, 2), 1000.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds=-1"], "--rounds must be at least 0"),
        (["--threads=0"], "--threads must be at least 1"),
        (["--baseline=nowhere"], "there is no file nowhere"),
        (["--runtime=other"], "invalid choice"),
    ],
)
def test_bad_flags(kit, capfd, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        device_script.main([*kit("float"), *arguments])
    assert stopped.value.code == 2
    assert message in capfd.readouterr().err


def test_without_a_runtime_it_says_what_to_install(kit, monkeypatch):
    for name in device_script.RUNTIMES:
        monkeypatch.setitem(sys.modules, f"{name}.interpreter", None)
    with pytest.raises(SystemExit, match="pip install ai-edge-litert"):
        device_script.main(kit("float"))
