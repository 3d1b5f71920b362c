"""Searches of finished files: what is made of one, what is refused, and what is said."""

import json
import shlex

import jsonschema
import numpy as np
import pytest

from reflow_tf.export.half_precision import allows_float16
from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs.frontier import costs
from reflow_tf.models.loading import load_model
from reflow_tf.report import frontier as report
from reflow_tf.report.frontier import format_table, headline
from reflow_tf.tools import frontier, rewrite


def prune_kernels(model, share):
    """So many of each kernel's weights are zero, the smallest."""
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            layer.kernel.assign(np.where(np.abs(kernel) >= np.quantile(np.abs(kernel), share), kernel, 0))
    return model


@pytest.fixture(scope="module")
def files(wide_inputs, images, tmp_path_factory):
    """Somebody's files, converted as anyone does: with zeros, without, and in int8."""
    folder = tmp_path_factory.mktemp("finished")
    samples = images(48, seed=5).astype(np.float32) / 127.5 - 1
    for name, share in (("sparse", 0.9), ("dense", 0.0)):
        model = prune_kernels(load_model(wide_inputs.model).model, share)
        (folder / f"{name}.tflite").write_bytes(export_tflite(model, storage="dense").content)
        int8 = export_tflite(model, quantize="int8", calibration=[samples], storage="dense")
        (folder / f"{name}_int8.tflite").write_bytes(int8.content)
    return folder


@pytest.fixture
def search(command, files, wide_inputs, tmp_path):
    """`search(name, **flags)`: the outcome, and the document if there is one."""

    def run(name, **flags):
        out = tmp_path / "out"
        given = {
            "model": files / f"{name}.tflite",
            "data": wide_inputs.data,
            "eval_data": wide_inputs.heldout,
            "preprocess": "tf",
            "device": "size",
            "output_dir": out,
        }
        outcome = command(frontier, **{key: value for key, value in (given | flags).items() if value is not None})
        path = out / "frontier.json"
        return outcome, report.from_json(path.read_bytes()) if path.exists() else None

    return run


def test_the_file_without_its_zeros_is_what_to_ship(search, command, files, tmp_path):
    outcome, document = search("sparse")
    assert outcome.code == 0, outcome.err
    jsonschema.validate(document, report.schema())
    assert document["given"] == "file" and document["data"]["fitted"] == 0
    given, made = sorted(document["cells"], key=lambda cell: cell["kind"])
    assert (given["name"], given["cost_share"], given["score"]["drop_points"]) == ("as it is", 1.0, 0.0)
    assert made["name"] == "without its zeros" and made["score"]["drop_points"] == 0
    assert made["cost"] < 0.6 * given["cost"] == pytest.approx(0.6 * (files / "sparse.tflite").stat().st_size)
    assert headline(document).startswith("Where bytes count ship the file without its zeros: ")
    assert "times fewer bytes than the file as it is. " in headline(document) and "made of it" not in headline(document)
    assert headline(document) in outcome.out.splitlines()
    # The commands make those very bytes.
    assert given["command"] == []
    again = command(rewrite, *made["command"], output=tmp_path / "again.tflite")
    best = tmp_path / "out" / "best" / "model.tflite"
    assert again.code == 0 and (tmp_path / "again.tflite").read_bytes() == best.read_bytes()
    page = (tmp_path / "out" / "frontier.html").read_text()
    assert f"reflow_tf.tools.rewrite {shlex.join(made['command'])}" in page and "tools.prune" not in page
    assert 'href="cells/without_its_zeros/"' in page and "report.html" not in page


def test_what_was_made_is_taken_over_and_another_file_is_another_search(search):
    first = search("sparse")[1]
    again = search("sparse")[1]
    assert [cell["seconds"] for cell in again["cells"]] == [cell["seconds"] for cell in first["cells"]]
    outcome, _ = search("dense")
    assert outcome.code == 2 and "--output_dir holds a search with other settings" in outcome.error


