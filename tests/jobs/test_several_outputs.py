"""Networks with several outputs, lists and dicts of them: pruned, repaired, written, run, scored output by output."""

import json
import sys
import types

import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.jobs.evaluation import evaluate
from reflow_tf.models.channels.groups import find_channel_groups
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.joining import JOINED
from reflow_tf.models.loading import load_model
from reflow_tf.models.packing import count_outputs, pack, read_scales, undo_scales, unpack
from reflow_tf.report import page, terminal
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.sparsity.patterns import Channel

IMAGES = np.random.default_rng(0).integers(0, 255, (80, 8, 8, 3)).astype(np.uint8)
X = IMAGES.astype(np.float32)


def build(as_dict=True):
    """A stem, and two heads of very different size: a map of boxes, a thousand times as large, and scores."""
    keras.utils.set_random_seed(0)
    inputs = layers.Input((8, 8, 3), name="image")
    found = layers.Rescaling(1 / 128, -1)(inputs)
    for width in (16, 24):
        found = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 1)(layers.Conv2D(8, 3)(found))))
    boxes = layers.Rescaling(1000.0, name="boxes")(layers.Conv2D(4, 1, name="regress")(found))
    scores = layers.Dense(5, "sigmoid", name="scores")(layers.GlobalAveragePooling2D()(found))
    outputs = {"boxes": boxes, "scores": scores} if as_dict else [boxes, scores]
    return reflow_tf.recalibrate(keras.Model(inputs, outputs), X)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    build().save(folder / "model.keras")
    np.savez(folder / "data.npz", x=IMAGES)
    return folder


def flatten(outputs):
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def test_outputs_are_joined_and_separated_again():
    model = build()
    joined = pack(model, X)
    assert count_outputs(model) == 2 and count_outputs(joined) == 1
    boxes, scores = flatten(model(X))
    rows = joined(X).numpy()
    scales = read_scales(joined)
    for part, output, scale in zip((rows[:, :64], rows[:, 64:]), (boxes, scores), scales, strict=True):
        np.testing.assert_allclose(part, scale * output.reshape(80, -1), rtol=1e-5)
        assert np.sqrt(np.mean(part.astype(np.float64) ** 2)) == pytest.approx(1, rel=1e-4)
    raw = np.concatenate([output.reshape(80, -1) for output in (boxes, scores)], axis=1)
    np.testing.assert_allclose(undo_scales(rows, scales, (64, 5)), raw, rtol=1e-5)
    assert undo_scales(rows, (), (69,)) is rows
    again = unpack(joined, model)
    assert again.output_names == model.output_names and set(again.output) == {"boxes", "scores"}
    assert [a is b for a, b in zip(again.variables, model.variables, strict=True)] == [True] * len(model.variables)
    for mine, theirs in zip(flatten(again(X)), (boxes, scores), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_is_joined_stays_an_output_of_the_network():
    model = build()
    mine, theirs = (
        {
            span.variable.path: group.frozen
            for group in find_channel_groups(each)
            for span in group.spans
            if "regress" in span.variable.path or "scores" in span.variable.path
        }
        for each in (model, pack(model, X))
    )
    assert mine == theirs and "is an output of the network" in mine.values()


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"repair": "least_squares", "allocation": "auto"},
        {"repair": "auto"},
        {"criterion": "fisher", "repair": "moments"},
        {"max_size_bytes": 11_000},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_pruned_in_python(as_dict, changes):
    model = build(as_dict)
    config = PruneConfig(**{"target": "storage"} | ({} if "max_size_bytes" in changes else {"sparsity": 0.5}) | changes)
    result = reflow_tf.prune(model, config, X[:64], evaluation=X[64:])
    assert type(result.model.output) is type(model.output) and result.model.output_names == model.output_names
    assert JOINED not in [layer.name for layer in result.model.layers]
    kernels = find_kernels(result.model).read()
    assert all(not kernels[path][~mask].any() for path, mask in result.masks.items())
    # Neither head pays for the other, however large its numbers are.
    for found, dense in zip(flatten(result.model(X[64:])), flatten(model(X[64:])), strict=True):
        assert np.linalg.norm(found - dense) < 0.6 * np.linalg.norm(dense)
    dense = result.report.signals["dense"].outputs
    raw = np.concatenate([output.reshape(16, -1) for output in flatten(model(X[64:]))], axis=1)
    np.testing.assert_allclose(undo_scales(dense, result.report.scales, (64, 5)), raw, rtol=1e-4)


