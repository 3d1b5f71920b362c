"""Networks with a sigmoid for each of several labels, each a prediction of its own, from the labels to the report."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import comparison, pipeline
from reflow_tf.jobs.evaluation import evaluate
from reflow_tf.jobs.frontier.losses import ExpectedLoss
from reflow_tf.models.predictions import read_outputs
from reflow_tf.repair.contract import PrunedModel, read_weights
from reflow_tf.repair.distillation import distill
from reflow_tf.repair.divergence import measure_divergence
from reflow_tf.report.scores import score_iou
from reflow_tf.report.story import share_sentence
from reflow_tf.task import Task

LABELS = 6


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Folder with model.keras, and data.npz whose labels are those that the network says are on."""
    folder = tmp_path_factory.mktemp("labelled")
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    seen = layers.BatchNormalization()(layers.Conv2D(16, 3, use_bias=False)(image))
    seen = layers.Conv2D(32, 1, activation="relu")(layers.ReLU()(seen))
    logits = layers.Dense(LABELS, name="head")(layers.GlobalAveragePooling2D()(seen))
    model = keras.Model(image, logits, name="tagger")
    x = np.random.default_rng(0).standard_normal((96, 8, 8, 3)).astype(np.float32)
    z = model(x).numpy()
    head = model.get_layer("head")
    head.set_weights([head.kernel.numpy() / z.std(axis=0), -np.quantile(z, 0.7, axis=0) / z.std(axis=0)])
    model.save(folder / "logits.keras")
    model = keras.Model(image, layers.Activation("sigmoid")(model.output), name="tagger")
    model.save(folder / "model.keras")
    y = (model(x).numpy() > 0.5).astype(np.float32)
    assert y.mean(axis=0).min() > 0.1 and y.mean(axis=0).max() < 0.5
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


def make_job(folder, out, model="model.keras", quantize=None, **prune):
    settings = {"target": "storage", "prunable": "all", "sparsity": 0.4, "task": "multi_label"} | prune
    data = str(folder / "data.npz")
    return JobConfig(str(folder / model), str(out), PruneConfig(**settings), data=data, quantize=quantize)


@pytest.mark.parametrize(
    "target, quantize",
    [
        ("storage", "none"),
        ("tflm", "int8"),
        ("cortex_m", "int8"),
    ],
)
@pytest.mark.usefixtures("cortex_m")
def test_each_label_is_right_or_wrong(labelled, tmp_path, target, quantize):
    report = pipeline.run(make_job(labelled, tmp_path / "out", target=target, quantize=quantize))
    if target == "cortex_m":
        assert report["mcu"]["num_equal"] == report["mcu"]["num_compared"] > 0
    assert report["accuracy"]["dense"]["top1"] == 1.0 and report["accuracy"]["file"]["positions"] == LABELS
    assert 0.7 < report["accuracy"]["file"]["top1"] < 1.0
    assert report["metric"]["name"] == "mean IoU" and report["metric"]["stages"]["dense"]["value"] == 1.0
    # What is rightly off does not count.
    assert report["metric"]["stages"]["file"]["value"] < report["accuracy"]["file"]["top1"]
    assert report["parity"]["positions"] == LABELS and report["parity"]["top1_agreement"] > 0.9
    dense = report["signal"]["predictions"]["dense"]["histogram"]
    assert len(dense) == 2 and sum(dense) == LABELS * report["signal"]["n"]
    assert "over the labels of 48" in share_sentence(report)
    out = tmp_path / "out"
    assert keras.models.load_model(out / "model.keras").output_shape == (None, LABELS)
    for name in ("model.keras", "model.tflite"):
        given = str(out / name), str(labelled / "data.npz")
        found = evaluate(EvaluateConfig(*given, reference=str(labelled / "model.keras"), task="multi_label"))
        assert found.accuracy.positions == LABELS and found.accuracy.top1 == found.agreement.top1 < 1
        assert found.iou.value < found.accuracy.top1


@pytest.mark.slow
def test_labels_are_judged_as_what_they_are(labelled):
    """By whatever looks at outputs: the Fisher, sensitivity, least squares."""
    model, x = keras.models.load_model(labelled / "model.keras"), np.load(labelled / "data.npz")["x"]
    config = PruneConfig(target="storage", prunable="all", sparsity=0.5, task="multi_label", criterion="fisher")
    agreements = []
    for chain in ("none", "least_squares"):
        changed = {"allocation": "auto", "repair": chain}
        signals = reflow_tf.prune(model, dataclasses.replace(config, **changed), x, evaluation=x).report.signals
        assert signals["repaired"].num_classes == 2 and signals["repaired"].ranked.shape == (96, LABELS, 2)
        agreements.append(np.mean(signals["repaired"].ranked[..., 0] == signals["dense"].ranked[..., 0]))
    assert agreements[1] > max(agreements[0], 0.8)


