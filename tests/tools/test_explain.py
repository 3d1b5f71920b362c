import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.export.tflite import export_tflite
from reflow_tf.tools import explain


def build(first_stride=2, size=16):
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(16, 3, first_stride, padding="same", activation="relu", name="stem")(image)
    x = layers.Conv2D(64, 1, activation="relu", name="project")(layers.DepthwiseConv2D(3, padding="same")(x))
    kernel = np.zeros((1, 1, 16, 64), np.float32)
    kernel[:, :, ::10] = 1
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D(name="pool")(x)))
    model.get_layer("project").kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    (folder / "good.tflite").write_bytes(export_tflite(build()).content)
    (folder / "never.tflite").write_bytes(export_tflite(build(1)).content)
    (folder / "bad.tflite").write_bytes(b"hello, hello")
    build().save(folder / "good.keras")
    build(size=None).save(folder / "open.keras")
    return folder


@pytest.mark.parametrize("name", ["good.tflite", "good.keras"])
def test_the_verdict_its_reasons_and_what_rewriting_would_do(command, folder, name):
    outcome = command(explain, model=folder / name)
    assert outcome.code == 0, outcome.err
    assert "LiteRT.js 2.5.3 cannot run this file sparse" in outcome.out
    assert "stem ... pool: 4 layers, run dense" in outcome.out
    assert "1,024 weights count, 87.5% of them zero; the threshold is 66.7 %" in outcome.out
    assert "  - stem: padding (0,1,0,1); needs 1 on every side\n    --rewrite=exact does it without" in outcome.out
    assert "With --rewrite=exact" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100


def test_a_file_that_runs_sparse_once_rewritten_is_told_its_speed_on_each_device(command, folder):
    outcome = command(explain, model=folder / "good.tflite")
    said = " ".join(outcome.out.split())
    speeds = re.findall(r"runs this file sparse, in 1 cluster\. In a browser it .+?; on ARM it .+?\.", said)
    assert len(speeds) == 1 and "would be" not in speeds[0]


def test_never_is_exit_code_3(command, folder):
    outcome = command(explain, model=folder / "never.tflite")
    assert outcome.code == 3
    assert "stride 1; the convolution that begins a cluster needs 2" in outcome.out


@pytest.fixture
def words(tmp_path):
    """A network of words, with a TANH behind them: GATHER and TANH are in TFLM, and C is generated for neither."""
    inputs = keras.Input((4,), dtype="int32")
    seen = layers.Dense(8, "tanh", name="squash")(layers.Flatten()(layers.Embedding(10, 8, name="look_up")(inputs)))
    keras.Model(inputs, layers.Dense(3, "softmax")(seen)).save(tmp_path / "words.keras")
    return tmp_path / "words.keras"


@pytest.mark.parametrize(
    ("target", "code", "reasons"),
    [
        ("cortex_m", 3, ["look_up: is a GATHER, for which there is no C kernel", "squash: is a TANH, for which"]),
        ("tflm", 0, []),  # Keras's SELECT, which TFLM lacks, is replaced, as prune does it
        ("ethos_u", 0, ["look_up: is a GATHER, which the U55 and the U65 leave to the CPU"]),
    ],
)
def test_what_stands_in_the_way_on_microcontrollers_is_told(command, words, target, code, reasons):
    outcome = command(explain, model=words, target=target)
    assert outcome.code == code, outcome
    told = outcome.out.split("\n  - ")[1:]
    assert len(told) >= len(reasons) and bool(told) == bool(reasons)
    assert all(any(line.startswith(reason) for line in told) for reason in reasons), told


def test_storage(command, folder):
    outcome = command(explain, model=folder / "never.tflite", target="storage")
    told, _, warning = outcome.out.partition("\n")
    assert (outcome.code, told) == (0, "Every zero saves storage; nothing is promised about speed.")
    assert warning.startswith("  Warning: Never force float16 arithmetic on this file ")


@pytest.mark.parametrize(
    ("recorded", "judge"),
    [
        ('{"target": "storage"}', "Every zero saves storage"),
        ('{"target": "moon"}', "LiteRT.js"),
        ('{"target": ["storage"]}', "LiteRT.js"),
        ("[1]", "LiteRT.js"),
        pytest.param("[" * 100_000, "LiteRT.js", id="deep"),
    ],
)
def test_the_target_that_the_pruning_tool_wrote_beside_the_file_is_the_default(
    command, folder, tmp_path, recorded, judge
):
    (tmp_path / "model.tflite").write_bytes((folder / "good.tflite").read_bytes())
    (tmp_path / "config.json").write_text(recorded)
    assert judge in command(explain, model=tmp_path / "model.tflite").out