def test_channels_leave():
    model = build()
    config = PruneConfig(target="storage", pattern=Channel(), max_macs=0.8, channel_multiple=2)
    result = reflow_tf.prune(model, config, X)
    assert set(result.model.output) == {"boxes", "scores"} and result.model.count_params() < model.count_params()
    assert [tuple(output.shape) for output in result.model.outputs] == [tuple(output.shape) for output in model.outputs]


@pytest.mark.parametrize("quantize, target", [("none", "storage"), ("int8", "storage"), ("float16", "cpu")])
def test_from_the_model_to_the_report(folder, tmp_path, quantize, target):
    prune = PruneConfig(target=target, sparsity=0.4 if target == "storage" else 0.0, repair="least_squares")
    job = JobConfig(
        str(folder / "model.keras"), str(tmp_path / "out"), prune, data=str(folder / "data.npz"), quantize=quantize
    )
    report = pipeline.run(job)
    dense, ours = (load_model(str(path)).model for path in (folder / "model.keras", tmp_path / "out/model.keras"))
    file = LiteRT((tmp_path / "out/model.tflite").read_bytes())
    assert file.output_shape == (1, 69) and file.output_sizes == (64, 5)
    rows = np.concatenate([output.reshape(80, -1) for output in flatten(ours(X))], axis=1)
    tolerance = {"none": 1e-4, "float16": 1e-2, "int8": 0.25}[quantize]
    for part in (slice(0, 64), slice(64, 69)):  # in the order of Keras, each as Keras computes it
        difference = np.abs(file.run(X)[:, part] - rows[:, part]).max()
        assert difference <= tolerance * np.abs(rows[:, part]).max()
    scores = report["fidelity"]["file"]
    assert [output["name"] for output in scores["outputs"]] == dense.output_names
    errors = [output["relative_error"] for output in scores["outputs"]]
    assert scores["relative_error"] == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert report["parity"]["max_abs"] <= tolerance * np.abs(rows).max()
    assert "scores" in page.render(report)
    terminal.print_summary(report)
    assert json.loads((tmp_path / "out/config.json").read_text())["task"] == "fidelity"


def test_what_they_cannot_be(folder, tmp_path):
    prune = PruneConfig(target="storage", sparsity=0.5, task="classification")
    with pytest.raises(InputError, match="needs one output"):
        pipeline.run(
            JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), prune, data=str(folder / "data.npz"))
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cortex_m")
def test_each_output_of_generated_c_is_that_of_tflm(folder, tmp_path):
    prune = PruneConfig(target="cortex_m", sparsity=0.5)
    report = pipeline.run(
        JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), prune, data=str(folder / "data.npz"))
    )
    assert report["mcu"]["num_equal"] == report["mcu"]["num_compared"] > 0
    assert len(report["fidelity"]["file"]["outputs"]) == 2


def test_files_of_several_outputs_are_compared_and_scored(folder, tmp_path, monkeypatch):
    """Each output counts alike, whatever its size; a metric gets them by the names that whoever made them knows."""
    (tmp_path / "model.tflite").write_bytes(reflow_tf.export_tflite(build(), quantize="float16").content)
    data, model = str(folder / "data.npz"), str(folder / "model.keras")
    seen = []
    monkeypatch.setitem(
        sys.modules, "scorer", types.SimpleNamespace(count=lambda outputs, _: seen.append(outputs) or 7)
    )
    for path, names in ((str(tmp_path / "model.tflite"), None), (model, ["boxes", "scores"])):
        found = evaluate(EvaluateConfig(path, data, reference=model, metric="scorer:count", preprocess="none"))
        assert found.metric.value == 7 and found.fidelity.n == 80
        assert (found.fidelity.relative_error == 0) == (path == model) and found.fidelity.relative_error < 1e-2
        shapes = {name: output.shape for name, output in seen.pop().items()}
        assert list(shapes.values()) == [(80, 4, 4, 4), (80, 5)] and (names is None or list(shapes) == names)


def test_a_file_of_several_outputs_has_no_classes(folder, tmp_path):
    (tmp_path / "model.tflite").write_bytes(reflow_tf.export_tflite(build()).content)
    for path in (tmp_path / "model.tflite", folder / "model.keras"):
        for task, words in (
            ("auto", "needs a --reference to be compared with, or a --metric"),
            ("classification", "--task=classification needs one output. Received: .+ with 2"),
        ):
            with pytest.raises(InputError, match=words):
                evaluate(EvaluateConfig(str(path), str(folder / "data.npz"), preprocess="none", task=task))
