import base64
import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import uuid
from importlib import resources

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.runtimes.runtime import make_inputs
from reflow_tf.runtimes.web import litertjs
from reflow_tf.runtimes.web.browser import Browser
from reflow_tf.runtimes.web.runtime import Web


@pytest.fixture(scope="module")
def browser(web):
    with Browser() as shared:
        yield shared


def make_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([layers.Input((6, 6, 3)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(5)])


def convert(function, batch_size=1, integers=None, custom=False):
    spec = tf.TensorSpec((batch_size, 6, 6, 3), tf.float32)
    concrete = tf.function(lambda x: function(x), autograph=False).get_concrete_function(spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    if integers:
        converter.optimizations = {tf.lite.Optimize.DEFAULT}
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([make_inputs((1, 6, 6, 3), seed)] for seed in range(10))
        converter.inference_input_type = converter.inference_output_type = integers
    converter.allow_custom_ops = custom
    return converter.convert()


@pytest.fixture(scope="module")
def content():
    return convert(make_model())


def find_processes(mark):
    """Processes with a variable in their environment, and what they started: id -> command line; pytest left out."""
    parents, found = {}, {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1]), command
            if mark in (folder / "environ").read_bytes().split(b"\0") and command:
                found[int(folder.name)] = command
        except OSError:  # it ended meanwhile
            continue
    found.pop(os.getpid(), None)
    # Chromium writes over the environment of its renderers.
    while new := {one: command for one, (parent, command) in parents.items() if parent in found and one not in found}:
        found |= new
    return found


@pytest.fixture
def children(monkeypatch):
    """`children()`: whatever was started during the test and still runs, id -> command line."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("REFLOW_TF_TEST", value)
    return lambda: find_processes(f"REFLOW_TF_TEST={value}".encode())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_outputs_are_those_of_litert(browser, batch_size):
    content = convert(make_model(), batch_size)
    batch = make_inputs((4, 6, 6, 3), seed=3)
    with Web(content, browser) as runtime:
        assert (runtime.input_shape, runtime.output_shape) == ((batch_size, 6, 6, 3), (batch_size, 5))
        outputs = runtime.run(batch)
    assert outputs.dtype == np.float32 and outputs.std() > 0.1
    np.testing.assert_allclose(outputs, LiteRT(content).run(batch), rtol=1e-5, atol=1e-6)


def test_integer_kernels_with_float_inputs(browser):
    content = convert(make_model(), integers=tf.float32)
    batch = make_inputs((2, 6, 6, 3))
    with Web(content, browser) as runtime:
        outputs = runtime.run(batch)
    np.testing.assert_allclose(outputs, LiteRT(content).run(batch), atol=0.05)


def test_two_files_in_one_page_do_not_mix(browser, content):
    model = make_model()
    negated = convert(lambda x: -model(x))
    batch = make_inputs((1, 6, 6, 3))
    with Web(content, browser) as first, Web(negated, browser) as second:
        assert second.memory_bytes() is None
        np.testing.assert_allclose(first.run(batch), -second.run(batch), rtol=1e-5)
        first.measure()
        np.testing.assert_allclose(first.run(batch), -second.run(batch), rtol=1e-5)
    assert browser.num_loaded == 0


def test_it_says_what_it_is_and_what_it_takes(browser, content):
    with Web(content, browser) as runtime:
        assert runtime.unit == "ms"
        assert runtime.name.startswith(f"LiteRT.js {litertjs.pinned_version()} (wasm, ")
        assert "1 thread)" in runtime.name and "in Chromium" in runtime.name
        assert 1 << 20 < runtime.memory_bytes() < 1 << 30


def test_the_cost_is_what_the_clock_of_the_page_says(web, content):
    with Browser() as own, Web(content, own) as runtime:
        # A clock that ticks once each time it is read: how fast this machine is does not matter.
        own._wait(own._page.evaluate("() => { let now = 0; performance.now = () => (now += 7); }"))
        assert runtime.measure() == 7


@pytest.mark.parametrize("shape", [(2, 6, 6, 1), (6, 6, 3), (0, 6, 6, 3)])
def test_samples_of_another_shape_are_refused(browser, content, shape):
    with Web(content, browser) as runtime, pytest.raises(InputError, match=r"\(n, 6, 6, 3\)"):
        runtime.run(np.zeros(shape, np.float32))


def test_files_that_litertjs_cannot_take_are_refused_and_the_next_runs(browser, content):
    # No Flatten or Reshape in it: those fix the batch.
    open_batch = keras.Sequential([layers.Input((6, 6, 3)), layers.Conv2D(2, 3)])
    for wrong, message in [
        (content[: len(content) // 2], "whole"),
        (b"no file at all", "whole"),
        (convert(make_model(), integers=tf.int8), "INT8 is not supported"),
        (convert(make_model(), integers=tf.uint8), "float32 inputs"),
        (convert(open_batch, batch_size=None), "fixed batch"),
    ]:
        with pytest.raises(InputError, match=message):
            Web(wrong, browser)
        assert browser.num_loaded == 0
    with Web(content, browser) as runtime:
        assert runtime.run(make_inputs((1, 6, 6, 3))).any()


def test_an_operator_that_litertjs_lacks_is_no_output_of_zeros(browser):
    # LiteRT.js 2.5.3 loads such a file, complains on the console only, and its run() gives zeros.
    content = convert(lambda x: tf.raw_ops.Betainc(a=tf.exp(x), b=tf.exp(x), x=tf.sigmoid(x)), custom=True)
    with Web(content, browser) as runtime:
        for use in (runtime.measure, lambda: runtime.run(make_inputs((1, 6, 6, 3)))):
            with pytest.raises(InputError, match="Betainc"):
                use()


@pytest.mark.parametrize("quantize", ["none", "float16"])
def test_sparse_kernels_run_there(browser, quantize):
    """The reason for this runtime: on x86 with AVX, LiteRT itself has none."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64, 64, 3))
    x = layers.Conv2D(16, 3, 2)(layers.ZeroPadding2D(1)(inputs))
    for width in (128, 128, 256):
        x = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU(6.0)(layers.Conv2D(width, 1)(x)))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel * (rng.random(kernel.shape) < 0.1), bias])
    dense, sparse = (export_tflite(model, quantize=quantize, storage=way).content for way in ("dense", "sparse"))
    assert len(sparse) < 0.6 * len(dense)
    batch = make_inputs((2, 64, 64, 3))
    with Web(dense, browser) as slow, Web(sparse, browser) as fast:
        outputs, expected = fast.run(batch), slow.run(batch)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(outputs, expected), "sparse kernels add in another order, so the last bits differ"