def test_where_there_are_no_zeros_the_file_is_shipped_as_it_is(search, files, tmp_path):
    outcome, document = search("dense")
    assert outcome.code == 0
    assert [cell["name"] for cell in document["cells"]] == ["as it is"]
    (dropped,) = document["dropped"]
    assert dropped["name"] == "without its zeros" and dropped["reason"].startswith("it has too few zeros")
    assert headline(document).startswith(
        "Where bytes count ship the file as it is: nothing else was worth making, or could be made; why stands beside "
        "what was left out. It lost 0.0 points "
    )
    assert (tmp_path / "out" / "best" / "model.tflite").read_bytes() == (files / "dense.tflite").read_bytes()


def test_without_labels_agreement_is_told(search, wide_inputs):
    outcome, document = search("sparse", data=wide_inputs.unlabelled, eval_data=None)
    assert outcome.code == 0 and document["data"]["measure"] == "agreement"
    assert {cell["score"]["top1"] for cell in document["cells"]} == {1.0}


def test_numbers_are_compared_as_numbers(search):
    outcome, document = search("sparse", task="fidelity")
    assert outcome.code == 0 and document["data"]["measure"] == "fidelity"
    assert all(cell["score"]["relative_error"] < 1e-5 for cell in document["cells"])
    (name,) = {output["name"] for cell in document["cells"] for output in cell["score"]["outputs"]}
    assert name


def test_bitmaps_for_tflm(search):
    outcome, document = search("sparse_int8", device="tflm")
    assert outcome.code == 0, outcome.err
    cells = {cell["name"]: cell for cell in document["cells"]}
    assert cells["without its zeros"]["flash_bytes"] < cells["as it is"]["flash_bytes"]
    assert {cell["number_format"] for cell in document["cells"]} == {"int8"}
    assert "fewer bytes than the file as it is" in format_table(document)[0]


def test_what_is_left_out_already_is_no_lack_of_zeros(search, command, tmp_path):
    for name, target, device in (("sparse", "storage", "size"), ("sparse_int8", "tflm", "tflm")):
        given = tmp_path / f"{target}.tflite"
        made = search(name, device=device, output_dir=tmp_path / name)[0]
        assert made.code == 0, made.err
        given.write_bytes((tmp_path / name / "best" / "model.tflite").read_bytes())
        search(name, model=given, device=device, output_dir=tmp_path / f"{name}_2")
        (dropped,) = json.loads((tmp_path / f"{name}_2" / "frontier.json").read_text())["dropped"]
        assert dropped == {"name": "without its zeros", "reason": "its zeros are left out already"}


def test_an_open_batch_stays_open_in_the_file_as_it_is(search, wide_inputs, tmp_path):
    import tensorflow as tf

    model = load_model(wide_inputs.model).model
    given = tmp_path / "open.tflite"
    given.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    outcome, _ = search("dense", model=given, device="size,desktop")
    assert outcome.code == 0, outcome.err
    for device in ("size", "desktop"):
        made = tmp_path / "out" / device / "cells" / "as_it_is" / "model.tflite"
        assert made.read_bytes() == given.read_bytes()


def test_an_output_given_twice(search, wide_inputs, tmp_path):
    import keras
    import tensorflow as tf

    model = load_model(wide_inputs.model).model
    twice = keras.Model(model.inputs, [model.outputs[0], model.outputs[0]])
    given = tmp_path / "twice.tflite"
    given.write_bytes(tf.lite.TFLiteConverter.from_keras_model(twice).convert())
    outcome, document = search("dense", model=given)
    assert outcome.code == 0, outcome.err
    first, second = document["cells"][0]["score"]["outputs"]
    assert second["name"] == f"{first['name']}_2"


