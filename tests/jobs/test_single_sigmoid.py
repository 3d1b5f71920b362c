"""Networks with a single sigmoid: two classes, from the labels to the report."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import comparison, pipeline
from reflow_tf.jobs.evaluation import evaluate
from reflow_tf.repair import choice
from reflow_tf.repair.choice import CANDIDATES
from reflow_tf.repair.divergence import Divergence
from reflow_tf.task import Task


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """Folder with model.keras, and data.npz whose labels are the network's own predictions."""
    folder = tmp_path_factory.mktemp("binary")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3, use_bias=False, name="stem"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 1, name="wide"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1, name="head"),
        ]
    )
    x = np.random.default_rng(0).standard_normal((64, 8, 8, 3)).astype(np.float32)
    z = model(x).numpy()[:, 0]
    head = model.get_layer("head")
    head.set_weights([head.kernel.numpy() / z.std(), np.array([-np.median(z) / z.std()])])
    model.save(folder / "logit.keras")
    model.add(layers.Activation("sigmoid"))
    model.save(folder / "model.keras")
    labels = (model(x).numpy()[:, 0] > 0.5).astype(np.uint8)
    assert 20 < labels.sum() < 44
    np.savez(folder / "data.npz", x=x, y=labels)
    return folder


def run(folder, out, model="model.keras", quantize=None, **prune):
    config = PruneConfig(**{"target": "storage", "prunable": "all", "sparsity": 0.6} | prune)
    job = JobConfig(str(folder / model), str(out), config, data=str(folder / "data.npz"), quantize=quantize)
    return pipeline.run(job)


@pytest.mark.parametrize("target, quantize", [("storage", "none"), ("storage", "int8"), ("tflm", "int8")])
def test_two_classes_everywhere(binary, tmp_path, target, quantize):
    report = run(binary, tmp_path / "out", target=target, quantize=quantize)
    assert report["model"]["num_classes"] == 2
    assert report["accuracy"]["dense"]["top1"] == 1.0
    assert 0.5 < report["accuracy"]["file"]["top1"] < 1.0
    assert len(report["signal"]["predictions"]["dense"]["histogram"]) == 2
    assert report["signal"]["predictions"]["dense"]["effective_classes"] > 1.8
    assert report["parity"]["top1_agreement"] > 0.9
    scores = {}
    for name, stage in (("model.keras", "repaired"), ("model.tflite", "file")):
        scores[stage] = evaluate(EvaluateConfig(str(tmp_path / "out" / name), str(binary / "data.npz"))).accuracy
        assert scores[stage].top5 is None and 0.5 < scores[stage].top1 < 1


@pytest.mark.slow
def test_the_best_repair_is_chosen_by_what_it_predicts(binary, tmp_path, monkeypatch):
    seen = []

    class Watched(Divergence):
        def add(self, outputs, dense):
            seen.append((outputs.shape[-1], self._task))
            super().add(outputs, dense)

    monkeypatch.setattr(choice, "Divergence", Watched)
    report = run(binary, tmp_path / "out", repair="auto", allocation="auto")
    tried = report["repair"]["tried"]
    assert {each["chain"] for each in tried} == set(CANDIDATES)
    # Of one number it would be a share of its variance, as for a regression.
    assert len(seen) >= len(tried) and set(seen) == {(2, Task.CLASSIFICATION)}
    assert all(each["divergence"] > 0 for each in tried)


def test_distillation_judges_what_is_predicted(binary, tmp_path):
    from reflow_tf import PruneConfig, prune
    from reflow_tf.repair.contract import PrunedModel, read_weights
    from reflow_tf.repair.distillation import distill

    model = keras.models.load_model(binary / "model.keras")
    x = np.load(binary / "data.npz")["x"]
    result = prune(model, PruneConfig(target="storage", sparsity=0.6, repair="none"))
    pruned = PrunedModel(result.model, result.masks, read_weights(model))
    outcome = distill(pruned, [x], epochs=1)
    assert "divergence" in outcome.statement


def test_methods_are_compared(binary, tmp_path):
    prune = PruneConfig(target="storage", repair="none")
    job = JobConfig(str(binary / "model.keras"), str(tmp_path / "out"), prune, data=str(binary / "data.npz"))
    document = comparison.run(job, {"magnitude": prune}, [0.9], "1")
    assert document["dense"]["top1"] == 1.0 and document["cells"][0]["alone"]["top1"] < 1.0


def test_a_logit_is_refused_with_what_to_do(binary, tmp_path):
    with pytest.raises(InputError, match="is a logit: append a sigmoid"):
        run(binary, tmp_path / "out", model="logit.keras")


def test_labels_of_a_third_class_are_refused(binary, tmp_path):
    with np.load(binary / "data.npz") as archive:
        np.savez(tmp_path / "data.npz", x=archive["x"], y=archive["y"] + 1)
    with pytest.raises(InputError, match=r"in 0\.\.1.*largest 2"):
        evaluate(EvaluateConfig(str(binary / "model.keras"), str(tmp_path / "data.npz")))


def test_a_file_that_ends_in_a_logit_is_refused(binary, tmp_path):
    from reflow_tf.export.tflite import export_tflite

    content = export_tflite(keras.models.load_model(binary / "logit.keras"), storage="dense").content
    (tmp_path / "model.tflite").write_bytes(content)
    with pytest.raises(InputError, match="is a logit: append a sigmoid"):
        evaluate(EvaluateConfig(str(tmp_path / "model.tflite"), str(binary / "data.npz")))
