"""What all tests share: small models, images and command lines; and no skips in CI.

A skip there is a test that nobody runs, so it fails. What passed in the README's own `pytest` is not run once more:
REFLOW_TF_PASSED is a file of `.ci/run`, written by the one run and read by the other.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import shutil
import sys
import time
import types

import hypothesis
import numpy as np
import pytest

# TensorFlow turns oneDNN on by itself only on some CPUs; tests have it on all, for convolutions with channels first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# How long a test takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


def _refuse_skip(report):
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"CI runs every test, and this one would not run. {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report():
    return _refuse_skip((yield))


def pytest_terminal_summary(terminalreporter, config):
    place, is_worker = os.environ.get("REFLOW_TF_PASSED"), hasattr(config, "workerinput")
    if place and not is_worker and not os.path.exists(place):
        passed = [report.nodeid for report in terminalreporter.getreports("passed") if report.when == "call"]
        pathlib.Path(place).write_text("\n".join(passed), encoding="utf-8")


def pytest_collection_modifyitems(config, items):
    place = os.environ.get("REFLOW_TF_PASSED")
    if place and os.path.exists(place):
        passed = set(pathlib.Path(place).read_text(encoding="utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]


class _Skipper:
    """The last of Python's finders: whoever imports a runtime for which this machine has no wheel is skipped.

    The extra `test` brings them wherever there are wheels; TFLM has some for x86-64 Linux alone.
    """

    REASONS = types.MappingProxyType(
        {
            "tflite_micro": "TFLM is not installed: pip install '.[tflm]', on x86-64 Linux",
            "ethosu": "Vela is not installed: pip install '.[vela]'",
            "playwright": "Playwright is not installed: pip install '.[web]'",
        }
    )

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in cls.REASONS:
            pytest.skip(cls.REASONS[name], allow_module_level=True)


sys.meta_path.append(_Skipper)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a user brings: a small network and images that it was made to be right about, all 4 classes among them.

    `preprocess` is part of it: with another one, the network is not right.
    """

    folder: pathlib.Path
    preprocess: str = "tf"

    def __getattr__(self, name):
        """The path of one of the files, spelled without its suffix: `inputs.model`, `inputs.data`."""
        (path,) = self.folder.glob(f"{name}.*")
        return str(path)


def build_classifier(num_classes=4, size=8, channels=3, batch_norms=True, num_outputs=1, widths=(8, 24, 24)):
    """A convolution, two 1x1 convolutions and a dense layer, with weights by seed."""
    import keras

    keras.utils.set_random_seed(7)
    inputs = keras.Input((size, size, channels), name="images")
    x = inputs
    for depth, width in enumerate(widths):
        x = keras.layers.Conv2D(width, 1 if depth else 3, padding="same", use_bias=False, name=f"conv_{depth}")(x)
        if batch_norms:
            x = keras.layers.BatchNormalization(momentum=0.0, name=f"norm_{depth}")(x)
        x = keras.layers.ReLU(name=f"relu_{depth}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    heads = [
        keras.layers.Dense(num_classes, activation="softmax", name=f"classes_{head}" if head else "classes")(x)
        for head in range(num_outputs)
    ]
    return keras.Model(inputs, heads if num_outputs > 1 else heads[0], name="small")


def make_images(num_images, seed, size=8, channels=3):
    """uint8 images of one colour each and some noise, so that networks without training tell them apart."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 216, (num_images, 1, 1, channels))
    return (colours + rng.integers(-40, 40, (num_images, size, size, channels))).astype(np.uint8)


def settle(model, images):
    """Gives batch norms the moments of these images, and the last layer a bias that makes all classes come up."""
    model(images, training=True)  # momentum 0
    head = model.get_layer("classes")
    probe = type(model)(model.input, head.input)
    features = probe(images, training=False).numpy()
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(head.kernel.shape).astype(np.float32) / features.std(axis=0).mean()
    head.set_weights([kernel, -features.mean(axis=0) @ kernel])
    return model


@pytest.fixture(scope="session")
def classifier():
    """`build_classifier`."""
    return build_classifier


@pytest.fixture(scope="session")
def images():
    """`make_images`."""
    return make_images


@pytest.fixture(scope="session")
def settled():
    """A settled classifier and float32 inputs for it."""
    inputs = make_images(96, seed=0).astype(np.float32) / 127.5 - 1
    return settle(build_classifier(), inputs), inputs


@pytest.fixture(scope="session")
def mark():
    """`mark(content, value, name)`: a .tflite file with an entry of metadata more, after those that it has."""
    from ai_edge_litert import schema_py_generated as schema

    from reflow_tf.export import flatbuffer

    def add(content, value, name=b"reduced_precision_support"):
        model = flatbuffer.parse(content)
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer, buffer.data = name, len(model.buffers), value
        model.metadata = [*(model.metadata or ()), entry]
        model.buffers.append(buffer)
        return flatbuffer.serialize(model)

    return add


@pytest.fixture(scope="session")
def int8_file():
    """An int8 .tflite with dense storage, four fifths of its weights zero, and float32 inputs for it."""
    from reflow_tf.export.tflite import export_tflite

    inputs = make_images(128, seed=0).astype(np.float32) / 127.5 - 1
    model = settle(build_classifier(widths=(8, 48, 64)), inputs)
    for layer in model.layers:
        if "conv" in layer.name:
            kernel = np.array(layer.kernel)
            layer.kernel.assign(kernel * (np.abs(kernel) >= np.quantile(np.abs(kernel), 0.8)))
    return export_tflite(model, quantize="int8", calibration=[inputs], storage="dense").content, inputs


@pytest.fixture(scope="session")
def inputs(settled, tmp_path_factory):
    """Files: model.keras; data.npz and heldout.npz, with the network's own predictions as labels; unlabelled.npz."""
    return _write_inputs(tmp_path_factory.mktemp("inputs"), settled[0])