def test_a_browser_of_its_own_ends_with_it(web, content, children, wait_until):
    with Web(content) as runtime:
        assert any("chromium" in command for command in children().values())
        runtime.measure()
    wait_until(lambda: not children())
    runtime.close()


def test_a_crash_is_said_plainly(web, content, children, wait_until):
    with Web(content) as runtime:
        runtime.measure()
        renderers = [number for number, command in children().items() if "--type=renderer" in command]
        assert renderers
        for number in renderers:
            os.kill(number, signal.SIGKILL)
        with pytest.raises(InputError, match="Chromium must live"):
            runtime.run(make_inputs((1, 6, 6, 3)))
    wait_until(lambda: not children())


@pytest.mark.parametrize("whom", ["process", "terminal"])
def test_ctrl_c_leaves_nothing_behind(web, content, tmp_path, children, finish, wait_until, whom):
    (tmp_path / "model.tflite").write_bytes(content)
    code = (
        "import pathlib\n"
        "from reflow_tf.runtimes.web.runtime import Web\n"
        "with Web(pathlib.Path('model.tflite').read_bytes()) as runtime:\n"
        "    runtime.measure()  # imports numpy.random, which may swallow an interrupt\n"
        "    print('running', flush=True)\n"
        "    while True:\n"
        "        runtime.measure()\n"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as running:
        try:
            assert running.stdout.readline() == b"running\n"
            assert any("chromium" in text for text in children().values())
            # A terminal sends Ctrl-C to all of its processes, Playwright's own among them; a script to one.
            (os.killpg if whom == "terminal" else os.kill)(running.pid, signal.SIGINT)
            _, errors = finish(running)
        finally:
            running.kill()
    assert errors.decode().strip().endswith("KeyboardInterrupt") and "Future" not in errors.decode()
    wait_until(lambda: not children())


def test_more_threads_than_cores_are_refused(web, children, wait_until):
    with pytest.raises(InputError, match=f"CPU cores, {os.cpu_count()}. Received: 4096"):
        Browser(threads=4096)
    wait_until(lambda: not children())


def test_threads_change_no_output(web, content):
    threads = min(2, os.cpu_count())
    batch = make_inputs((2, 6, 6, 3))
    with Browser(threads) as browser, Web(content, browser) as runtime:
        assert f"{threads} thread" in runtime.name
        np.testing.assert_allclose(runtime.run(batch), LiteRT(content).run(batch), rtol=1e-5, atol=1e-6)


def test_what_is_missing_is_named(monkeypatch, tmp_path, content):
    monkeypatch.setenv("REFLOW_TF_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"setup_runtime --runtime=web. Received: no /"):
        litertjs.installed_folder()
    pytest.importorskip("playwright", reason="pip install playwright")
    with monkeypatch.context() as changed:
        changed.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError, match=r"apt-get install .* chromium"):
            Web(content)
    monkeypatch.setitem(sys.modules, "playwright.async_api", None)
    with pytest.raises(InputError, match=r"pip install playwright"):
        Web(content)


def test_a_chromium_that_does_not_start_is_named(web, monkeypatch, tmp_path, content):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InputError, match=f"a Chromium that starts.*{program}"):
        Web(content)


