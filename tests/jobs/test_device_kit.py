import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.job_config import EvaluateConfig
from reflow_tf.jobs.device_kit import write_device_kit
from reflow_tf.runtimes.aarch64 import machine


@pytest.fixture(scope="module")
def model(settled, tmp_path_factory):
    """A model.tflite with the config.json of a pruning run beside it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model.tflite").write_bytes(export_tflite(settled[0]).content)
    preprocessing = {"size": [8, 8], "channels": 3, "scaling": "tf"}
    (folder / "config.json").write_text(json.dumps({"preprocessing": preprocessing}))
    return str(folder / "model.tflite")


@pytest.fixture(scope="module")
def kit(model, inputs, tmp_path_factory):
    source = EvaluateConfig(model, inputs.data)
    return write_device_kit(source, str(tmp_path_factory.mktemp("kit") / "kit"), baseline=model)


def run(folder, *flags):
    command = [sys.executable, str(folder / "run.py"), "--json", "--rounds=2", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_the_inputs_are_images_of_the_data_as_the_run_prepared_them(kit, model, inputs):
    found = np.load(kit / "data.npz")["inputs"]
    every = np.load(inputs.data)["x"].astype(np.float32) / np.float32(127.5) - 1
    np.testing.assert_allclose(found, every[[0, 32, 63, 95]], atol=1e-6)
    assert (kit / "model.tflite").read_bytes() == pathlib.Path(model).read_bytes()


def test_the_expected_outputs_are_those_of_keras(kit, settled):
    data = np.load(kit / "data.npz")
    np.testing.assert_allclose(data["outputs"], settled[0](data["inputs"]).numpy(), atol=1e-5)
    assert len(set(data["outputs"].argmax(-1))) > 1  # equal classes would hide an order that is wrong


def test_the_script_checks_and_times_from_anywhere(kit):
    done = run(kit, f"--baseline={kit}/baseline.tflite")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outputs_agree"]
    assert result["baseline"]["median_ms"] > 0


@pytest.mark.parametrize("runtime", ["ai_edge_litert", "tflite_runtime"])
def test_the_script_passes_on_arm(aarch64, kit, runtime, tmp_path):
    flags = ["--json", "--rounds=2", f"--runtime={runtime}", f"--baseline={kit}/baseline.tflite"]
    done = machine.find_machine().python([str(kit / "run.py"), *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outputs_agree"]
    assert result["runtime"].startswith(runtime)
    assert result["machine"].startswith("aarch64, Python 3.11")
    assert result["speedup"]["median"] > 0


def test_the_commands_for_a_phone_run_a_python_that_needs_nothing_of_the_system(aarch64, kit, tmp_path):
    """The README's own lines, with QEMU where a phone would run the loader itself."""
    lines = [line.strip() for line in (kit / "README.md").read_text().splitlines() if line.startswith("    ")]
    pack = next(line for line in lines if line.startswith("tar -C FOLDER"))
    unpack = next(line for line in lines if "tar -xzf" in line).split("&& ")[1]
    start = lines.index(next(line for line in lines if line.startswith("LIBRARIES=")))
    last = "\n".join(lines[start : start + 3]).replace("./root", "exec qemu-aarch64 -cpu cortex-a76 -strace ./root")
    for name in ("model.tflite", "baseline.tflite", "data.npz", "run.py"):
        assert name in next(line for line in lines if line.startswith("adb push python.tgz"))
        (tmp_path / name).write_bytes((kit / name).read_bytes())
    script = "\n".join(
        [
            pack.split("#")[0].replace("FOLDER", str(machine.set_up())).replace("czf", "cf"),
            unpack.replace("xzf", "xf"),
            last,
        ]
    )
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "outputs agree" in done.stdout
    opened = set(re.findall(r'openat\([^"]*"(/[^"]*)"[^=]*= \d', done.stderr))
    assert any(path.startswith(str(tmp_path)) for path in opened)
    foreign = {path for path in opened if not path.startswith((str(tmp_path), "/proc/", "/sys/"))}
    assert not [path for path in foreign if ".so" in path or path.endswith((".py", ".pyc"))], foreign


def test_every_command_of_the_readme_names_files_that_are_there(kit):
    text = (kit / "README.md").read_text()
    assert "{" not in text
    for name in re.findall(r"\b[\w]+\.(?:tflite|npz|py)\b", text):
        assert (kit / name).is_file(), name
    assert "--baseline=baseline.tflite" in text


def test_without_a_baseline_nothing_speaks_of_one(model, inputs, tmp_path):
    kit = write_device_kit(EvaluateConfig(model, inputs.unlabelled), str(tmp_path / "kit"), num_inputs=2)
    assert sorted(path.name for path in kit.iterdir()) == ["README.md", "data.npz", "model.tflite", "run.py"]
    assert "baseline" not in (kit / "README.md").read_text()
    assert np.load(kit / "data.npz")["inputs"].shape == (2, 8, 8, 3)
    assert run(kit).returncode == 0


def test_a_kit_is_replaced_with_and_without_a_baseline(model, inputs, tmp_path):
    for baseline in (None, model, None):
        write_device_kit(EvaluateConfig(model, inputs.data), str(tmp_path / "kit"), baseline=baseline, overwrite=True)
        assert (tmp_path / "kit" / "baseline.tflite").exists() is (baseline is not None)
        assert ("baseline_outputs" in np.load(tmp_path / "kit" / "data.npz")) is (baseline is not None)


@pytest.mark.parametrize("flag", ["model", "baseline", "data"])
def test_what_would_be_replaced_is_no_input(kit, model, inputs, flag):
    inside = {"model": "model.tflite", "baseline": "baseline.tflite", "data": "data.npz"}
    given = {"model": model, "data": inputs.data, "baseline": None, flag: str(kit / inside[flag])}
    with pytest.raises(InputError, match=f"--{flag} must not be inside --output_dir"):
        write_device_kit(
            EvaluateConfig(given["model"], given["data"]), str(kit), baseline=given["baseline"], overwrite=True
        )


def test_a_damaged_file_fails_on_the_device(model, inputs, tmp_path):
    kit = write_device_kit(EvaluateConfig(model, inputs.data), str(tmp_path / "kit"))
    data = dict(np.load(kit / "data.npz"))
    np.savez(kit / "data.npz", inputs=data["inputs"][::-1], outputs=data["outputs"])
    assert run(kit).returncode == 1


def test_bad_input(model, inputs, tmp_path, settled, classifier):
    def write(**changes):
        source = EvaluateConfig(changes.pop("model", model), changes.pop("data", inputs.data))
        write_device_kit(source, str(tmp_path / "kit"), **changes)

    other = tmp_path / "other.tflite"
    other.write_bytes(export_tflite(classifier(size=10)).content)
    for changes, message in (
        ({"num_inputs": 97}, "--num_inputs must be at most the 96 images of --data. Received: 97"),
        ({"num_inputs": 0}, "--num_inputs must be at least 1. Received: 0"),
        (
            {"baseline": str(other)},
            r"--baseline must take inputs of the model's shape \(1, 8, 8, 3\). Received: \(1, 10",
        ),
        ({"baseline": str(tmp_path / "none.tflite")}, "No such file"),
        ({"model": str(tmp_path / "none.tflite")}, "No such file"),
        ({"data": str(tmp_path / "nowhere")}, "existing path"),
    ):
        with pytest.raises(InputError, match=message):
            write(**changes)
        assert sorted(tmp_path.iterdir()) == [other]
