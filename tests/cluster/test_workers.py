"""Whatever happens to workers: the same bytes, or one clear error, and nothing left over."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import re
import signal
import subprocess

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.cluster.opening import open_crew
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import comparison, evaluation
from reflow_tf.jobs.inputs import open_sets
from reflow_tf.models.carrying import Address
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.loading import load_model
from reflow_tf.models.surgery import write_masks
from reflow_tf.repair.chain import run_chain
from reflow_tf.repair.contract import PrunedModel, read_weights, show_nothing
from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.patterns import Unstructured
from reflow_tf.sparsity.plan import make_plan
from reflow_tf.task import Task

pytestmark = pytest.mark.slow

SAMPLES = 600  # three shards of 256


@pytest.fixture(scope="session")
def given(wide_inputs, images, tmp_path_factory):
    """Paths of a network and of images for several shards, labels as the network says."""
    folder = tmp_path_factory.mktemp("given")
    model = keras.models.load_model(wide_inputs.model)
    x = images(2 * SAMPLES, seed=1)
    y = model(x.astype(np.float32) / np.float32(127.5) - 1, training=False).numpy().argmax(-1)
    np.savez(folder / "data.npz", x=x, y=y)
    (folder / "model.keras").write_bytes(pathlib.Path(wide_inputs.model).read_bytes())
    return {"model": str(folder / "model.keras"), "data": str(folder / "data.npz"), "preprocess": "tf"}


PRUNING = {"repair": "least_squares,reflow", "calibration_samples": SAMPLES, "batch_size": 16}


@pytest.fixture
def prune(start, finish):
    """Runs that command; returns the digest of its file."""

    def prune(given, folder, **options):
        done = start("prune", **given, **PRUNING, output_dir=folder, **options)
        _, errors = finish(done)
        assert done.returncode == 0, errors
        return hashlib.sha256((folder / "model.tflite").read_bytes()).hexdigest()

    return prune


@pytest.fixture(scope="session")
def digests():
    return {}


@pytest.mark.parametrize("workers", [None, 1, 2, 3, 7])
def test_the_file_is_the_same_whoever_computes(prune, given, tmp_path, workers, digests):
    options = {} if workers is None else {"workers": workers, "threads_per_worker": 1}
    digests[workers] = prune(given, tmp_path / "out", **options)
    config = json.loads((tmp_path / "out" / "report.json").read_text())["config"]
    assert (config["workers"], config["threads_per_worker"]) == (None if workers is None else str(workers), 1)
    assert len(set(digests.values())) == 1 and not any((tmp_path / "passing").iterdir())


@pytest.fixture(scope="session")
def several(images, tmp_path_factory):
    """Paths of a network that takes an image and a vector, and gives numbers twice, and of data for it."""
    folder = tmp_path_factory.mktemp("several")
    keras.utils.set_random_seed(0)
    image, vector = keras.Input((8, 8, 3), name="image"), keras.Input((6,), name="vector")
    seen = layers.BatchNormalization()(layers.Conv2D(24, 3)(layers.Rescaling(1 / 128, -1)(image)))
    seen = layers.GlobalAveragePooling2D()(layers.ReLU()(seen))
    both = layers.Dense(32, "relu")(layers.Concatenate()([seen, layers.Dense(16, "relu")(vector)]))
    keras.Model([image, vector], [layers.Dense(3)(both), layers.Dense(2, "sigmoid")(both)]).save(folder / "model.keras")
    x_vector = np.random.default_rng(0).normal(size=(2 * SAMPLES, 6)).astype(np.float32)
    np.savez(folder / "data.npz", x_image=images(2 * SAMPLES, seed=1).astype(np.float32), x_vector=x_vector)
    return {"model": str(folder / "model.keras"), "data": str(folder / "data.npz"), "target": "storage"}


def test_networks_of_several_inputs_and_outputs(prune, several, tmp_path):
    alone = prune(several, tmp_path / "alone")
    assert prune(several, tmp_path / "two", workers=2, threads_per_worker=1) == alone


class Killer:
    """A progress that ends a worker, as nothing but kill -9 can, when a pass has come so far."""

    def __init__(self, crew, stage, after):
        self._crew, self._stage, self._after = crew, stage, after
        self.victims = []

    def __call__(self, items, description, /):
        for number, item in enumerate(items):
            if description == self._stage and number == self._after and not self.victims:
                self.strike()
            yield item

    def strike(self):
        (victim, *_) = self._crew._client.run(os.getpid).values()
        self.victims.append(victim)
        os.kill(victim, signal.SIGKILL)


def pruned_model(given):
    model = keras.models.load_model(given["model"])
    kernels = find_kernels(model)
    specs = [spec for spec in kernels.specs if spec.path.startswith(("conv_1", "conv_2"))]
    weights = kernels.read()
    scores = {spec.path: np.abs(weights[spec.path]) for spec in specs}
    patterns = {spec.path: Unstructured() for spec in specs}
    plan = make_plan(specs, scores, patterns, ALLOCATIONS["global"], 0.7)
    masks = build_masks(plan, scores)
    dense = read_weights(model)
    write_masks(kernels, masks)
    return PrunedModel(model, masks, dense), plan


def job_of(given, **options):
    return JobConfig(**given, output_dir="", calibration_samples=SAMPLES, batch_size=16, **options)


@contextlib.contextmanager
def two_workers(given, workers="2"):
    loaded = load_model(given["model"], preprocess="tf")
    calibration, *_ = open_sets(job_of(given), loaded, Task.CLASSIFICATION)
    with open_crew(workers, 1, Address.of(given["model"])) as crew:
        yield crew, calibration


@pytest.mark.parametrize(
    ("chain", "stage", "after"),
    [("least_squares", "Refitting layer by layer", 7), ("reflow", "Recalibrating", 50)],
)
def test_a_worker_that_dies_costs_time_and_nothing_else(given, chain, stage, after):
    with two_workers(given) as (crew, calibration):
        found = []
        killer = Killer(crew, stage, after)
        for progress in (show_nothing, killer):
            pruned, plan = pruned_model(given)
            run_chain([chain], pruned, calibration, progress, plan=plan, crew=crew)
            found.append(pruned.read_weights())
    assert killer.victims
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_everybody_computes(given):
    """Who was told first has what all need: Dask alone would give it everything."""
    busy = []
    count_works = lambda: len(importlib.import_module("reflow_tf.cluster.desk")._SEATS)  # noqa: E731, sent by value
    with open_crew("2", 1) as crew:

        def look(items, description, /):
            for number, item in enumerate(items):
                if number == 50:
                    busy.append(list(crew._client.run(count_works).values()))
                yield item

        evaluation.evaluate(EvaluateConfig(**given, batch_size=4), progress=look, crew=crew)
    assert busy == [[1, 1]]


def test_a_worker_that_dies_while_it_computes_costs_no_image(given):
    config = EvaluateConfig(**given, batch_size=4)
    expected = evaluation.evaluate(config)
    with open_crew("2", 1) as crew:
        killer = Killer(crew, "Evaluating", 60)
        assert evaluation.evaluate(config, progress=killer, crew=crew) == expected
    assert killer.victims


METHODS = {"magnitude": PruneConfig(repair="none"), "obs": PruneConfig(repair="none", criterion="obs")}


def test_a_worker_that_dies_costs_no_cell(given, tmp_path, monkeypatch):
    crews, victims = [], []
    open_crew, write = comparison.open_crew, comparison.write_texts

    @contextlib.contextmanager
    def remembered(*args):
        with open_crew(*args) as crew:
            crews.append(crew)
            yield crew

    def write_and_strike(*args):
        write(*args)
        if len(crews) == 2 and not victims:
            killer = Killer(crews[1], "", 0)
            killer.strike()
            victims.extend(killer.victims)

    monkeypatch.setattr(comparison, "open_crew", remembered)
    monkeypatch.setattr(comparison, "write_texts", write_and_strike)
    found = []
    for name in ("whole", "struck"):
        job = dataclasses.replace(job_of(given, workers="2", threads_per_worker=1), output_dir=str(tmp_path / name))
        found.append(comparison.run(job, METHODS, [0.5, 0.7, 0.8], "1")["cells"])
    assert victims and len(found[0]) == 6
    whole, struck = ([{**cell, "seconds": None} for cell in cells] for cells in found)
    assert whole == struck


def test_workers_that_are_already_there_give_the_same_file(prune, given, tmp_path, farm, digests):
    farm.hire()
    farm.hire()
    options = {"workers": farm.address, "threads_per_worker": 1}
    assert prune(given, tmp_path / "out", **options) == (digests.get(1) or prune(given, tmp_path / "own"))


def test_a_scheduler_that_dies_is_one_clear_error_and_cells_are_kept(start, finish, wait_until, given, tmp_path, farm):
    farm.hire()
    job = {"workers": farm.address, "threads_per_worker": 1, "batch_size": 8, "methods": "obs,cbs"}
    running = start("compare", **given, **job, output_dir=tmp_path / "out")
    wait_until((tmp_path / "out" / "compare.json").exists)
    farm.scheduler.kill()
    _, errors = finish(running)
    assert running.returncode == 2
    assert errors.splitlines()[-1].startswith("error: The scheduler must be there until the work is done. Received: ")
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["cells"]


def test_a_scheduler_that_is_not_there_is_refused(start, finish, given):
    done = start("evaluate", **given, workers="tcp://127.0.0.1:1")
    _, errors = finish(done)
    assert done.returncode == 2 and errors.startswith("error: --workers must be a number, or the address tcp://")
    assert errors.endswith("Received: tcp://127.0.0.1:1\n") and errors.count("\n") == 1


def test_workers_with_another_version_are_refused(given, farm, tmp_path):
    stub = tmp_path / "stub" / "reflow_tf"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("__version__ = '0.0.1'\n")
    farm.hire(PYTHONPATH=str(stub.parent))
    with pytest.raises(InputError, match=r"Workers must have the reflow_tf of .*Received: 0\.0\.1 .* at tcp://"):
        evaluation.run(EvaluateConfig(**given, workers=farm.address))


def test_a_path_that_workers_do_not_see_is_refused(given, farm, tmp_path):
    farm.hire()
    moved = {**given, "data": str(tmp_path / "moved.npz")}
    pathlib.Path(moved["data"]).write_bytes(pathlib.Path(given["data"]).read_bytes())
    with two_workers(moved, farm.address) as (crew, calibration):
        pathlib.Path(moved["data"]).unlink()
        pruned, plan = pruned_model(given)
        before = pruned.read_weights()
        with pytest.raises(InputError, match=r"Received: .*moved\.npz.* \(in a worker\)"):
            run_chain(["least_squares"], pruned, calibration, show_nothing, plan=plan, crew=crew)
    assert all(map(np.array_equal, before, pruned.read_weights()))


def test_other_threads_than_workers_run_with_are_refused(given, farm):
    farm.hire()
    config = EvaluateConfig(**given, workers=farm.address, threads_per_worker=1)
    assert evaluation.run(config) == evaluation.run(config)
    with pytest.raises(InputError, match=r"as many threads as they started with.* Received: 2, .* runs with 1"):
        evaluation.run(dataclasses.replace(config, threads_per_worker=2))


def members(session):
    listed = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
    lines = (line.split(None, 2) for line in listed.splitlines()[1:])
    return [args for sid, state, args in lines if sid == str(session) and not state.startswith("Z")]


@pytest.mark.parametrize("stop", [lambda pid: os.killpg(pid, signal.SIGINT), lambda pid: os.kill(pid, signal.SIGTERM)])
def test_what_is_interrupted_ends_with_all_its_workers(start, finish, wait_until, given, tmp_path, stop):
    running = start("compare", **given, workers=2, threads_per_worker=1, batch_size=4, output_dir=tmp_path / "out")
    wait_until((tmp_path / "out" / "compare.json").exists)
    assert len(members(running.pid)) >= 3
    stop(running.pid)
    _, errors = finish(running)
    assert running.returncode == 2 and "Traceback" not in errors
    assert errors.endswith("results are written whole or not at all; the same command goes on from there\n")
    wait_until(lambda: not members(running.pid))  # the last ones are still being taken apart
    assert not any((tmp_path / "passing").iterdir())
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["cells"]


def test_memory_that_does_not_suffice_for_each_of_them(start, finish, given, tmp_path):
    options = {**given, **PRUNING, "workers": 2, "threads_per_worker": 1, "output_dir": tmp_path / "out"}
    refused = start("prune", **options, memory_budget=10_000)
    _, errors = finish(refused)
    told = r"--memory_budget must be at least [\d,]+ .* in each of 2 workers\. Received: 10,000"
    assert refused.returncode == 2 and re.search(told, errors), errors
    assert not (tmp_path / "out").exists() and not any((tmp_path / "passing").iterdir())
