"""A metric of the user's own: what it is given, where it is shown, and that what is wrong with it is told at once."""

import sys

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import metric, pipeline
from reflow_tf.jobs.evaluation import evaluate
from reflow_tf.tools.prune import main


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    """Folder with model.keras, which gives two numbers, and data.npz with targets near them."""
    folder = tmp_path_factory.mktemp("regressor")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((12,)), layers.Dense(16, activation="relu"), layers.Dense(2)])
    model.save(folder / "model.keras")
    x = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=model(x).numpy() + 0.01)
    return folder


@pytest.fixture
def scorer(monkeypatch):
    """Makes a function known as scorer:score, and remembers what it was given."""
    seen = []

    def known_as(function):
        def score(outputs, labels):
            seen.append((outputs, labels))
            return function(outputs, labels)

        module = type(sys)("scorer")
        module.score = score
        monkeypatch.setitem(sys.modules, "scorer", module)
        return seen

    return known_as


def minus_error(outputs, labels):
    return -np.abs(outputs - labels).mean()


def run(folder, out, data="data.npz", model="model.keras", **options):
    config = PruneConfig(target="storage", sparsity=0.5, repair="none")
    job = JobConfig(str(folder / model), str(out), config, data=str(folder / data), metric="scorer:score", **options)
    return pipeline.run(job)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_dense_model_the_repaired_one_and_the_file_are_scored(regressor, scorer, tmp_path, quantize):
    seen = scorer(minus_error)
    report = run(regressor, tmp_path / "out", quantize=quantize)
    found = report["metric"]
    values = {stage: score["value"] for stage, score in found["stages"].items() if score}
    assert found["name"] == "scorer:score" and found["stages"]["file"]["n"] == 20
    assert values["dense"] == pytest.approx(-0.01, abs=1e-5) and values["file"] < 2 * values["dense"]
    assert found["drop"] == pytest.approx(values["dense"] - values["file"])
    # by hand: the Keras model that was written, on the inputs that were held out
    outputs, labels = seen[0]
    assert outputs.shape == labels.shape == (20, 2)
    with np.load(regressor / "data.npz") as archive:
        chosen = [int(np.flatnonzero((archive["y"] == row).all(1))[0]) for row in labels]
        repaired = keras.models.load_model(tmp_path / "out" / "model.keras")(archive["x"][chosen]).numpy()
    assert values["repaired"] == pytest.approx(minus_error(repaired, labels), abs=1e-6)
    assert (values["file"] == values["repaired"]) == (quantize == "none")


def test_several_outputs_come_by_their_names_and_shapes(scorer, tmp_path):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 3), name="picture")
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    heads = [layers.Conv2D(2, 1, name="boxes")(x), layers.Dense(3, name="scores")(layers.GlobalMaxPooling2D()(x))]
    keras.Model(inputs, heads).save(tmp_path / "model.keras")
    rng = np.random.default_rng(0)
    wanted = {"y_boxes": rng.normal(size=(12, 4, 4, 2)), "y_scores": rng.integers(0, 3, 12)}
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(12, 6, 6, 3)).astype(np.float32), **wanted)
    seen = scorer(lambda outputs, labels: 1.0)
    run(tmp_path, tmp_path / "out")
    outputs, labels = seen[0]
    assert {name: array.shape for name, array in outputs.items()} == {"boxes": (6, 4, 4, 2), "scores": (6, 3)}
    assert {name: array.shape for name, array in labels.items()} == {"boxes": (6, 4, 4, 2), "scores": (6,)}
    model = keras.models.load_model(tmp_path / "model.keras")
    with np.load(tmp_path / "data.npz") as archive:
        chosen = [int(np.flatnonzero((archive["y_boxes"] == boxes).all((1, 2, 3)))[0]) for boxes in labels["boxes"]]
        boxes, scores = model(archive["x"][chosen])
    np.testing.assert_allclose(outputs["boxes"], boxes, atol=1e-5)
    np.testing.assert_allclose(outputs["scores"], scores, atol=1e-5)


