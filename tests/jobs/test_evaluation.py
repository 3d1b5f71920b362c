"""Scores of finished files: those that the run itself reported, to the last digit."""

import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.jobs.evaluation import evaluate, measure_parity, require_classifier
from reflow_tf.jobs.scoring import rank_outputs
from reflow_tf.report.interval import wilson_interval
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.signal import measure_signal
from reflow_tf.tools import evaluate as tool


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """Folder and report of a run that prepares its images in a way that only its config.json tells."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    flags = {"data": inputs.data, "eval_data": inputs.heldout, "preprocess": inputs.preprocess}
    prune = PruneConfig(sparsity=0.5, target="storage")
    return folder, pipeline.run(JobConfig(inputs.model, str(folder), prune, quantize="int8", **flags))


@pytest.mark.parametrize("name, stage", [("model.keras", "repaired"), ("model.tflite", "file")])
@pytest.mark.parametrize("batch_size", [1, 128])
def test_scores_are_those_of_the_report(finished, inputs, name, stage, batch_size):
    folder, report = finished
    score = evaluate(EvaluateConfig(str(folder / name), inputs.heldout, batch_size=batch_size)).accuracy
    expected = report["accuracy"][stage]
    assert {"top1": score.top1, "top5": score.top5, "n": score.n} == {
        name: expected[name] for name in ("top1", "top5", "n")
    }
    assert list(score.top1_interval) == expected["top1_interval"]


def test_beside_a_reference_no_labels_are_needed(command, finished, inputs, tmp_path):
    """How often the file names the class that the repaired model names, by their outputs."""
    folder, _ = finished
    with np.load(inputs.heldout) as archive:
        np.savez(tmp_path / "x.npz", x=archive["x"])
    given = {"model": str(folder / "model.tflite"), "reference": str(folder / "model.keras")}
    unlabelled = evaluate(EvaluateConfig(data=str(tmp_path / "x.npz"), **given))
    assert unlabelled.accuracy is None and unlabelled.agreement.n == 96
    file, model = (np.argmax(outputs, axis=1) for outputs in outputs_of(folder, inputs))
    assert unlabelled.agreement.top1 == np.mean(file == model)
    first, second = command(tool, **given, data=inputs.heldout).out.splitlines()
    assert first.startswith("top-1 ") and second.startswith("same class as the reference ")
    same = evaluate(EvaluateConfig(given["reference"], inputs.heldout, reference=given["reference"]))
    assert same.agreement.top1 == 1.0


def test_probabilities_as_numbers(finished, inputs):
    """--task=fidelity: how far the same outputs are apart, as it follows from them by hand."""
    folder, _ = finished
    config = EvaluateConfig(
        *(str(folder / "model.tflite"), inputs.heldout), reference=str(folder / "model.keras"), task="fidelity"
    )
    found = evaluate(config)
    assert found.accuracy is None and found.agreement is None
    file, model = outputs_of(folder, inputs)
    expected = np.sqrt(np.mean(np.square(file - model)) / np.mean(np.square(model)))
    assert found.fidelity.relative_error == pytest.approx(expected, rel=1e-4) and 0 < expected < 0.2


def outputs_of(folder, inputs):
    """Of the file and of the model, for the held-out images."""
    with np.load(inputs.heldout) as archive:
        x = archive["x"].astype(np.float32) / np.float32(127.5) - 1
    model = keras.models.load_model(folder / "model.keras")
    return LiteRT((folder / "model.tflite").read_bytes()).run(x), model(x, training=False).numpy()


def test_a_reference_of_other_outputs_is_refused(finished, inputs, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(7)])
    model.save(tmp_path / "other.keras")
    for task in ("auto", "fidelity"):
        config = EvaluateConfig(
            str(finished[0] / "model.tflite"), inputs.heldout, reference=str(tmp_path / "other.keras"), task=task
        )
        with pytest.raises(InputError, match=r"give what --model gives, \(\d+,\)\. Received: .+other.keras, .+\(7,\)"):
            evaluate(config)


def test_the_command_prints_the_score(command, finished, inputs):
    folder, report = finished
    outcome = command(tool, model=folder / "model.tflite", data=inputs.heldout)
    top1 = report["accuracy"]["file"]["top1"]
    low, high = wilson_interval(round(96 * top1), 96)
    assert outcome.out == f"top-1 {top1:.2%} (95 % interval {low:.2%} to {high:.2%})   n = 96\n"
    assert (outcome.code, outcome.err) == (0, "")


def test_without_config_json_the_pixels_stay_as_they_are(finished, inputs, tmp_path):
    folder, report = finished
    shutil.copy(folder / "model.tflite", tmp_path / "model.tflite")
    alone = str(tmp_path / "model.tflite")
    raw = evaluate(EvaluateConfig(alone, inputs.heldout))
    assert raw == evaluate(EvaluateConfig(str(folder / "model.tflite"), inputs.heldout, preprocess="none"))
    assert raw.accuracy.top1 != report["accuracy"]["file"]["top1"]
    told = evaluate(EvaluateConfig(alone, inputs.heldout, preprocess=inputs.preprocess))
    assert told.accuracy.top1 == report["accuracy"]["file"]["top1"]


def test_home_is_spelled_with_a_tilde(finished, inputs, monkeypatch):
    folder, report = finished
    monkeypatch.setenv("HOME", str(folder))
    for name, stage in (("model.tflite", "file"), ("model.keras", "repaired")):
        score = evaluate(EvaluateConfig(f"~/{name}", inputs.heldout)).accuracy
        assert score.top1 == report["accuracy"][stage]["top1"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"preprocessing": 3}',
        '{"preprocessing": {"size": "ab"}}',
        '{"preprocessing": {"size": [8]}}',
        "\xff",
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_config_json_of_something_else_is_not_guessed_at(finished, inputs, tmp_path, content):
    shutil.copy(finished[0] / "model.tflite", tmp_path)
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match="Received: "):
        evaluate(EvaluateConfig(str(tmp_path / "model.tflite"), inputs.heldout))
    evaluate(EvaluateConfig(str(tmp_path / "model.tflite"), inputs.heldout, preprocess="tf"))


def test_class_names_say_which_output_a_folder_means(finished, images, tmp_path):
    folder, _ = finished
    model = keras.models.load_model(folder / "model.keras")
    names = ["wolf", "ant", "emu", "cow"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    for index, image in enumerate(images(40, seed=9)):
        label = int(np.argmax(model(image[None].astype(np.float32) / np.float32(127.5) - 1, training=False)))
        if label < 3:
            path = tmp_path / "photos" / names[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    data = str(tmp_path / "photos")
    found = evaluate(EvaluateConfig(str(folder / "model.keras"), data, class_names=str(tmp_path / "names.txt")))
    assert found.accuracy.top1 == 1.0


BAD = {
    "no model": ({"model": None}, "--model is needed; see --help. Received: none"),
    "no data": ({"data": None}, "--data is needed; see --help. Received: none"),
    "missing file": ({"model": "none.tflite"}, "Received: none.tflite (No such file or directory)"),
    "missing reference": ({"reference": "none.keras"}, "--reference is opened as --model is: "),
    "no task": ({"task": "guess"}, "--task must be one of "),
    "no metric": ({"metric": "no_such_module:f"}, "--metric"),
    "missing model": ({"model": "none.keras"}, "must be an existing file. Received: none.keras"),
    "no .tflite": ({"model": "{t}/text.tflite"}, "{t}/text.tflite: A .tflite file must carry the identifier TFL3"),
    "half a .tflite": ({"model": "{t}/half.tflite"}, "{t}/half.tflite: "),
    "no labels": (
        {"data": "{i}/unlabelled.npz"},
        "needs labels (a folder of class sub-folders, or y), a --reference to ",
    ),
    "one output": ({"model": "{t}/one.keras"}, "must be a classifier"),
    "unknown scaling": ({"preprocess": "imagenet"}, "Received: imagenet"),
    "batch of nothing": ({"batch_size": 0}, "--batch_size must be at least 1. Received: 0"),
    "a flag of the other command": ({"sparsity": 0.5}, "Unknown command line flag 'sparsity'"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input(command, finished, inputs, tmp_path, left, case):
    content = (finished[0] / "model.tflite").read_bytes()
    (tmp_path / "half.tflite").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.tflite").write_text("hello")
    one = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    one.save(tmp_path / "one.keras")
    before = left()
    changed, expected = case
    flags = {"model": finished[0] / "model.tflite", "data": inputs.heldout} | changed
    places = {"t": tmp_path, "i": inputs.folder}
    outcome = command(tool, **{name: str(flag).format(**places) for name, flag in flags.items() if flag is not None})
    assert outcome.code == 2 and not outcome.out and left() == before
    assert expected.format(**places) in outcome.error and "Received: " in outcome.error


def test_outputs_that_are_no_numbers_have_no_best_class(inputs, settled, tmp_path):
    model = keras.models.clone_model(settled[0])
    model.get_layer("conv_1").kernel.assign(np.full((1, 1, 8, 24), 3e38))
    model.save(tmp_path / "overflowing.keras")
    with pytest.raises(InputError, match="must be finite"):
        evaluate(EvaluateConfig(str(tmp_path / "overflowing.keras"), inputs.heldout))


def test_ranks_of_batches_by_hand():
    batches = [np.array([[0.1, 0.7, 0.2]]), np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])]
    assert rank_outputs(batches, 3).tolist() == [[1, 2, 0], [0, 1, 2], [2, 0, 1]]


@pytest.mark.parametrize("num_outputs", [None, 0, 1])
def test_one_class_is_none(num_outputs):
    with pytest.raises(InputError, match=r"at least two .*Received: net"):
        require_classifier(num_outputs, "net")


def test_parity_is_of_the_images_whose_outputs_are_given(finished):
    model = keras.models.load_model(finished[0] / "model.keras")
    runtime = LiteRT(export_tflite(model).content)
    images = np.random.default_rng(0).uniform(-1, 1, (400, 8, 8, 3)).astype(np.float32)
    signal = measure_signal(model, np.split(images, 4))
    assert signal.outputs.shape == (256, 4) and len(signal.ranked) == 400
    parity = measure_parity(runtime, np.split(images, 4), signal.outputs)
    assert parity.n == 256 and parity.max_abs < 1e-5
    assert measure_parity(runtime, [images[:100]], signal.outputs[1:101]).max_abs > 1e-2


def test_the_runtime_knows_the_shape_of_its_output(finished):
    assert LiteRT((finished[0] / "model.tflite").read_bytes()).output_shape == (1, 4)
