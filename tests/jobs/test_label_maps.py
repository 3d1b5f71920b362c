"""Networks that predict a map of classes, from the data to the report: images are counted, not their pixels."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import comparison, pipeline
from reflow_tf.jobs.evaluation import evaluate
from reflow_tf.report.interval import mean_interval
from reflow_tf.signal import rank_classes


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    """Folder with model.keras, x.npz and, with the network's own predictions as labels, labelled.npz."""
    folder = tmp_path_factory.mktemp("segmentation")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.Conv2DTranspose(8, 3, padding="same", activation="relu"),
            layers.Conv2D(3, 1, activation="softmax"),
        ]
    )
    model.save(folder / "model.keras")
    x = np.random.default_rng(0).uniform(-1, 1, (24, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    np.savez(folder / "labelled.npz", x=x, y=model(x).numpy().argmax(-1).astype(np.uint8))
    return folder


def run(folder, data, out, **prune):
    config = PruneConfig(target="storage", **{"sparsity": 0.5} | prune)
    return pipeline.run(JobConfig(str(folder / "model.keras"), str(out), config, data=str(data)))


def test_images_are_counted(segmentation, tmp_path):
    report = run(segmentation, segmentation / "x.npz", tmp_path / "out")
    for score in report["agreement"].values():
        assert (score["n"], score["positions"]) == (12, 64)
    assert (report["parity"]["n"], report["parity"]["positions"]) == (12, 64)
    assert sum(report["signal"]["predictions"]["dense"]["histogram"]) == 12 * 64
    assert report["signal"]["predictions"]["dense"]["largest_share"] < 1


def test_labels_are_a_map(segmentation, tmp_path):
    report = run(segmentation, segmentation / "labelled.npz", tmp_path / "out")
    dense, file = report["accuracy"]["dense"], report["accuracy"]["file"]
    metric = report["metric"]
    assert metric["name"] == "mean IoU" and metric["stages"]["dense"]["value"] == 1.0
    assert 0 < metric["stages"]["file"]["value"] < file["top1"] and metric["passed"] is None
    assert metric["drop"] == pytest.approx(1 - metric["stages"]["file"]["value"])
    same = {"top1": 1.0, "top5": None, "n": 12, "top1_interval": [1.0, 1.0], "drop_points": 0.0, "positions": 64}
    assert dense == same
    assert 0 < file["top1"] < 1
    for name, stage in (("model.keras", "repaired"), ("model.tflite", "file")):
        found = evaluate(EvaluateConfig(str(tmp_path / "out" / name), str(segmentation / "labelled.npz")))
        score = found.accuracy
        if stage == "file":
            assert 0 < found.iou.value < score.top1 and (found.iou.n, len(found.iou.interval)) == (24, 2)
        assert (score.n, score.positions) == (24, 64)
        model = keras.models.load_model(tmp_path / "out" / "model.keras")
        with np.load(segmentation / "labelled.npz") as archive:
            shares = (rank_classes(model(archive["x"]).numpy())[..., 0] == archive["y"]).mean((1, 2))
        assert score.top1 == pytest.approx(shares.mean(), abs=1e-6), stage
        assert score.top1_interval == pytest.approx(mean_interval(shares), abs=1e-6)


def test_labels_with_an_axis_of_their_own_are_the_same_labels(segmentation, tmp_path):
    """As Keras takes masks; enough images for the dense model to be doubted by."""
    model = keras.models.load_model(segmentation / "model.keras")
    x = np.random.default_rng(1).uniform(-1, 1, (160, 8, 8, 3)).astype(np.float32)
    y = model(x).numpy().argmax(-1).astype(np.uint8)
    reports = []
    for name, labels in (("flat", y), ("deep", y[..., None])):
        np.savez(tmp_path / f"{name}.npz", x=x, y=labels)
        reports.append(run(segmentation, tmp_path / f"{name}.npz", tmp_path / name))
    for key in ("accuracy", "notes"):
        assert reports[0][key] == reports[1][key]


def test_methods_are_compared(segmentation, tmp_path):
    job = JobConfig(
        str(segmentation / "model.keras"),
        str(tmp_path / "out"),
        PruneConfig(target="storage", repair="none"),
        data=str(segmentation / "labelled.npz"),
    )
    methods = {"magnitude": PruneConfig(target="storage", repair="none")}
    document = comparison.run(job, methods, [0.5], "1")
    assert (document["dense"]["n"], document["dense"]["positions"]) == (12, 64)
    assert "Wilson" not in (tmp_path / "out" / "compare.html").read_text()


@pytest.mark.parametrize("shape", [(24,), (24, 8), (24, 4, 4), (24, 8, 8, 3), (12, 8, 8)])
def test_labels_that_fit_no_map_are_refused_at_once(segmentation, tmp_path, shape):
    with np.load(segmentation / "x.npz") as archive:
        np.savez(tmp_path / "bad.npz", x=archive["x"], y=np.arange(np.prod(shape)).reshape(shape) % 3)
    with pytest.raises(InputError, match=r"a map of class indices, 8 x 8, for each of the 24 images"):
        run(segmentation, tmp_path / "bad.npz", tmp_path / "out")


def test_a_class_for_each_image_is_refused(segmentation, images, tmp_path):
    from PIL import Image

    for number, image in enumerate(images(12, seed=0)):
        path = tmp_path / "images" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    with pytest.raises(InputError, match="a map of classes, so labels must be a map of class indices, 8 x 8"):
        run(segmentation, tmp_path / "images", tmp_path / "out")


def test_a_map_of_one_position_takes_a_class_for_each_image(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((4, 4, 3)), layers.Conv2D(8, 4), layers.ReLU(), layers.Conv2D(3, 1)])
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).uniform(-1, 1, (24, 4, 4, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=model(x).numpy().argmax(-1)[:, 0, 0])
    report = run(tmp_path, tmp_path / "data.npz", tmp_path / "out")
    assert report["accuracy"]["dense"]["top1"] == 1.0 and report["accuracy"]["dense"]["positions"] == 1
    assert report["accuracy"]["dense"]["top1_interval"][0] < 1


def test_labels_of_a_map_of_open_size(tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((None, None, 3)), layers.Conv2D(8, 3, 2, "same"), layers.Conv2D(3, 1)])
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).uniform(-1, 1, (24, 8, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=model(x).numpy().argmax(-1))
    assert run(tmp_path, tmp_path / "data.npz", tmp_path / "out")["accuracy"]["dense"]["top1"] == 1.0
    np.savez(tmp_path / "full.npz", x=x, y=np.arange(24 * 64).reshape(24, 8, 8) % 3)
    monkeypatch.setattr(pipeline, "prune", lambda *_, **__: pytest.fail("after the long work is too late"))
    with pytest.raises(InputError, match=r"a map of class indices, 4 x 4, for each image. Received: shape \(8, 8\)"):
        run(tmp_path, tmp_path / "full.npz", tmp_path / "other")


def test_pixels_of_no_class_count_for_nothing(segmentation, tmp_path):
    with np.load(segmentation / "labelled.npz") as archive:
        x, y = archive["x"], archive["y"]
    y[:, :3] = 255
    y[5] = 255  # an image of nothing else
    np.savez(tmp_path / "void.npz", x=x, y=y)
    report = run(segmentation, tmp_path / "void.npz", tmp_path / "out")
    assert report["accuracy"]["dense"]["top1"] == 1.0 and report["metric"]["stages"]["dense"]["value"] == 1.0
    file = report["accuracy"]["file"]
    assert file["top1_interval"][0] < file["top1"] < file["top1_interval"][1] < 1
    # by hand, of all images
    found = evaluate(EvaluateConfig(str(tmp_path / "out" / "model.tflite"), str(tmp_path / "void.npz")))
    predicted = keras.models.load_model(tmp_path / "out" / "model.keras")(x).numpy().argmax(-1)
    known = y != 255
    assert found.accuracy.top1 == pytest.approx((predicted == y)[known].mean()) and found.accuracy.n == 24
    ious = [
        ((predicted == c) & (y == c))[known].sum() / ((predicted == c) | (y == c))[known].sum()
        for c in range(3)
        if ((predicted == c) | (y == c))[known].any()
    ]
    assert found.iou.value == pytest.approx(np.mean(ious))
    np.savez(tmp_path / "nothing.npz", x=x, y=np.full_like(y, 255))
    with pytest.raises(InputError, match=r"must name some class. Received: none, all of them 255"):
        run(segmentation, tmp_path / "nothing.npz", tmp_path / "other")
