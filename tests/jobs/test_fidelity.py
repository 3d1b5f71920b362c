"""Networks whose outputs are numbers: no classes, no labels; scored by how far they are from the dense network."""

import functools
import json

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.config import PruneConfig
from reflow_tf.data.split import split_indices
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.jobs.frontier import network_workshop, search
from reflow_tf.jobs.frontier.devices import find_devices
from reflow_tf.models.loading import load_model
from reflow_tf.models.predictions import find_task
from reflow_tf.repair import chain
from reflow_tf.repair.choice import CANDIDATES
from reflow_tf.repair.distillation import distill
from reflow_tf.report import frontier, page, terminal
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.signal import has_collapsed
from reflow_tf.sparsity.patterns import Channel
from reflow_tf.task import Task

RNG = np.random.default_rng(0)
MIXING = RNG.standard_normal((5, 12))
MANY = (np.tanh(RNG.standard_normal((512, 5))) @ MIXING).astype(np.float32)
X = MANY[:96]


def build(*last, outputs=12):
    """An autoencoder with batch norms whose moments are those of X."""
    keras.utils.set_random_seed(0)
    hidden = [part for _ in range(2) for part in (layers.Dense(24), layers.BatchNormalization(), layers.ReLU())]
    model = keras.Sequential([layers.Input((12,)), *hidden, layers.Dense(outputs, name="numbers"), *last])
    return reflow_tf.recalibrate(model, MANY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of several kinds, and data.npz with y that is no class."""
    folder = tmp_path_factory.mktemp("fidelity")
    build().save(folder / "model.keras")
    build(outputs=1).save(folder / "one.keras")
    compiled = build()
    compiled.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    compiled.save(folder / "logits.keras")
    compiled.save(folder / "logits.h5")
    np.savez(folder / "data.npz", x=X, y=X)
    np.savez(folder / "classes.npz", x=X, y=np.arange(96) % 12)
    return folder


def run(folder, out, model="model.keras", data="data.npz", quantize=None, drop=None, **prune):
    config = PruneConfig(**{"target": "storage", "prunable": "all", "sparsity": 0.5} | prune)
    paths = {"data": str(folder / data), "max_accuracy_drop": drop}
    return pipeline.run(JobConfig(str(folder / model), str(out), config, quantize=quantize, **paths))


@pytest.mark.parametrize("target, quantize", [("storage", "none"), ("storage", "int8"), ("tflm", "int8")])
def test_from_the_model_to_the_report(folder, tmp_path, target, quantize):
    report = run(folder, tmp_path / "out", target=target, quantize=quantize, drop=100)
    assert report["accuracy"] is report["agreement"] is report["signal"]["predictions"] is None
    assert report["config"]["task"] == "fidelity" and report["gate"]["passed"]
    assert report["parity"]["top1_agreement"] is None and report["parity"]["n"] == 48
    dense, ours = load_model(str(folder / "model.keras")).model, load_model(str(tmp_path / "out/model.keras")).model
    # Half of the data is held out; on that half, by hand, of the Keras model that was written.
    held_out = split_indices([bytes([index]) for index in range(96)], 1000, 0).evaluation
    expected, found = dense(X[held_out]).numpy(), ours(X[held_out]).numpy()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    scores = report["fidelity"]
    assert scores["repaired"]["relative_error"] == pytest.approx(error, rel=1e-4)
    assert scores["file"]["relative_error"] == pytest.approx(error, rel=0.2 if quantize == "int8" else 1e-4)
    variation = np.sqrt(expected.var(axis=0).mean())
    assert scores["repaired"]["share_of_variation"] == pytest.approx(
        np.sqrt(np.mean((found - expected) ** 2)) / variation, rel=1e-4
    )
    low, high = scores["file"]["error_interval"]
    assert (
        low < scores["file"]["relative_error"] < high and scores["file"]["drop_points"] == report["gate"]["drop_points"]
    )
    assert "relative error of" in page.render(report) and "Fidelity of the file" in page.render(report)
    terminal.print_summary(report)


@pytest.mark.parametrize(
    "model, data, task, expected",
    [
        ("model.keras", "data.npz", "auto", "fidelity"),
        ("model.keras", "classes.npz", "auto", "classification"),
        ("model.keras", "classes.npz", "fidelity", "fidelity"),
        ("logits.keras", "classes.npz", "auto", "classification"),
        ("logits.h5", "classes.npz", "auto", "classification"),
        ("one.keras", "data.npz", "auto", "fidelity"),
    ],
)
def test_who_decides_what_outputs_are(folder, tmp_path, model, data, task, expected):
    report = run(folder, tmp_path / "out", model, data, task=task, repair="none")
    assert report["config"]["task"] == expected
    assert json.loads((tmp_path / "out/config.json").read_text())["task"] == expected


@pytest.mark.parametrize(
    "last, loss, expected",
    [
        ([layers.Softmax()], "mse", Task.CLASSIFICATION),
        ([], None, None),
        ([], "mse", Task.FIDELITY),
        ([], "huber", Task.FIDELITY),
        ([], "binary_crossentropy", None),
        ([layers.Dense(1)], "binary_crossentropy", Task.CLASSIFICATION),
        ([layers.Dense(1)], None, None),
        ([], keras.losses.CategoricalCrossentropy(from_logits=True), Task.CLASSIFICATION),
        ([], {"class_name": "SparseCategoricalCrossentropy", "config": {}}, Task.CLASSIFICATION),
        ([], {"class_name": "MeanSquaredError", "config": {}}, Task.FIDELITY),
        ([layers.Activation("sigmoid")], None, None),
        ([], "bce", None),
        ([], keras.losses.binary_crossentropy, None),
        ([], ["binary_crossentropy"], None),
        ([], keras.losses.BinaryFocalCrossentropy(), None),
        ([layers.Dense(1)], ["bce"], Task.CLASSIFICATION),
        ([], {"last": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}, Task.CLASSIFICATION),
        ([], {"last": "mse"}, Task.FIDELITY),
        ([], keras.losses.SparseCategoricalCrossentropy(name="main"), Task.CLASSIFICATION),
        ([], {"class_name": "function", "config": "sparse_categorical_crossentropy"}, Task.CLASSIFICATION),
        ([], lambda truth, given: given, Task.FIDELITY),
    ],
)
def test_the_graph_and_the_loss_say_what_outputs_are(last, loss, expected):
    model = keras.Sequential([layers.Input((12,)), *build().layers, *last])
    assert find_task(model, (12,), loss) is expected
    if loss is not None and not (isinstance(loss, dict) and "class_name" in loss):
        model.compile(loss=dict.fromkeys([model.layers[-1].name], *loss.values()) if isinstance(loss, dict) else loss)
        assert find_task(model, (12,)) is expected


@pytest.mark.parametrize(
    "given, words",
    [
        ({"model": "model.keras", "task": "classification"}, "y must hold one class index for each"),
        ({"model": "one.keras", "data": "classes.npz"}, "one that is a number: --task=fidelity"),
        ({"model": "one.keras", "task": "classification", "data": "classes.npz"}, "must be a classifier"),
    ],
)
def test_classes_that_are_none_are_refused(folder, tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        run(folder, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_whole_numbers_that_are_no_classes_need_a_word(folder, tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=np.zeros((96, 12), np.uint8))
    with pytest.raises(InputError, match=r"y must hold .*or --task=fidelity, which leaves it alone"):
        run(folder, tmp_path / "out", data=tmp_path / "data.npz")
    assert run(folder, tmp_path / "out", data=tmp_path / "data.npz", task="fidelity")["fidelity"]


def test_the_signal_of_numbers_collapses_too():
    model = build()
    dense = reflow_tf.measure_signal(model, X)
    assert dense.num_classes == 0 and dense.ranked.shape == (96, 0) and np.isnan(dense.confidence)
    outputs = model(X).numpy()
    assert dense.spread == pytest.approx(outputs.var(axis=0).mean(), rel=1e-5)
    assert not has_collapsed(dense, dense)
    kernel = model.get_layer("numbers").kernel
    kernel.assign(0.3 * kernel)  # 9 % of the variance at the outputs, all of it at the batch norms
    assert has_collapsed(reflow_tf.measure_signal(model, X), dense)


@pytest.mark.parametrize("criterion", ["magnitude", "fisher", "woodfisher", "cbs", "obs", "activation"])
def test_every_criterion(criterion):
    model = build()
    result = reflow_tf.prune(
        model,
        PruneConfig(target="storage", criterion=criterion, sparsity=0.3, repair="reflow"),
        X[:64],
        evaluation=X[64:],
    )
    dense, found = (result.report.signals[stage].outputs for stage in ("dense", "repaired"))
    assert np.linalg.norm(found - dense) < 0.9 * np.linalg.norm(dense)


@pytest.mark.parametrize("repair", ["moments", "least_squares", "obs,reflow", "woodfisher", "chita", "distill"])
def test_every_repair_brings_numbers_nearer(repair, monkeypatch):
    if repair == "distill":
        monkeypatch.setitem(chain.REPAIRS, "distill", functools.partial(distill, epochs=20))
    model = build()
    errors = {}
    for name in ("none", repair):
        config = PruneConfig(target="storage", sparsity=0.5, repair=name)
        result = reflow_tf.prune(model, config, MANY[:400], evaluation=MANY[400:])
        dense, found = (result.report.signals[stage].outputs for stage in ("dense", "repaired"))
        errors[name] = np.linalg.norm(found - dense) / np.linalg.norm(dense)
    assert errors[repair] < errors["none"]


def test_the_best_repair_is_the_nearest():
    result = reflow_tf.prune(build(), PruneConfig(target="storage", allocation="auto", repair="auto"), X)
    choice = result.report.repair[0]
    assert [tried.chain for tried in choice.tried] == list(CANDIDATES)
    best = min(tried.divergence for tried in choice.tried)
    assert best == next(tried.divergence for tried in choice.tried if f"chose {tried.chain}:" in choice.statement)
    assert 0 < best < 1  # a share of what outputs vary by


def test_channels_leave_by_what_they_do_to_numbers():
    model = build()
    config = PruneConfig(target="storage", pattern=Channel(), max_macs=0.7, repair="least_squares")
    result = reflow_tf.prune(model, config, X)
    assert result.model.count_params() < 0.8 * model.count_params()
    dense, found = model(X).numpy(), result.model(X).numpy()
    assert np.linalg.norm(found - dense) < 0.5 * np.linalg.norm(dense)


@pytest.mark.parametrize("quantize", ["none", "float16"])
def test_maps_of_numbers(tmp_path, quantize):
    """Super-resolution: a map of three colours is no map of three classes."""
    keras.utils.set_random_seed(0)
    inputs = layers.Input((8, 8, 3))
    wide = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(inputs)))
    twice = layers.UpSampling2D(2)(layers.Conv2D(3, 1)(wide))
    keras.Model(inputs, layers.Add()([twice, layers.UpSampling2D(2)(inputs)])).save(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=images)
    report = run(tmp_path, tmp_path / "out", quantize=quantize, repair="least_squares")
    assert report["fidelity"]["file"]["relative_error"] < report["fidelity"]["pruned"]["relative_error"]
    content = (tmp_path / "out/model.tflite").read_bytes()
    assert LiteRT(content).run(images[:2].astype(np.float32)).shape == (2, 16, 16, 3)


def test_a_gate_counts_the_relative_error(folder, tmp_path):
    report = run(folder, tmp_path / "out", drop=0.5)
    error = report["fidelity"]["file"]["relative_error"]
    assert report["gate"]["drop_points"] == pytest.approx(100 * error, abs=1e-3) and report["gate"]["passed"] is False


def test_a_search_for_the_file_to_ship(folder, tmp_path, monkeypatch):
    wanted = ("plain float32", "plain int8", "narrow 80 %, int8")
    every = network_workshop.list_candidates
    monkeypatch.setattr(
        network_workshop,
        "list_candidates",
        lambda *args, **options: [c for c in every(*args, **options) if c.name in wanted],
    )
    base = PruneConfig(target="storage", sparsity=0.0, repair="none")
    job = JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), base, data=str(folder / "data.npz"))
    found = search.run(search.Search(job, find_devices(["size"]), 5.0, "least_squares", None, "1"), ["frontier"])
    document = found.documents["size"]
    jsonschema.validate(document, frontier.schema())
    assert document["data"]["measure"] == "fidelity" and document["settings"]["task"] == "fidelity"
    cells = {cell["name"]: cell for cell in document["cells"]}
    assert set(cells) == set(wanted) and cells["plain float32"]["score"]["relative_error"] == 0.0
    int8 = cells["plain int8"]
    assert 0.3 < int8["expected_drop_points"] / int8["score"]["drop_points"] < 3  # 12 inputs judge
    assert "points of fidelity to the dense network" in frontier.headline(document).replace("\u00a0", " ")
    assert "fidelity" in frontier.format_table(document)[0] and frontier.render(document)
