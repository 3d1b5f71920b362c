import json
import platform
import sys
import types

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs import benchmark
from reflow_tf.jobs.benchmark import Candidate, describe, measure_files, require_runtime
from reflow_tf.runtimes.latency import Spread
from reflow_tf.runtimes.litert import LiteRT


def make_model(seed=0, zeros=0.0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(32, 3), layers.Conv2D(64, 1), layers.Flatten()])
    kernel, bias = model.layers[1].get_weights()
    model.layers[1].set_weights([kernel * (np.random.default_rng(0).random(kernel.shape) >= zeros), bias])
    return model


@pytest.fixture(scope="module")
def dense():
    return Candidate("dense.tflite", export_tflite(make_model()).content)


@pytest.fixture(scope="module")
def sparse():
    return Candidate("sparse.tflite", export_tflite(make_model(zeros=0.9)).content)


class Another(LiteRT):
    """LiteRT with a name, a price and outputs of its own."""

    name, unit = "another", "instructions"

    def __init__(self, content, cost=4.0, error=0.0):
        super().__init__(content)
        self._cost, self._error = cost, error

    def measure(self):
        return self._cost

    def run(self, batch):
        outputs = super().run(batch)
        return outputs + self._error * np.abs(outputs).max()


def install(monkeypatch, *runtimes):
    """Makes --runtime=web open these, one for each file."""
    monkeypatch.setitem(
        benchmark.RUNTIMES,
        "web",
        lambda candidates, *_: [make(one.content) for make, one in zip(runtimes, candidates, strict=True)],
    )


def test_the_ratio_is_of_the_baseline(monkeypatch, dense, sparse):
    install(monkeypatch, lambda content: Another(content, 12.0), Another, lambda content: Another(content, 24.0))
    found = measure_files([sparse, dense], dense, runtime="web")
    assert (found.runtime, found.unit, found.rounds, found.warm_up) == ("another", "instructions", 1, 0)
    assert [file.label for file in found.all_files] == ["dense.tflite", "sparse.tflite", "dense.tflite"]
    assert found.baseline.speedup is None
    assert [file.speedup for file in found.files] == [Spread(3, 3, 3), Spread(0.5, 0.5, 0.5)]
    assert [file.costs for file in found.all_files] == [(12.0,), (4.0,), (24.0,)]


@pytest.mark.parametrize(("error", "differs"), [(0.0, False), (5e-4, False), (2e-3, True), (np.nan, True)])
def test_outputs_are_held_against_litert(monkeypatch, dense, error, differs):
    install(monkeypatch, lambda content: Another(content, error=error))
    (file,) = measure_files([dense], runtime="web").files
    assert file.differs is differs
    np.testing.assert_allclose(file.difference, error, rtol=1e-2)


def test_outputs_that_should_all_be_zero(monkeypatch):
    model = make_model()
    for layer in model.layers[:2]:
        layer.set_weights([np.zeros_like(weights) for weights in layer.get_weights()])
    content = export_tflite(model, storage="dense").content

    class Offset(Another):
        def run(self, batch):
            return super().run(batch) + 1

    install(monkeypatch, Offset, Another)
    found = measure_files([Candidate("offset", content), Candidate("right", content)], runtime="web")
    assert [file.difference for file in found.files] == [np.inf, 0]
    described = json.loads(json.dumps(describe(found), allow_nan=False))
    assert [(file["difference"], file["differs"]) for file in described["files"]] == [(None, True), (0, False)]


@pytest.mark.parametrize("turns", [{"rounds": 3}, {"warm_up": 0}])
def test_instructions_are_counted_once(monkeypatch, dense, turns):
    install(monkeypatch, Another)
    ((name, value),) = turns.items()
    with pytest.raises(InputError, match=rf"--{name} must be left out .*Received: {value}"):
        measure_files([dense], runtime="web", **turns)


def test_a_runtime_that_is_missing_is_said_at_once(monkeypatch, tmp_path):
    require_runtime("litert")
    with pytest.raises(InputError, match=r"web, aarch64, litert\. Received: tpu"):
        require_runtime("tpu")
    monkeypatch.setenv("REFLOW_TF_CACHE", str(tmp_path / "cache"))
    for program in ("chromium", "qemu-aarch64"):
        (tmp_path / program).touch(mode=0o755)
    monkeypatch.setitem(sys.modules, "playwright.async_api", types.ModuleType("playwright.async_api"))
    monkeypatch.setitem(sys.modules, "playwright", types.ModuleType("playwright"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("web", "aarch64"):
        with pytest.raises(InputError, match=f"setup_runtime --runtime={name}"):
            require_runtime(name)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    for name, package in (("web", "chromium"), ("aarch64", "qemu-user")):
        with pytest.raises(InputError, match=f"apt-get install .*{package}"):
            require_runtime(name)
    monkeypatch.setitem(sys.modules, "playwright.async_api", None)
    with pytest.raises(InputError, match="needs Playwright"):
        require_runtime("web")


def test_integer_arithmetic_may_differ(monkeypatch):
    batches = [np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3)).astype(np.float32)]
    content = export_tflite(make_model(), quantize="int8", calibration=batches).content
    install(monkeypatch, lambda content: Another(content, error=0.01))
    (file,) = measure_files([Candidate("int8", content)], runtime="web").files
    assert file.tolerance is None and not file.differs and file.difference > 1e-3


def test_dense_files_are_timed_on_this_machine(dense):
    found = measure_files([dense], dense, runtime="litert", rounds=7, warm_up=2)
    assert found.runtime.startswith("LiteRT 2.") and found.unit == "ms" and (found.rounds, found.warm_up) == (7, 2)
    assert all(len(file.costs) == 7 and min(file.costs) > 0 and file.difference is None for file in found.all_files)
    described = describe(found)
    assert platform.machine() in described["machine"]
    assert described["files"][0]["speedup"].keys() == {"median", "low", "high"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a machine with sparse kernels may measure them")
@pytest.mark.parametrize("is_baseline", [False, True])
def test_no_sparse_figure_on_x86(dense, sparse, is_baseline):
    model, baseline = (dense, sparse) if is_baseline else (sparse, dense)
    with pytest.raises(InputError, match=r"XNNPACK's sparse kernels are off.*Received: sparse\.tflite"):
        measure_files([model], baseline, runtime="litert")


def test_a_machine_with_sparse_kernels_measures_them(monkeypatch, dense, sparse):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert measure_files([sparse], dense, runtime="litert", rounds=1, warm_up=0).files[0].cost.median > 0


def test_what_cannot_be_run_is_named(dense):
    with pytest.raises(InputError, match=r"^broken\.tflite: .*whole"):
        measure_files([Candidate("broken.tflite", dense.content[:500])], dense, runtime="web")
    with pytest.raises(InputError, match=r"--threads must be 1 .* Received: 2"):
        measure_files([dense], runtime="aarch64", threads=2)
    with pytest.raises(InputError, match=r"web, aarch64, litert\. Received: tpu"):
        measure_files([dense], runtime="tpu")


def test_files_for_inputs_of_another_shape_are_not_compared(dense):
    image = keras.Input((4, 4, 3))
    other = export_tflite(keras.Model(image, keras.layers.Flatten()(image))).content
    with pytest.raises(InputError, match=r"inputs of one shape\. Received: \(1, 4, 4, 3\), "):
        measure_files([Candidate("other.tflite", other)], dense, runtime="litert")
