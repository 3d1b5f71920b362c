import functools
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.data.loading import load_evaluation
from reflow_tf.errors import InputError
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.loading import load_model
from reflow_tf.runtimes import device_script
from reflow_tf.runtimes.aarch64 import cpus, machine
from reflow_tf.runtimes.aarch64.runtime import DEFAULT_WHEEL, LARGEST_SPREAD, WHEELS, AArch64
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.targets.xnnpack import XNNPack


def build_eligible():
    """What XNNPACK runs sparse, given the zeros: a 3x3 stride-2 stem, padded by 1 all around, up to the mean."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), batch_size=1)
    x = layers.ZeroPadding2D(1)(image)
    x = layers.Conv2D(32, 3, 2, activation="relu")(x)
    x = layers.Conv2D(128, 1, activation="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Conv2D(128, 1, activation="relu")(x)
    return keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="session")
def files(aarch64):
    """The same weights, 90 % of the 1x1 ones zero, stored 'dense', 'sparse' and 'half' (sparse float16)."""
    model = build_eligible()
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer) is layers.Conv2D and layer.kernel_size == (1, 1):
            layer.kernel.assign(layer.kernel.numpy() * (rng.random(layer.kernel.shape) >= 0.9))
    return {
        "dense": export_tflite(model, storage="dense").content,
        "sparse": export_tflite(model).content,
        "half": export_tflite(model, quantize="float16").content,
        "two heads": export_tflite(keras.Model(model.input, [model.output, model.layers[1].output])).content,
    }


def images(count):
    return np.random.default_rng(1).standard_normal((count, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("wheel", WHEELS)
@pytest.mark.parametrize("name", ["dense", "sparse", "two heads"])
def test_outputs_are_those_of_x86(files, name, wheel):
    expected = LiteRT(files[name]).run(images(3))
    outputs = AArch64(files[name], wheel).run(images(3))
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="session")
def count(files):
    """`count(name, wheel)`: instructions of one inference, counted once for all tests."""
    return functools.cache(lambda name, wheel: AArch64(files[name], wheel).measure())


@pytest.mark.parametrize("wheel", WHEELS)
def test_sparse_weights_take_fewer_instructions(count, wheel):
    macs = 8 * 8 * (3 * 9 * 32 + 32 * 128 + 128 * 9 + 128 * 128)
    assert macs / 4 < count("dense", wheel) < macs  # four to a vector instruction; loads come on top
    assert count("sparse", wheel) < 0.6 * count("dense", wheel)


def test_another_process_counts_the_same(files, count):
    expected = pytest.approx(count("sparse", DEFAULT_WHEEL), rel=0, abs=LARGEST_SPREAD)
    assert AArch64(files["sparse"], DEFAULT_WHEEL).measure() == expected


@pytest.mark.parametrize("name", ["_APT_CONFIGURATION", "_PIP_OPTIONS", "_GCC_OPTIONS", "_PACKAGES", "_SOURCES"])
def test_another_way_to_build_it_is_another_folder(monkeypatch, name):
    before = machine._folder()
    given = getattr(machine, name)
    monkeypatch.setattr(machine, name, given + ("-x" if isinstance(given, str) else ("-x",)))
    assert machine._folder() != before


def test_sparse_float16_weights_run_as_sparse_float32_do(files, count):
    runtime = AArch64(files["half"])
    expected = LiteRT(files["half"]).run(images(1))
    np.testing.assert_allclose(runtime.run(images(1)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert runtime.measure() == pytest.approx(count("sparse", DEFAULT_WHEEL), rel=0.02)


def test_it_says_what_it_is(files):
    runtime = AArch64(files["dense"], "tflite-runtime==2.14.0")
    assert runtime.name.startswith("tflite-runtime 2.14.0, QEMU ")
    assert runtime.name.endswith(" as cortex-a76")
    assert (runtime.input_shape, runtime.output_shape) == ((1, 16, 16, 3), (1, 4))
    assert (runtime.unit, runtime.memory_bytes()) == ("instructions", None)


def test_bad_input(files):
    with pytest.raises(InputError, match=r"wheel must be one of ai-edge-litert==1\.4\.0, .*Received: litert"):
        AArch64(files["dense"], "litert")
    with pytest.raises(InputError, match="TFL3"):
        AArch64(b"no file")
    with pytest.raises(InputError, match=r"\(n, 16, 16, 3\).*Received: \(1, 8, 8, 4\)"):
        AArch64(files["dense"]).run(np.zeros((1, 8, 8, 4), np.float32))


def test_a_runtime_that_refuses_a_file_is_quoted(files, monkeypatch):
    runtime = AArch64(files["dense"])
    monkeypatch.setattr(runtime, "_content", files["dense"][:1000])
    with pytest.raises(InputError, match=r"ai-edge-litert==1\.4\.0 must take the file\. Received: 1000 bytes; .*Segm"):
        runtime.run(images(1))


def test_a_machine_that_is_not_there_says_how_to_bring_it(files, monkeypatch, tmp_path):
    monkeypatch.setenv("REFLOW_TF_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"set up, once: python -m reflow_tf\.tools\.setup_runtime --runtime=aarch64"):
        AArch64(files["dense"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get install -y --no-install-recommends qemu-user"):
        AArch64(files["dense"])


def test_the_guest_sees_no_packages_of_the_host(files, tmp_path):
    code = "import sys; print(*sys.path, sep='\\n'); print(sys.version_info[:2], sys.platform)"
    done = machine.find_machine().python(["-c", code], tmp_path)
    *paths, version = done.stdout.split("\n")[1:-1]
    assert version == "(3, 11) linux"
    assert all(str(machine.set_up()) in path for path in paths), paths


def test_the_count_is_of_the_guest_between_two_marks(files, tmp_path):
    """A loop's instructions are proportional to its length: exactly so, beyond the first difference."""
    code = """
import os
def turn(n):
    os.getpgid(0)
    for _ in range(n): pass
for n in (0, 1000, 2000, 3000, 0): turn(n)
"""
    machine.find_machine().python(["-c", code], tmp_path, tmp_path / "counted")
    marks = [int(line) for line in (tmp_path / "counted").read_text().split()]
    assert len(marks) == 5
    _, second, third = np.diff(np.diff(marks))
    assert second == pytest.approx(third, rel=0.05)
    assert 5_000 < third < 200_000