def test_other_pixels_are_another_search(search, files, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "model.tflite").write_bytes((files / "sparse.tflite").read_bytes())
    for scaling, code in (("tf", 0), ("unit", 2)):
        config = {"preprocessing": {"size": [8, 8], "channels": 3, "scaling": scaling}}
        (given / "config.json").write_text(json.dumps(config))
        outcome, _ = search("sparse", model=given / "model.tflite", preprocess="auto")
        assert outcome.code == code, outcome.err
    assert "--output_dir holds a search with other settings, preprocessing=" in outcome.error


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("dense", {"data": None, "eval_data": None}, "--data is needed: a .tflite file comes with no data"),
        ("dense", {"preprocess": "auto"}, "--preprocess must say how pixels are scaled"),
        ("dense", {"weights": "w.h5"}, "--weights is for networks. Received: --weights=w.h5"),
        ("dense", {"custom_objects": "layers"}, "--custom_objects is for networks. Received: "),
        (
            "dense",
            {"image_size": 28},
            "--image_size is for networks. Received: --image_size=28, with ",
        ),
        ("dense", {"memory_budget": 10**9}, "--memory_budget is for networks. Received: "),
        ("dense", {"repair": "reflow"}, "--repair is for networks. Received: --repair=reflow"),
        ("dense", {"device": "tflm"}, "--device=tflm must be able to run the file. It takes int8 files. Received: "),
        ("dense", {"calibration_samples": 15}, "at least 16 calibration images, to judge by. Received: 15"),
        ("dense", {"model": "/no/such.tflite"}, "must be a readable file. Received: /no/such.tflite"),
        ("dense", {"model": __file__.replace(".py", ".tflite")}, "must be a readable file"),
    ],
)
def test_bad_input(search, left, name, flags, message):
    outcome, _ = search(name, **flags)
    assert outcome.code == 2 and message in outcome.error
    assert left() == {}


@pytest.mark.slow
def test_float16_arithmetic_on_a_phone(aarch64, llvm, search, command, tmp_path, monkeypatch):
    outcome, document = search("dense", device="phone", max_accuracy_drop=50)
    assert outcome.code == 0, outcome.err
    cells = {cell["name"]: cell for cell in document["cells"]}
    assert cells["with float16 arithmetic"]["kind"] == "converted"
    content = (tmp_path / "out" / "cells" / "with_float16_arithmetic" / "model.tflite").read_bytes()
    assert allows_float16(content)
    assert "with float16 arithmetic: This file lets CPUs compute in float16. So computed (" in document["notes"][0]
    again = command(rewrite, *cells["with float16 arithmetic"]["command"], output=tmp_path / "again.tflite")
    assert again.code == 0 and (tmp_path / "again.tflite").read_bytes() == content
    # Marked, there is nothing to allow.
    monkeypatch.setattr(costs.Costs, "measure", lambda *_: costs.Cost(1e6, 1.0, False, 1e6, 1.0))
    given = {"model": tmp_path / "again.tflite", "output_dir": tmp_path / "second", "device": "phone"}
    search("dense", **given, max_accuracy_drop=50)
    second = json.loads((tmp_path / "second" / "frontier.json").read_text())
    assert {"name": "with float16 arithmetic", "reason": "the file allows it as it is"} in second["dropped"]


@pytest.mark.slow
def test_on_a_board_and_in_a_browser(cortex_m, web, search, tmp_path):
    outcome, document = search("sparse_int8", device="cortex_m4", max_accuracy_drop=50)
    assert outcome.code == 0, outcome.err
    (cell,) = document["cells"]
    assert (
        cell["cost_share"] < 1 and cell["ram_bytes"] and headline(document).startswith("On a Cortex-M4 ship the file")
    )
    assert (tmp_path / "out" / "best" / "firmware").is_dir()
    search("sparse", device="browser", max_accuracy_drop=50, output_dir=tmp_path / "web")
    document = json.loads((tmp_path / "web" / "frontier.json").read_text())
    assert document["answer"] and "as it is" in [cell["name"] for cell in document["cells"]]
    assert all(cell["cost"] > 0 and not cell["differs"] for cell in document["cells"])
