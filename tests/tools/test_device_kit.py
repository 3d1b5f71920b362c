import json

import numpy as np
import pytest

from reflow_tf.export.tflite import export_tflite
from reflow_tf.tools import device_kit


@pytest.fixture
def model(settled, tmp_path):
    (tmp_path / "model.tflite").write_bytes(export_tflite(settled[0]).content)
    return str(tmp_path / "model.tflite")


def test_a_folder_is_written_and_named(command, inputs, model, tmp_path):
    flags = {"model": model, "data": inputs.data, "output_dir": str(tmp_path / "kit"), "preprocess": "tf"}
    outcome = command(device_kit, **flags, num_inputs=3)
    assert outcome.code == 0, outcome.err
    assert str(tmp_path / "kit") in outcome.out
    data = np.load(tmp_path / "kit" / "data.npz")
    assert (data["inputs"].shape, data["outputs"].shape) == ((3, 8, 8, 3), (3, 4))
    assert -1 <= data["inputs"].min() < 0
    assert command(device_kit, **flags).error.endswith(f"Received: {tmp_path}/kit")
    assert command(device_kit, "--overwrite", **flags).code == 0
    assert np.load(tmp_path / "kit" / "data.npz")["inputs"].shape == (4, 8, 8, 3)


def test_bad_input_is_one_line_and_leaves_nothing(command, inputs, model, tmp_path, left):
    before = left()
    flags = {"model": model, "data": inputs.data, "output_dir": str(tmp_path / "kit"), "preprocess": "tf"}
    for changes, message in (
        ({"model": inputs.model}, "--model must be a .tflite file. Received: "),
        ({"model": None}, "--model is needed"),
        ({"data": None}, "--data is needed"),
        ({"data": str(tmp_path / "nowhere")}, "Received: "),
        ({"num_inputs": 0}, "--num_inputs must be at least 1. Received: 0"),
        ({"num_inputs": 10**6}, "--num_inputs must be at most the 96 images"),
        ({"preprocess": "odd"}, "odd"),
        ({"preprocess": "auto"}, "--preprocess must say how pixels are scaled"),
        ({"baseline": str(tmp_path / "none.tflite")}, "No such file"),
    ):
        merged = {name: value for name, value in {**flags, **changes}.items() if value is not None}
        outcome = command(device_kit, **merged)
        assert outcome.code == 2, outcome
        assert message in outcome.error
        assert left() == before


def test_a_config_that_no_pruning_run_wrote(command, inputs, model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"other": 1}))
    outcome = command(device_kit, model=model, data=inputs.data, output_dir=str(tmp_path / "kit"))
    assert outcome.code == 2
    assert "config.json" in outcome.error
