"""The search from Python: the same as the command line's, of what is in memory."""

import json
import pathlib

import jsonschema
import keras
import numpy as np
import pytest

import reflow_tf
from reflow_tf.errors import InputError
from reflow_tf.jobs.frontier import in_python
from reflow_tf.jobs.frontier.in_python import read_inputs, read_scored
from reflow_tf.jobs.frontier.search import Found
from reflow_tf.report import frontier as report


@pytest.fixture
def given(inputs):
    model, data = keras.models.load_model(inputs.model), np.load(inputs.data)
    x = data["x"].astype(np.float32) / 127.5 - 1
    heldout = np.load(inputs.heldout)
    return model, x, (heldout["x"].astype(np.float32) / 127.5 - 1, heldout["y"])


@pytest.mark.slow
def test_a_model_and_arrays_in_memory(given, tmp_path, capsys, only):
    only("plain int8", "narrow 80 %, int8", "sparse 50 %, int8")
    model, calibration, evaluation = given
    options = {"output_dir": str(tmp_path / "ship"), "repair": "reflow", "max_accuracy_drop": 50.0}
    found = reflow_tf.frontier(model, "tflm", calibration, evaluation, **options)
    assert found.headline.startswith("In TFLM ship ") and found.document["data"]["measure"] == "accuracy"
    jsonschema.validate(found.document, report.schema())
    assert json.loads((tmp_path / "ship" / "frontier.json").read_text("utf-8")) == found.document
    assert found.best == tmp_path / "ship" / "best" and (found.best / "model.tflite").is_file()
    assert (found.best / "firmware" / "README.md").is_file(), capsys.readouterr().err
    # The commands name what was written, and a second call takes everything over.
    command = found.document["cells"][0]["command"]
    named = [flag.partition("=")[2] for flag in command if flag.startswith(("--model=", "--data=", "--eval_data="))]
    assert len(named) == 3 and all(pathlib.Path(path).is_file() for path in named)
    again = reflow_tf.frontier(model, "tflm", [calibration[:40], calibration[40:]], evaluation, **options)
    assert [cell["files"]["model.tflite"] for cell in again.document["cells"]] == [
        cell["files"]["model.tflite"] for cell in found.document["cells"]
    ]
    assert found.document["seconds"] < again.document["seconds"] < 2 * found.document["seconds"]  # of both


@pytest.mark.parametrize(
    "change, message",
    [
        ({"device": "toaster"}, r"--device must be one of phone"),
        ({"device": "browser", "ram_budget": 1}, r"need a --device that is a microcontroller"),
        ({"model": "net"}, r"The model must be a keras\.Model\. Received: str"),
        (
            {"evaluation": (np.zeros((3, 4)), np.zeros(2, int))},
            r"for each\. Received: 3 inputs, and int64 of",
        ),
        ({"evaluation": (np.zeros((3, 4)), np.zeros(3))}, r"float64 of shape \(3,\)"),
        ({"evaluation": (np.zeros((3, 4)),)}, r"one whole number for each\. Received: a tuple of 1"),
        ({"calibration": {"x": 1}}, r"data must have an array .+ for the input 'images'.+Received: none"),
        ({"calibration": "photos"}, r"data must be an array or an iterable of batches\. Received: str"),
        ({"repair": "none"}, r"--repair must be one"),
        ({"minutes": 0.0}, r"--minutes must be over 0"),
        ({"minutes": "5"}, r"--minutes must be over 0\. Received: '5', which is no number"),
        ({"device": ["tflm"]}, r"--device must be one of phone"),
        ({"batch_size": "8"}, r"--batch_size must be at least 1\. Received: '8', which is no number"),
        ({"calibration": [np.zeros((2, 4)), np.zeros((2, 5))]}, r"batches of one shape\. Received: \(4,\), \(5,\)"),
        ({"evaluation": (np.zeros((2, 4)), [[1], [1, 2]])}, r"one whole number for each\. Received"),
        ({"output_dir": None}, r"output_dir must be a path\. Received: None"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(given, tmp_path, change, message):
    model, calibration, evaluation = given
    options = {"model": model, "device": "tflm", "calibration": calibration, "evaluation": evaluation} | change
    with pytest.raises(InputError, match=message):
        reflow_tf.frontier(**({"output_dir": str(tmp_path / "ship")} | options))
    assert list(tmp_path.glob("ship*")) == []


def test_other_arrays_leave_those_of_an_earlier_search_alone(given, tmp_path, monkeypatch):
    model, calibration, evaluation = given
    monkeypatch.setattr(in_python, "run", lambda search, command: Found({"tflm": {"answer": None} | vars(search)}, ()))
    monkeypatch.setattr(in_python, "headline", lambda document: "")
    jobs = [
        reflow_tf.frontier(model, "tflm", inputs, evaluation, output_dir=str(tmp_path / "ship")).document["job"]
        for inputs in (calibration, calibration[1:], calibration)
    ]
    assert jobs[0].model == jobs[2].model != jobs[1].model
    assert len(np.load(jobs[0].data)["x"]) == len(np.load(jobs[1].data)["x"]) + 1
    assert sorted(path.name for path in (tmp_path / "ship-given").iterdir()) == sorted(
        {pathlib.Path(job.model).parent.name for job in jobs}
    )


def test_without_classes_there_are_only_inputs():
    x, model = np.arange(12.0).reshape(3, 4), keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert list(read_scored(model, x)) == ["x"] and read_scored(model, x)["x"].shape == (3, 4)
    np.testing.assert_array_equal(read_scored(model, (x, np.array([1, 0, 2])))["y"], [1, 0, 2])


def test_several_inputs_are_written_each_under_its_name():
    image, ids = keras.Input((2, 3), name="image"), keras.Input((2,), dtype="int32", name="ids")
    model = keras.Model([image, ids], keras.layers.Concatenate()([keras.layers.Flatten()(image), ids * 1.0]))
    x = {"image": np.arange(24.0).reshape(4, 2, 3), "ids": np.arange(8).reshape(4, 2)}
    for given in (x, [(x["image"][:3], x["ids"][:3]), (x["image"][3:], x["ids"][3:])]):
        given = [(batch, None) for batch in given] if isinstance(given, list) else given
        found = read_inputs(model, given)
        assert {name: (array.shape, str(array.dtype)) for name, array in found.items()} == {
            "x_image": ((4, 2, 3), "float32"),
            "x_ids": ((4, 2), "int32"),
        }
        np.testing.assert_array_equal(found["x_image"], x["image"])
        np.testing.assert_array_equal(found["x_ids"], x["ids"])


def test_a_folder_that_cannot_be_written_is_one_error(given, tmp_path):
    (tmp_path / "ship-given").write_text("a file")
    with pytest.raises(InputError, match=r"The model and the inputs must be written\. Received: .*ship-given"):
        reflow_tf.frontier(given[0], "tflm", given[1], given[2], output_dir=str(tmp_path / "ship"))
