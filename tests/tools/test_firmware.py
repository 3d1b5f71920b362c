import re
import subprocess

import numpy as np
import pytest

from reflow_tf.export.bitmap_storage import store_bitmaps
from reflow_tf.export.tflite import export_tflite
from reflow_tf.tools import firmware


@pytest.fixture
def model(int8_file, tmp_path):
    (tmp_path / "model.tflite").write_bytes(int8_file[0])
    return str(tmp_path / "model.tflite")


def write(command, model, inputs, folder, *arguments, **flags):
    given = {"model": model, "data": inputs.data, "output_dir": str(folder), "preprocess": "tf"}
    return command(firmware, *arguments, **(given | flags))


@pytest.mark.usefixtures("cortex_m", "make")
@pytest.mark.parametrize("board", ["m4", "m55"])
def test_the_folder_is_built_and_proves_itself_as_its_readme_says(command, inputs, model, tmp_path, board):
    folder = tmp_path / "firmware"
    outcome = write(command, model, inputs, folder, board=board, num_inputs=3)
    assert outcome.code == 0 and str(folder) in outcome.out, outcome
    told = (folder / "README.md").read_text()
    assert "prints `3 of 3 outputs are equal`" in told and "$" not in told
    done = subprocess.run(["make", "run"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 outputs are equal" in done.stdout + done.stderr
    assert "warning" not in done.stderr
    assert write(command, model, inputs, folder, "--overwrite").code == 0  # what make left is no obstacle


@pytest.mark.usefixtures("cortex_m", "make")
def test_outputs_that_differ_fail_the_proof(command, inputs, model, tmp_path):
    folder = tmp_path / "firmware"
    assert write(command, model, inputs, folder).code == 0
    header = (folder / "images.h").read_text()
    start = header.index("expected")
    first = re.search(r"\{\{\s*(-?\d+)", header[start:])
    broken = f"{{{{ {(int(first[1]) + 129) % 256 - 128}"
    (folder / "images.h").write_text(header[:start] + header[start:].replace(first[0], broken, 1))
    done = subprocess.run(["make", "run"], cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    assert "3 of 4 outputs are equal" in done.stdout + done.stderr


def test_a_file_for_tflm_becomes_an_array(command, inputs, int8_file, tmp_path):
    content = store_bitmaps(int8_file[0])
    (tmp_path / "model.tflite").write_bytes(content)
    folder = tmp_path / "firmware"
    assert write(command, str(tmp_path / "model.tflite"), inputs, folder).code == 0
    told = (folder / "README.md").read_text()
    for call in ("AddDecode", "AddConv2D", "AddFullyConnected", "AddMean", "AddSoftmax"):
        assert f"operators.{call}();" in told
    assert "MicroMutableOpResolver<5>" in told and "$" not in told
    numbers = re.findall(r"\d+", (folder / "model_data.c").read_text().split("{")[1])
    assert bytes(map(int, numbers)) == content
    assert told.count("alignas(16) static uint8_t") == 2  # the arena, and what may be beside it


@pytest.mark.usefixtures("cortex_m", "make")
@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_array_is_c_and_cpp(command, inputs, int8_file, tmp_path, language):
    (tmp_path / "model.tflite").write_bytes(store_bitmaps(int8_file[0]))
    assert write(command, str(tmp_path / "model.tflite"), inputs, tmp_path / "firmware").code == 0
    program = '#include "images.h"\n#include "model_data.h"\n'
    (tmp_path / "firmware" / "main.x").write_text(program + "int main(void) { return images[0][0] + model_data[0]; }\n")
    compiler = ["arm-none-eabi-gcc", "-Wall", "-Werror", "-Wno-unused-variable", "-x", language, "-c"]
    subprocess.run([*compiler, "model_data.c", "main.x"], cwd=tmp_path / "firmware", check=True)


def test_a_folder_of_one_kind_may_be_replaced_by_the_other(command, inputs, model, int8_file, tmp_path):
    array, folder = tmp_path / "bitmaps.tflite", tmp_path / "firmware"
    array.write_bytes(store_bitmaps(int8_file[0]))
    for file, made in ((str(array), "model_data.c"), (model, "Makefile"), (str(array), "model_data.c")):
        assert write(command, file, inputs, folder, "--overwrite").code == 0
        assert (folder / made).is_file()


def test_how_pixels_become_inputs_is_told(command, inputs, model, tmp_path):
    assert write(command, model, inputs, tmp_path / "firmware", preprocess="lite").code == 0
    told = " ".join((tmp_path / "firmware" / "README.md").read_text().split())
    assert re.search(
        r"x = \(pixel - 127\) / 128; a real input x is stored as round\(x / [\d.e-]+\) [+-] \d+, limited", told
    )
    assert re.search(r"of shape \d+, a number y stands for \(y [+-] \d+\) \* [\d.e-]+\.", told)


def test_bad_input_is_one_line_and_leaves_nothing(command, inputs, model, settled, tmp_path, left):
    (tmp_path / "float.tflite").write_bytes(export_tflite(settled[0], storage="dense").content)
    (tmp_path / "nothing.tflite").write_bytes(b"TFL3")
    before = left()
    for changes, message in (
        ({"model": inputs.model}, "--model must be a .tflite file. Received: "),
        ({"model": str(tmp_path / "float.tflite")}, "int8"),
        ({"model": str(tmp_path / "nothing.tflite")}, "Received: 4 bytes"),
        ({"model": str(tmp_path / "none.tflite")}, "No such file"),
        ({"board": "m0"}, "--board must be one of m3, m4, m7, m55. Received: m0"),
        ({"num_inputs": 0}, "--num_inputs must be at least 1. Received: 0"),
        ({"num_inputs": 10**6}, "--num_inputs must be at most the 96 images"),
        ({"preprocess": "auto"}, "--preprocess must say how pixels are scaled"),
    ):
        given = {"model": model} | changes
        outcome = write(command, given.pop("model"), inputs, tmp_path / "firmware", **given)
        assert outcome.code == 2, outcome
        assert message in outcome.error
        assert left() == before


def test_inputs_are_real_ones(command, inputs, model, tmp_path):
    folder = tmp_path / "firmware"
    assert write(command, model, inputs, folder, num_inputs=2).code == 0
    header = (folder / "images.h").read_text()
    images = re.findall(r"-?\d+", header[header.index("images") : header.index("expected")])[1:]
    values = np.array(images[: 2 * 8 * 8 * 3], int)
    assert len(np.unique(values)) > 50 and values.min() >= -128 and values.max() <= 127