def test_only_so_many_outputs_are_held(regressor, scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(metric, "MOST_BYTES", 5 * 2 * 4)
    seen = scorer(minus_error)
    report = run(regressor, tmp_path / "out")
    assert len(seen[0][0]) == len(seen[0][1]) == report["metric"]["stages"]["file"]["n"] == 5


def fail(outputs, labels):
    raise ValueError("boxes are missing")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fail, r"one number for \(outputs, labels\) \(boxes are missing\)\. Received: scorer:score"),
        (lambda outputs, labels: np.nan, r"must give a finite number\. Received: nan from scorer:score"),
        (lambda outputs, labels: None, r"--metric must give one number"),
        (lambda outputs, labels: sys.exit(0), r"\(it ends the program, by sys\.exit\)\. Received: scorer:score"),
        (lambda outputs, labels: outputs, r"--metric must give one number"),
    ],
)
def test_what_is_wrong_with_it_is_told_before_anything_is_pruned(
    regressor, scorer, tmp_path, monkeypatch, function, message
):
    scorer(function)
    monkeypatch.setattr(pipeline, "prune_given", lambda *_: pytest.fail("it was pruned"))
    with pytest.raises(InputError, match=message):
        run(regressor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_of_another_number_are_refused(regressor, scorer, tmp_path):
    scorer(minus_error)
    with np.load(regressor / "data.npz") as archive:
        np.savez(tmp_path / "data.npz", x=archive["x"], y=archive["y"][:7])
    with pytest.raises(InputError, match=r"y must be of as many samples as x, 40\. Received: shape \(7, 2\)"):
        run(regressor, tmp_path / "out", data=tmp_path / "data.npz")


def test_a_limit_without_anything_to_limit_is_refused(regressor, tmp_path):
    with pytest.raises(InputError, match=r"--max_metric_drop needs --metric, or a map of classes with labels"):
        run_without = JobConfig(
            *(str(regressor / "model.keras"), str(tmp_path / "out"), PruneConfig(target="storage")),
            data=str(regressor / "data.npz"),
            max_metric_drop=0.1,
        )
        pipeline.run(run_without)


@pytest.mark.parametrize(("limit", "code"), [("1000", 0), ("0.0001", 3)])
def test_the_gate_is_an_exit_code_and_a_sentence(regressor, scorer, tmp_path, capsys, limit, code):
    scorer(minus_error)
    flags = [f"--model={regressor}/model.keras", f"--data={regressor}/data.npz", "--target=storage", "--repair=none"]
    out = f"--output_dir={tmp_path}/out"
    assert main(["prune", *flags, out, "--metric=scorer:score", f"--max_metric_drop={limit}"]) == code
    said = capsys.readouterr()
    assert "By scorer:score: dense" in said.out
    assert ("was missed: the file lost" in said.err) == (code == 3)
    assert "By scorer:score" in (tmp_path / "out" / "report.html").read_text().replace("\xa0", " ")


def test_outputs_in_a_dict_have_its_keys_in_keras_and_in_the_file(scorer, tmp_path):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12,))
    x = layers.Dense(16, activation="relu")(inputs)
    heads = {"scores": layers.Dense(3, name="last")(x), "boxes": layers.Dense(4, name="first")(x)}
    keras.Model(inputs, heads).save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y_boxes=np.zeros((40, 4)), y_scores=np.zeros((40, 3)))
    seen = scorer(lambda outputs, labels: -float(np.abs(outputs["boxes"] - labels["boxes"]).mean()))
    report = run(tmp_path, tmp_path / "out")
    assert [output["name"] for output in report["fidelity"]["file"]["outputs"]] == ["boxes", "scores"]
    for model in ("model.keras", "model.tflite"):
        evaluate(EvaluateConfig(str(tmp_path / "out" / model), str(tmp_path / "data.npz"), metric="scorer:score"))
    keys = [(list(outputs), outputs["boxes"].shape[1]) for outputs, _ in seen]
    assert keys == [(["boxes", "scores"], 4)] * 5  # the dense one, the repaired one, the file; then those two again


def test_outputs_of_one_shared_layer_are_told_apart(scorer, tmp_path):
    keras.utils.set_random_seed(1)
    first, second = keras.Input((12,), name="first"), keras.Input((12,), name="second")
    tower = layers.Dense(4, name="tower")
    keras.Model([first, second], [tower(first), tower(second)]).save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 40, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_first=x[0], x_second=x[1])
    seen = scorer(lambda outputs, labels: 1.0)
    run(tmp_path, tmp_path / "out")
    shapes = [{name: part.shape[1:] for name, part in outputs.items()} for outputs, _ in seen]
    assert shapes == [{"tower": (4,), "tower_2": (4,)}] * 3
    assert not np.array_equal(seen[0][0]["tower"], seen[0][0]["tower_2"])