def test_without_marks_nothing_is_counted(files, tmp_path):
    machine.find_machine().python(["-c", "pass"], tmp_path, tmp_path / "counted")
    assert not (tmp_path / "counted").exists() or (tmp_path / "counted").read_text() == ""


def test_the_guest_runs_the_script_of_the_device_kit(files):
    with AArch64(files["dense"])._kit(images(1)) as folder:
        assert (folder / "run.py").read_text() == pathlib.Path(device_script.__file__).read_text()


@pytest.fixture(scope="module")
def embedded():
    """The embedded MobileNetV2, and 64 of its real images."""
    loaded = load_model("mobilenet_v2")
    images = load_evaluation(
        "fashion_mnist", preprocessing=loaded.preprocessing, num_classes=10, class_names_path=None, batch_size=64
    )
    return loaded.model, next(iter(images))


@pytest.mark.slow
def test_dense_float16_files_are_right_in_float16(aarch64, embedded):
    """64 real images: the same classes, from half the instructions; without float16 in the CPU, the same outputs."""
    model, images = embedded
    half = export_tflite(model, quantize="float16", storage="dense").content
    expected = LiteRT(half).run(images)
    in_float16 = AArch64(half).run(images)
    assert 1e-5 < np.abs(in_float16 - expected).max() < 0.05
    assert np.mean(in_float16.argmax(-1) == expected.argmax(-1)) >= 62 / 64
    np.testing.assert_allclose(AArch64(half, cpu="cortex-a72").run(images), expected, atol=1e-5)
    assert AArch64(half).measure() < 0.7 * AArch64(half, cpu="cortex-a72").measure()


@pytest.mark.parametrize("name", ["sparse", "half"])
def test_sparse_files_in_float16_are_as_wrong_as_the_warning_says(files, mark, name):
    """If this fails, XNNPACK was mended: `Version.breaks_in_float16`, the warnings and `export.half_precision`."""
    marked = mark(files[name], b"fp16accfp16")  # `half_precision.allow_float16` refuses such files
    assert XNNPack().judge(read_operators(marked)).corrupted_by
    expected = LiteRT(files[name]).run(images(3))
    try:
        outputs = AArch64(marked).run(images(3))
    except InputError as error:
        assert re.search(r"must take the file. Received: ", str(error))
    else:
        assert not np.abs(outputs - expected).max() <= 0.1 * np.abs(expected).max()


def test_a_cpu_without_dot_products_needs_more_instructions(aarch64):
    content = export_tflite(build_eligible(), quantize="int8", calibration=[images(8)]).content
    counts = {cpu: AArch64(content, cpu=cpu).measure() for cpu in cpus.CPUS}
    assert counts["cortex-a76"] < 0.8 * counts["cortex-a72"]
    assert counts["cortex-a53"] > 0.9 * counts["cortex-a72"]
    assert AArch64(content, cpu="cortex-a53").name.endswith(" as cortex-a53")


def test_a_cpu_that_is_not_known(aarch64):
    with pytest.raises(InputError, match=r"--cpu must be one of cortex-a53, cortex-a72, cortex-a76. Received: pentium"):
        machine.find_machine("pentium")
