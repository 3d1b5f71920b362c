import json
import pathlib

import pytest

from reflow_tf.export.constants import has_bitmaps, list_tensors
from reflow_tf.tools import evaluate, prune

TFLM = ("--target=tflm", "--preprocess=tf", "--calibration_samples=48")


@pytest.fixture(scope="module")
def model(wide_inputs):
    found = wide_inputs
    return (f"--model={found.model}", f"--data={found.data}", f"--eval_data={found.heldout}", *TFLM)


def run(model, folder, *flags):
    code = prune.main(["prune", *model, f"--output_dir={folder}", *flags])
    return code, json.loads((pathlib.Path(folder) / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tflm") / "out"
    return folder, *run(model, folder, "--sparsity=0.8", "--allocation=uniform")


def test_the_file_is_int8_with_bitmaps_and_runs_in_tflm(finished):
    folder, code, report = finished
    assert code == 0
    content = (folder / "model.tflite").read_bytes()
    assert has_bitmaps(content)
    assert report["config"]["quantize"] == "int8" and report["target"]["eligible"]
    mcu = report["mcu"]
    assert mcu["flash_bytes"] == len(content) < mcu["dense_flash_bytes"] == report["size_bytes"]["dense_file"]
    assert mcu["num_equal"] == mcu["num_compared"] == 96
    assert mcu["passed"] is None
    assert all(mask["ok"] for mask in report["masks_in_file"])
    assert "On a microcontroller" in (folder / "report.html").read_text()


def test_evaluate_runs_the_file_in_tflm(finished, wide_inputs, capsys):
    folder, _, report = finished
    assert evaluate.main(["evaluate", f"--model={folder / 'model.tflite'}", f"--data={wide_inputs.heldout}"]) == 0
    assert f"{100 * report['accuracy']['file']['top1']:.2f}%" in capsys.readouterr().out


def test_budgets_that_are_missed_give_3_and_name_what_takes_most(model, tmp_path, capsys):
    code, report = run(model, tmp_path / "out", "--sparsity=0.5", "--flash_budget=1000", "--ram_budget=5000")
    assert code == 3 and report["mcu"]["passed"] is False
    errors = capsys.readouterr().err
    assert "--flash_budget allows 1,000. Most go to conv_2/weights" in errors
    assert "--ram_budget allows 5,000. Most go to conv_" in errors


def test_the_least_sparsity_that_fits_the_flash_is_found(model, finished, tmp_path):
    _, _, full = finished
    budget = full["mcu"]["flash_bytes"] + 150
    code, report = run(model, tmp_path / "out", "--sparsity=auto", "--allocation=uniform", f"--flash_budget={budget}")
    assert code == 0 and report["mcu"]["passed"] is True
    assert budget - 200 < report["mcu"]["flash_bytes"] <= budget
    assert 0.3 < report["sparsity"]["achieved"] < 0.8


def test_zeros_of_the_masks_are_zeros_of_the_bytes(finished):
    """Per kernel, from the bytes of the file: at least the zeros that the mask asked for."""
    folder, _, report = finished
    masked = {layer["path"].split("/")[-2]: layer["num_zeros"] for layer in report["sparsity"]["layers"]}
    stored = {tensor.name: tensor.num_zeros for tensor in list_tensors((folder / "model.tflite").read_bytes())}
    for name in ("conv_1", "conv_2"):
        assert stored[f"{name}/weights"] >= masked[name] > 300


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sparsity=auto"], "--sparsity=auto needs --flash_budget"),
        (["--sparsity=much"], "--sparsity must be a number, or auto. Received: much"),
        (["--quantize=float16"], "microcontrollers compute in int8"),
    ],
)
def test_bad_flags_give_2(model, tmp_path, capsys, flags, said):
    assert prune.main(["prune", *model, f"--output_dir={tmp_path / 'out'}", *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