def make_archive(path, members):
    """A .tgz of (name, content), or of TarInfo objects without content."""
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def test_a_tarball_is_unpacked(tmp_path):
    archive = make_archive(tmp_path / "a.tgz", [("package/a.js", b"1"), ("package/wasm/b.wasm", b"22")])
    litertjs.unpack(archive, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in tmp_path.glob("out/**/*.*")}
    assert found == {"a.js": b"1", "wasm/b.wasm": b"22"}


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "member",
    [
        ("package/../../evil", b""),
        ("/package/evil", b""),
        ("elsewhere/evil", b""),
        special("package/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("package/hard", tarfile.LNKTYPE, "package/a"),
        special("package/device", tarfile.CHRTYPE),
    ],
)
def test_a_tarball_cannot_reach_out(tmp_path, member):
    archive = make_archive(tmp_path / "a.tgz", [member])
    with pytest.raises(InputError, match="plain files below package/"):
        litertjs.unpack(archive, tmp_path / "in" / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def read_lock():
    return json.loads(resources.files("reflow_tf.runtimes.web").joinpath("package-lock.json").read_text())


def test_the_lock_file_pins_everything():
    package = json.loads(resources.files("reflow_tf.runtimes.web").joinpath("package.json").read_text())
    packages = read_lock()["packages"]
    assert package["dependencies"] == packages.pop("")["dependencies"]
    assert package["dependencies"] == {"@litertjs/core": litertjs.pinned_version()}
    assert {place.removeprefix("node_modules/") for place in packages} == {"@litertjs/core", "@litertjs/wasm-utils"}
    for found in packages.values():
        assert found["resolved"].startswith("https://registry.npmjs.org/@litertjs/")
        assert found["integrity"].startswith("sha512-")


def test_set_up_takes_only_what_the_lock_file_promises(tmp_path, monkeypatch):
    archive = make_archive(tmp_path / "core.tgz", [("package/dist/index.js", b"export {};")])
    checksum = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    lock = read_lock()
    lock["packages"] = {
        "node_modules/@litertjs/core": {
            "version": "9.9.9",
            "resolved": archive.as_uri(),
            "integrity": f"sha512-{checksum}",
        }
    }
    monkeypatch.setenv("REFLOW_TF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(litertjs, "_lock", lambda: json.dumps(lock))
    folder = litertjs.set_up()
    assert folder == litertjs.installed_folder()
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["index.js"]
    archive.write_bytes(b"")  # the second time nothing is fetched
    assert litertjs.set_up() == folder
    lock["packages"]["node_modules/@litertjs/core"]["version"] = "9.9.10"
    with pytest.raises(InputError, match="checksum"):
        litertjs.set_up()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_several_outputs_come_in_one_row_an_input(browser, batch_size):
    image = keras.Input((6, 6, 3))
    found = layers.Conv2D(8, 3, activation="relu")(image)
    heads = [layers.Conv2D(2, 1)(found), layers.Dense(5)(layers.GlobalAveragePooling2D()(found))]
    content = convert(keras.Model(image, heads), batch_size)
    batch = make_inputs((4, 6, 6, 3), seed=3)
    with Web(content, browser) as runtime:
        assert (runtime.output_shape, runtime.output_sizes) == ((batch_size, 37), (32, 5))
        outputs = runtime.run(batch)
        assert runtime.measure() > 0
    np.testing.assert_allclose(outputs, LiteRT(content).run(batch), rtol=1e-5, atol=1e-6)


def test_several_inputs_of_floats_and_whole_numbers(browser):
    image, words = keras.Input((6, 6, 3)), keras.Input((4,), dtype="int32")
    seen = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))
    read = layers.Flatten()(layers.Embedding(10, 3)(words))
    content = export_tflite(keras.Model([image, words], layers.Dense(5)(layers.Concatenate()([seen, read])))).content
    rng = np.random.default_rng(0)
    batch = np.concatenate([rng.standard_normal((3, 108)), rng.integers(0, 10, (3, 4))], axis=1).astype(np.float32)
    with Web(content, browser) as runtime:
        assert (runtime.num_inputs, runtime.input_shape) == (2, (1, 112))
        outputs = runtime.run(batch)
        assert runtime.measure() > 0
    np.testing.assert_allclose(outputs, LiteRT(content).run(batch), rtol=1e-5, atol=1e-6)