def test_output(command, folder, tmp_path):
    outcome = command(explain, model=folder / "good.tflite", output=tmp_path / "verdict.json")
    assert outcome.code == 0
    written = json.loads((tmp_path / "verdict.json").read_text())
    assert written["as_given"]["eligible"] is False
    assert written["as_given"]["blockers"][0]["operator"] == "stem"
    assert written["rewritten"]["eligible"] is True
    assert written["applied"]
    assert [path.name for path in tmp_path.iterdir()] == ["verdict.json"]


def test_output_may_be_at_home(command, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command(explain, "--output=~/verdict.json", model=folder / "good.tflite").code == 0
    assert (tmp_path / "verdict.json").is_file()


@pytest.mark.parametrize("arguments", [[], ["--model={0}/good.tflite"], ["--model={0}/bad.tflite", "--output=/no/a"]])
def test_nothing_but_a_keras_model_needs_tensorflow(folder, arguments):
    code = (
        "import sys; from reflow_tf.tools import explain\n"
        f"explain.main(['explain', *{[argument.format(folder) for argument in arguments]}])\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--model is needed"),
        ({"model": "bad.tflite"}, "TFL3"),
        ({"model": "missing.tflite"}, "must be a readable file. Received: "),
        ({"model": "good.tflite", "image_size": 32}, "has its own weights and input size. Received: --image_size=32"),
        ({"model": "good.keras", "target": "moon"}, "--target must be one of"),
        ({"model": "bad.tflite", "output": "/no/folder/x.json"}, "--output must be a file in a folder that exists"),
        ({"model": "bad.tflite", "output": "/"}, "--output must be a file"),
        ({"model": "good.keras", "image_size": 0}, "--image_size must be at least 1"),
        ({"model": "open.keras"}, "or leave height and width open, for which --image_size stands"),
    ],
)
def test_bad_input_is_exit_code_2(command, folder, flags, message):
    if "model" in flags:
        flags = {**flags, "model": folder / flags["model"]}
    outcome = command(explain, **flags)
    assert outcome.code == 2
    assert message in outcome.error


def test_an_open_size_can_be_given(command, folder):
    assert command(explain, model=folder / "open.keras", image_size=16).code == 0


def test_a_model_that_is_not_pruned_yet_is_told_what_pruning_could_gain(command, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, 2, padding="same", name="stem")(image)  # 64 pixels, 216 weights each
    x = keras.layers.Conv2D(64, 1, name="wide")(x)  # 64 pixels, 512 weights each
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)).save(tmp_path / "dense.keras")
    outcome = command(explain, model=tmp_path / "dense.keras")
    assert "Run sparse, with 50%, 70%, 80%, 90% of each layer zero, it would be about" in outcome.out
    for place in ("in a browser", "on ARM"):
        (speeds,) = re.findall(rf"    (.+) times as fast as dense {place}\n", outcome.out)
        numbers = [float(number) for number in speeds.split(", ")]
        assert len(numbers) == 4 and numbers == sorted(numbers)


def test_channels_that_stand_and_fall_together_are_told(command, folder, tmp_path):
    outcome = command(explain, model=folder / "good.keras", pattern="channel", output=tmp_path / "groups.json")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "3 groups of channels that stand and fall together; from 2 of them" in said
    assert "16 channels of stem/kernel read by project/kernel" in said
    assert "must stay: is an output of the network" in said
    groups = json.loads((tmp_path / "groups.json").read_text())["groups"]
    macs = 64 * (27 * 16 + 9 * 16 + 16 * 64)
    assert (groups[0]["macs"], groups[0]["num_values"]) == (macs, 64 * 16)
    assert groups[0]["num_weights"] == 16 * (27 + 1 + 9 + 1 + 64)  # with biases


def test_channels_of_a_kernel_that_is_left_out_must_stay(command, folder):
    outcome = command(explain, model=folder / "good.keras", pattern="channel", prunable="project|dense")
    said = " ".join(outcome.out.split())
    assert outcome.code == 0 and "from 1 of them" in said
    assert "must stay: is left out by --prunable=project|dense" in said
    outcome = command(explain, model=folder / "good.keras", pattern="channel", prunable="nothing")
    assert outcome.code == 3 and "from 0 of them" in outcome.out
    outcome = command(explain, model=folder / "good.keras", prunable="project")
    assert outcome.code == 2 and "Received: --prunable=project alone" in outcome.err


def test_channels_of_a_file_are_refused(command, folder):
    outcome = command(explain, model=folder / "good.tflite", pattern="channel")
    assert outcome.code == 2 and "--pattern=channel needs a Keras model" in outcome.err
