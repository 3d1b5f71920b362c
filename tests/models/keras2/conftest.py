"""Files that tf_keras, that is Keras 2, saved in a process of its own: it never comes into ours."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("save_with_tf_keras.py")


@pytest.fixture(scope="session")
def saved(made_once):
    """The folder with all networks of save_with_tf_keras.py."""
    return made_once("keras2", _save)


def _save(folder):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, SCRIPT, folder], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