def test_labels_are_distilled(labelled):
    model, x = keras.models.load_model(labelled / "model.keras"), np.load(labelled / "data.npz")["x"]
    config = PruneConfig(target="storage", prunable="all", sparsity=0.5, task="multi_label", repair="none")
    result = reflow_tf.prune(model, config, x)
    pruned = PrunedModel(result.model, result.masks, read_weights(model), Task.MULTI_LABEL)
    before = measure_divergence(*_predict(model, result.model, x))
    outcome = distill(pruned, [x], epochs=20)
    assert "divergence" in outcome.statement
    assert measure_divergence(*_predict(model, result.model, x)) < 0.7 * before


def _predict(model, pruned, x):
    """What is divergent, and from what: (n, labels, 2) each."""
    return [read_outputs(each(x, training=False).numpy(), 2, Task.MULTI_LABEL) for each in (pruned, model)]


def test_methods_are_compared(labelled, tmp_path):
    prune = PruneConfig(target="storage", repair="none", task="multi_label")
    job = JobConfig(str(labelled / "model.keras"), str(tmp_path / "out"), prune, data=str(labelled / "data.npz"))
    document = comparison.run(job, {"magnitude": prune}, [0.9], "1")
    assert document["dense"]["top1"] == 1.0 and document["dense"]["positions"] == LABELS
    assert document["cells"][0]["alone"]["top1"] < 1.0


class Constant:
    """A file that says the same of every input."""

    def __init__(self, row):
        self._row = np.array([row], np.float32)

    def run(self, batch):
        return np.repeat(self._row, len(batch), axis=0)


def test_points_that_a_file_is_expected_to_lose():
    loss = ExpectedLoss(Constant([0.9, 0.2]), [np.zeros((3, 1))], 2, Task.MULTI_LABEL)
    assert loss._best.tolist() == [[[1, 0], [0, 1]]] * 3  # on and not, the likelier first
    np.testing.assert_allclose(loss._of(np.array([[[0], [0]]] * 3))[0, :, 0], [0.1, 0.8], rtol=1e-6)


def test_labels_that_are_on_count():
    labels = np.array([[1, 0, 0], [1, 1, 0]])
    on = np.array([[1, 1, 0], [0, 1, 0]])
    ranked = np.stack([on, 1 - on], axis=-1)
    assert score_iou(ranked, labels, 2, Task.MULTI_LABEL).value == pytest.approx((1 / 2 + 1 / 2) / 2)  # no third
    assert score_iou(ranked, labels, 2).value == pytest.approx((2 / 4 + 2 / 4) / 2)


@pytest.mark.parametrize("ending", ["logits", "single"])
def test_what_has_no_sigmoid_for_each_label_is_refused(labelled, tmp_path, ending):
    single = keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(1, "sigmoid")])
    single.save(labelled / "single.keras")
    message = r"--task=multi_label needs a network that ends in a sigmoid for each of at least two labels.+ with [01]$"
    with pytest.raises(InputError, match=message):
        pipeline.run(make_job(labelled, tmp_path / "out", model=f"{ending}.keras"))
    with pytest.raises(InputError, match=message):
        evaluate(EvaluateConfig(str(labelled / f"{ending}.keras"), str(labelled / "data.npz"), task="multi_label"))
    model, x = keras.models.load_model(labelled / f"{ending}.keras"), np.load(labelled / "data.npz")["x"]
    with pytest.raises(InputError, match=message):
        reflow_tf.prune(model, PruneConfig(target="storage", task="multi_label"), x, evaluation=x)


def test_labels_tell_which_task_is_meant(labelled, tmp_path):
    with np.load(labelled / "data.npz") as archive:
        np.savez(tmp_path / "data.npz", x=archive["x"], y=archive["y"].astype(np.int64))
    given = str(labelled / "model.keras"), str(tmp_path / "out"), PruneConfig(target="storage")
    with pytest.raises(InputError, match=r"; or --task=multi_label, where each output is a label"):
        pipeline.run(JobConfig(*given, data=str(tmp_path / "data.npz")))


def test_several_outputs_are_no_labels():
    image = keras.Input((4,))
    model = keras.Model(image, [layers.Dense(3, "sigmoid")(image), layers.Dense(2, "sigmoid")(image)])
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    with pytest.raises(InputError, match=r"--task=multi_label needs one output\. Received: "):
        reflow_tf.prune(model, PruneConfig(target="storage", task="multi_label"), x)
