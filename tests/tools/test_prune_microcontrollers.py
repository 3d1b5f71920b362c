import json
import pathlib

import keras
import pytest
from keras import layers

from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.export.constants import has_bitmaps, list_tensors
from reflow_tf.jobs import microcontroller, pipeline
from reflow_tf.models.loading import LoadedModel
from reflow_tf.tools import evaluate, prune


@pytest.fixture(scope="module")
def model(wide_inputs):
    found = wide_inputs
    return (
        f"--model={found.model}",
        f"--data={found.data}",
        f"--eval_data={found.heldout}",
        "--preprocess=tf",
        "--calibration_samples=48",
    )


def run(model, folder, *flags, target="tflm"):
    code = prune.main(["prune", *model, f"--target={target}", f"--output_dir={folder}", *flags])
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


def test_a_slow_interpreter_gets_fewer_images_and_the_drop_is_over_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "MOST_IN_TFLM", 7)
    code, report = run(model, tmp_path / "out", "--sparsity=0.8", "--max_accuracy_drop=100")
    scores = report["accuracy"]
    assert code == 0 and (scores["dense"]["n"], scores["file"]["n"], report["gate"]["n"]) == (96, 7, 7)
    hits = (100 - report["gate"]["drop_points"]) / 100 * 7  # the labels are the dense network's own
    assert abs(hits - 7 * scores["file"]["top1"]) < 1e-3


def test_evaluate_runs_the_file_in_tflm(finished, wide_inputs, capsys):
    folder, _, report = finished
    assert evaluate.main(["evaluate", f"--model={folder / 'model.tflite'}", f"--data={wide_inputs.heldout}"]) == 0
    assert f"{100 * report['accuracy']['file']['top1']:.2f}%" in capsys.readouterr().out


@pytest.mark.slow
def test_budgets_that_are_missed_give_3_and_name_what_takes_most(model, tmp_path, capsys):
    code, report = run(model, tmp_path / "out", "--sparsity=0.5", "--flash_budget=1000", "--ram_budget=5000")
    assert code == 3 and report["mcu"]["passed"] is False
    errors = capsys.readouterr().err
    assert "--flash_budget allows 1,000. The largest parts are conv_2/weights" in errors
    assert "--ram_budget allows 5,000. The largest parts are conv_" in errors


@pytest.mark.slow
def test_the_least_sparsity_that_fits_the_flash_is_found(model, finished, tmp_path):
    _, _, full = finished
    budget = full["mcu"]["flash_bytes"] + 150
    code, report = run(model, tmp_path / "out", "--sparsity=auto", "--allocation=uniform", f"--flash_budget={budget}")
    assert code == 0 and report["mcu"]["passed"] is True
    assert budget - 200 < report["mcu"]["flash_bytes"] <= budget
    assert report["budget"]["name"] == "flash_budget" and report["config"]["max_size_bytes"] is None
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
        (["--sparsity=auto"], "--sparsity=auto needs --target=tflm and --flash_budget"),
        (["--sparsity=much"], "--sparsity must be a number, auto or existing. Received: much"),
        (["--quantize=float16"], "microcontrollers compute in int8"),
        (["--sparsity=auto", "--flash_budget=90"], "--flash_budget must be at least"),
        *(
            (
                ["--sparsity=auto", "--flash_budget=3000", "--pattern=channel", f"--max_macs={share}"],
                f"or give --sparsity a number. Received: --sparsity=auto --max_macs={share}",
            )
            for share in ("auto", "0.7")
        ),
        (["--export_batch_size=2"], "--export_batch_size must be 1 for --target=tflm. Received: 2"),
    ],
)
def test_bad_flags_give_2(model, tmp_path, capsys, flags, said):
    assert prune.main(["prune", *model, "--target=tflm", f"--output_dir={tmp_path / 'out'}", *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cortex_m")
def test_c_for_a_cortex_m_is_counted_and_compared(model, tmp_path):
    folder = tmp_path / "out"
    code, report = run(model, folder, "--sparsity=0.8", "--allocation=uniform", "--boards=m4,m3", target="cortex_m")
    mcu = report["mcu"]
    assert code == 0 and report["target"]["eligible"] and report["config"]["boards"] == ["m4", "m3"]
    assert mcu["num_equal"] == mcu["num_compared"] == 96 and not mcu["estimated"]
    for work in mcu["instructions"].values():
        assert work["file"] < work["dense"]
    assert mcu["flash_bytes"] < mcu["dense_flash_bytes"]
    assert not has_bitmaps((folder / "model.tflite").read_bytes())
    page = (folder / "report.html").read_text()
    assert "Cortex-M4" in page and "equal those of TFLM" in page


@pytest.mark.usefixtures("cortex_m")
def test_outputs_that_differ_give_3_and_say_not_to_ship(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(microcontroller, "_count_equal", lambda first, second: len(first) - 1)
    code, report = run(model, tmp_path / "out", "--sparsity=0.8", "--allocation=uniform", target="cortex_m")
    assert code == 3 and report["mcu"]["num_equal"] == 95
    said = "Do not ship this file: outputs of 1 image differ from those of TFLM."
    told = capsys.readouterr()
    assert said in told.err and said in " ".join(told.out.split())
    assert said in (tmp_path / "out" / "report.html").read_text().replace("\u00a0", " ")


@pytest.mark.usefixtures("cortex_m")
@pytest.mark.parametrize(("target", "said"), [("cortex_m", "TANH"), ("tflm", "TILE")])
def test_what_the_target_cannot_run_is_refused_before_the_long_work(
    tmp_path, inputs, monkeypatch, capsys, target, said
):
    """The network is not pruned, nor anything measured, since the dense file tells already."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="tanh", name="conv")(image)
    x = layers.Lambda(lambda y: keras.ops.tile(y, (1, 1, 2, 1)), name="twice")(x) if target == "tflm" else x
    network = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    monkeypatch.setattr(pipeline, "load_model", lambda *_, **__: LoadedModel(network, "odd", Preprocessing((8, 8)), 4))
    monkeypatch.setattr(pipeline, "prune", lambda *_, **__: pytest.fail("it was pruned"))
    flags = ["--model=odd", f"--data={inputs.data}", f"--eval_data={inputs.heldout}", f"--target={target}"]
    assert prune.main(["prune", *flags, f"--output_dir={tmp_path / 'out'}"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_vela_estimates_for_an_ethos_u(model, tmp_path, capsys):
    code, report = run(
        model, tmp_path / "out", "--sparsity=0.8", "--accelerator=ethos-u55-32", "--flash_budget=100", target="ethos_u"
    )
    mcu = report["mcu"]
    assert code == 3 and mcu["estimated"] and "ethos-u55-32" in mcu["runtime"]
    assert mcu["npu_cycles"]["file"] > 0 and mcu["flash_bytes"] < mcu["dense_flash_bytes"]
    told = capsys.readouterr()
    assert "estimated, and nothing was run" in " ".join(told.out.split())
    assert "--flash_budget allows 100" in told.err


def test_what_is_not_installed_is_said_before_the_work(model, tmp_path, monkeypatch, capsys):
    from reflow_tf.jobs import pipeline

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pipeline, "load_model", None)
    arguments = ["prune", *model, "--target=cortex_m", f"--output_dir={tmp_path / 'out'}"]
    assert prune.main(arguments) == 2
    assert "apt-get install" in capsys.readouterr().err
