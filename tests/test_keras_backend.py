import json
import os
import subprocess
import sys

import pytest

import reflow_tf
from reflow_tf.errors import InputError
from reflow_tf.keras_backend import require_tensorflow


def test_tensorflow_is_welcome(monkeypatch):
    require_tensorflow()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    require_tensorflow()
    monkeypatch.setenv("KERAS_BACKEND", "")
    require_tensorflow()


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy", "openvino"])
def test_another_backend_is_refused_before_keras_is_imported(monkeypatch, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with pytest.raises(InputError, match=rf"unset KERAS_BACKEND.* Received: KERAS_BACKEND={backend}$"):
        require_tensorflow()


def test_the_python_interface_refuses_it_as_well(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(InputError, match="Received: KERAS_BACKEND=jax"):
        _ = reflow_tf.prune


@pytest.mark.parametrize("source", ["environment", "file"])
def test_the_command_line_says_so_in_one_line(tmp_path, source):
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    if source == "environment":
        environment["KERAS_BACKEND"] = "jax"
    else:  # what ~/.keras/keras.json would do
        environment["KERAS_HOME"] = str(tmp_path)
        (tmp_path / "keras.json").write_text(json.dumps({"backend": "numpy", "floatx": "float32"}))
    command = [sys.executable, "-m", "reflow_tf.tools.prune", "--model=resnet20", f"--output_dir={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Keras must run on the tensorflow backend") and "Received: " in line
    assert not (tmp_path / "out").exists()