@pytest.fixture(scope="session")
def wide_inputs(tmp_path_factory):
    """The same with a network whose kernels are large enough that bitmaps pay."""
    colours = make_images(96, seed=0).astype(np.float32) / 127.5 - 1
    return _write_inputs(tmp_path_factory.mktemp("wide"), settle(build_classifier(widths=(8, 48, 64)), colours))


def _write_inputs(folder, model):
    model.save(folder / "model.keras")
    for name, seed in (("data", 1), ("heldout", 2)):
        x = make_images(96, seed)
        y = model(x.astype(np.float32) / np.float32(127.5) - 1, training=False).numpy().argmax(-1)
        assert set(y) == set(range(4))
        np.savez(folder / f"{name}.npz", x=x, y=y)
    np.savez(folder / "unlabelled.npz", x=make_images(48, seed=3))
    return Inputs(folder)


@pytest.fixture(scope="session")
def strided(tmp_path_factory):
    """Path of a network as Keras pads it: XNNPACK can run it sparse once its stride-2 layers are turned."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), name="images")
    x = layers.Conv2D(16, 3, 2, padding="same", activation="relu", name="stem")(image)
    for block in (1, 2):
        x = layers.DepthwiseConv2D(3, block, padding="same", name=f"spatial_{block}")(x)
        x = layers.BatchNormalization(name=f"norm_{block}")(
            layers.Conv2D(96, 1, use_bias=False, name=f"wide_{block}")(x)
        )
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
    model = keras.Model(image, layers.Dense(4, activation="softmax", name="classes")(x), name="strided")
    settle(model, make_images(96, seed=0, size=32).astype(np.float32) / 127.5 - 1)
    path = tmp_path_factory.mktemp("strided") / "strided.keras"
    model.save(path)
    return str(path)


@contextlib.contextmanager
def skipped_without():
    """What the block needs is there, or the test is skipped with the line that brings it."""
    from reflow_tf.errors import InputError

    try:
        yield
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def web():
    """LiteRT.js, Chromium and Playwright are there, or the test is skipped."""
    from reflow_tf.runtimes.web import browser, litertjs

    with skipped_without():
        browser.require_parts()
        litertjs.installed_folder()


@pytest.fixture(scope="session")
def aarch64():
    """The emulated ARM machine is there, or the test is skipped."""
    from reflow_tf.runtimes.aarch64 import machine

    if not machine.is_set_up():
        pytest.skip(f"the aarch64 runtime is not set up: apt-get install qemu-user gcc libc6-dev, {machine.SET_UP}")


@pytest.fixture(scope="session")
def llvm():
    """llvm-mca is there, or the test is skipped."""
    from reflow_tf.runtimes.aarch64.cycles import find_tools

    with skipped_without():
        find_tools()


@pytest.fixture(scope="session")
def cortex_m():
    """The compiler and the emulator of Cortex-M are there, or the test is skipped."""
    from reflow_tf.runtimes.cortex_m.toolchain import require_toolchain

    with skipped_without():
        require_toolchain()


@pytest.fixture(scope="session")
def c_compiler():
    """A C compiler for this machine is there, or the test is skipped."""
    if not shutil.which("gcc"):
        pytest.skip("a C compiler is missing: apt-get install gcc libc6-dev")


@pytest.fixture(scope="session")
def make():
    """`make` is there, or the test is skipped."""
    if not shutil.which("make"):
        pytest.skip("make is missing: apt-get install make")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self):
        """The one line of a failure. Notes, and what took over two seconds, may come before it."""
        told = re.compile(r"[A-Z].*: [\d.]+ (s|min)|note: .*")
        lines = [line for line in self.err.splitlines() if not told.fullmatch(line)]
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)`: a folder that `make(folder)` fills once, for all processes that share the tests."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def get(name, make):
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / name).exists():
                part = root / f"{name}.part"
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                make(part)
                part.rename(root / name)
        return root / name

    return get


# Seconds until a test that waits for another process takes it for hung: far more than it needs on a busy machine.
_PATIENCE = 300


@pytest.fixture(scope="session")
def wait_until():
    """`wait_until(condition)`: waits for what another process brings about."""

    def wait(condition):
        end = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < end, f"after {_PATIENCE} s, this is not so"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def finish():
    """`finish(process)`: waits for its end; returns what it printed and its errors, where they are pipes."""

    def finish(process):
        try:
            return process.communicate(timeout=_PATIENCE)
        finally:
            process.kill()

    return finish


@pytest.fixture
def command(capsys):
    """Runs a command line in this process: command(prune, model="x", overwrite=True) -> Outcome."""

    def run(tool, *arguments, **flags):
        capsys.readouterr()
        code = tool.main(["tool", *arguments, *(f"--{name}={value}" for name, value in flags.items())])
        return Outcome(code, *capsys.readouterr())

    return run


def snapshot(folder):
    """Everything below a folder, hidden things included: path -> bytes, None for folders."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def left(tmp_path):
    """`left()`: everything below tmp_path now."""
    return lambda: snapshot(tmp_path)
