"""Networks that take no images: vectors, series, spectra, maps without channels, from an .npz to every tool."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import comparison, pipeline
from reflow_tf.jobs.device_kit import write_device_kit
from reflow_tf.jobs.evaluation import evaluate
from reflow_tf.jobs.firmware.packing import write_firmware
from reflow_tf.runtimes.litert import LiteRT


def dense_block(width):
    return [layers.Dense(width, use_bias=False), layers.BatchNormalization(), layers.ReLU()]


BUILDS = {
    "vectors": (
        (64,),
        lambda: [*dense_block(32), *dense_block(16)],
    ),  # MLPerf Tiny's anomaly detection, as a classifier
    "accelerometer": (
        (32, 9),
        lambda: [
            layers.Conv1D(16, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv1D(16, 3, activation="relu"),
            layers.GlobalAveragePooling1D(),
        ],
    ),
    "any length": (
        (None, 3),
        lambda: [layers.Conv1D(16, 3, activation="relu"), layers.Conv1D(16, 1), layers.GlobalAveragePooling1D()],
    ),
    "no channels": (
        (12, 12),
        lambda: [layers.Reshape((12, 12, 1)), layers.Conv2D(12, 3, activation="relu"), layers.Flatten()],
    ),
    "spectra": (
        (49, 10),
        lambda: [
            layers.Reshape((49, 10, 1)),
            layers.Conv2D(16, (10, 4), 2, activation="relu"),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.Conv2D(16, 1, activation="relu"),
            layers.GlobalAveragePooling2D(),
        ],
    ),
    "volumes": ((4, 6, 6, 2), lambda: [layers.Conv3D(6, 3, activation="relu"), layers.Flatten()]),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(name) -> folder with model.keras and data.npz, whose labels are the network's own predictions."""
    made = {}

    def make(name):
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
            keras.utils.set_random_seed(0)
            shape, build = BUILDS[name]
            head = layers.Dense(3)
            model = keras.Sequential([layers.Input(shape), *build(), head, layers.Softmax()])
            sample = tuple(axis or 40 for axis in shape)
            x = np.random.default_rng(0).standard_normal((64, *sample)).astype(np.float32)
            logits = keras.Sequential([layers.Input(shape), *model.layers[:-1]])(x).numpy()
            head.set_weights([head.kernel.numpy() / logits.std(0), -logits.mean(0) / logits.std(0)])
            y = model(x).numpy().argmax(-1)
            assert set(y) == {0, 1, 2}
            model.save(folder / "model.keras")
            np.savez(folder / "data.npz", x=x, y=y)
        return made[name]

    return make


def job(folder, out, quantize=None, **prune):
    config = PruneConfig(**{"target": "storage", "prunable": "all", "sparsity": 0.5} | prune)
    return JobConfig(str(folder / "model.keras"), str(out), config, data=str(folder / "data.npz"), quantize=quantize)


@pytest.mark.parametrize("name", BUILDS)
def test_pruned_and_scored(make, tmp_path, name):
    folder, out = make(name), tmp_path / "out"
    report = pipeline.run(job(folder, out))
    assert report["accuracy"]["dense"]["top1"] == 1.0 and report["parity"]["top1_agreement"] == 1.0
    assert report["data"]["unit"] == "sample"
    assert json.loads((out / "config.json").read_text())["preprocessing"] == {"shape": list(BUILDS[name][0])}
    for file, stage in (("model.keras", "repaired"), ("model.tflite", "file")):
        score = evaluate(EvaluateConfig(str(out / file), str(folder / "data.npz"))).accuracy
        assert score.n == 64 and abs(score.top1 - report["accuracy"][stage]["top1"]) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "accelerometer", "spectra"])
def test_searched_and_fitted(make, tmp_path, name):
    report = pipeline.run(job(make(name), tmp_path / "out", allocation="auto", repair="auto"))
    assert any(each["chain"] == "least_squares" and each["reason"] is None for each in report["repair"]["tried"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "accelerometer", "any length", "no channels", "spectra"])
def test_for_a_microcontroller_as_firmware_and_as_a_kit(make, tmp_path, name):
    folder, out = make(name), tmp_path / "out"
    report = pipeline.run(job(folder, out, target="tflm"))
    assert report["mcu"]["num_equal"] == report["mcu"]["num_compared"] == 32
    source = EvaluateConfig(str(out / "model.tflite"), str(folder / "data.npz"))
    kit = write_device_kit(EvaluateConfig(str(make_plain(folder, tmp_path)), source.data), str(tmp_path / "kit"))
    with np.load(kit / "data.npz") as archive, np.load(folder / "data.npz") as data:
        np.testing.assert_array_equal(archive["inputs"][0], data["x"][0])
    firmware = write_firmware(source, str(tmp_path / "firmware"))
    text = " ".join((firmware / "README.md").read_text().split())
    assert "x = the number as it is in your data" in text and "the last axis fastest" in text


def make_plain(folder, tmp_path):
    from reflow_tf.export.tflite import export_tflite

    path = tmp_path / "plain.tflite"
    x = np.load(folder / "data.npz")["x"]
    model = keras.models.load_model(folder / "model.keras")
    path.write_bytes(export_tflite(model, storage="dense", input_shape=x.shape[1:]).content)
    return path


@pytest.mark.parametrize("name, shape", [("vectors", "64"), ("any length", "40x3")])
def test_files_as_c(make, tmp_path, name, shape):
    folder, out = make(name), tmp_path / "out"
    report = pipeline.run(job(folder, out, quantize="int8"))
    assert report["parity"]["top1_agreement"] > 0.8
    source = EvaluateConfig(str(out / "model.tflite"), str(folder / "data.npz"))
    text = " ".join((write_firmware(source, str(tmp_path / "c")) / "README.md").read_text().split())
    assert f"The input has the shape {shape}, the last axis fastest." in text


def test_methods_are_compared(make, tmp_path):
    prune = PruneConfig(target="storage", prunable="all", repair="none")
    given = JobConfig(
        str(make("accelerometer") / "model.keras"),
        str(tmp_path / "out"),
        prune,
        data=str(make("accelerometer") / "data.npz"),
    )
    document = comparison.run(given, {"magnitude": prune}, [0.5], "1")
    assert document["data"]["unit"] == "sample"
    assert "32\u00a0held-out samples" in (tmp_path / "out" / "compare.html").read_text()


def test_there_are_no_pixels_to_scale(make, tmp_path):
    folder = make("vectors")
    for preprocess in ("tf", "unit"):
        with pytest.raises(InputError, match=r"--preprocess scales the pixels of images.*\(n, 64\).*Received: "):
            pipeline.run(
                JobConfig(
                    str(folder / "model.keras"),
                    str(tmp_path / "out"),
                    PruneConfig(target="storage"),
                    data=str(folder / "data.npz"),
                    preprocess=preprocess,
                )
            )
        with pytest.raises(InputError, match=r"--preprocess scales the pixels of images.*\(n, 64\)"):
            path = str(make_plain(folder, tmp_path))
            evaluate(EvaluateConfig(path, str(folder / "data.npz"), preprocess=preprocess))
    pipeline.run(
        JobConfig(
            str(folder / "model.keras"),
            str(tmp_path / "out"),
            PruneConfig(target="storage", prunable="all"),
            data=str(folder / "data.npz"),
            preprocess="none",
        )
    )


def test_an_image_size_is_none_of_theirs(make, tmp_path):
    with pytest.raises(InputError, match="only for models that leave height and width open"):
        folder = make("vectors")
        pipeline.run(
            JobConfig(
                str(folder / "model.keras"),
                str(tmp_path / "out"),
                PruneConfig(target="storage"),
                data=str(folder / "data.npz"),
                image_size=8,
            )
        )


def test_a_config_json_of_images_is_not_taken(make, tmp_path):
    path = make_plain(make("vectors"), tmp_path)
    recorded = {"size": [8, 8], "channels": 3, "scaling": "tf", "resize": "bilinear", "crop_fraction": 1.0}
    (tmp_path / "config.json").write_text(json.dumps({"preprocessing": recorded}))
    with pytest.raises(InputError, match=r"config\.json beside a model must be the one"):
        evaluate(EvaluateConfig(str(path), str(make("vectors") / "data.npz")))


def test_true_and_false_go_in_and_come_out(tmp_path):
    inputs = keras.Input((12,), dtype="bool")
    scores = layers.Dense(3)(layers.ReLU()(layers.Dense(16)(keras.ops.cast(inputs, "float32"))))
    keras.Model(inputs, scores > 0).save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((80, 12)) < 0.5)
    report = pipeline.run(
        JobConfig(
            str(tmp_path / "model.keras"),
            str(tmp_path / "out"),
            data=str(tmp_path / "data.npz"),
            prune=PruneConfig(target="storage", sparsity=0.5),
        )
    )
    assert report["fidelity"]["file"]["relative_error"] < 0.7 and report["parity"]["n"] > 0


def test_indices_that_an_embedding_has_not(tmp_path):
    words = keras.Input((4,), dtype="int32")
    model = keras.Model(words, layers.Dense(3, "softmax")(layers.Flatten()(layers.Embedding(20, 6)(words))))
    file = tmp_path / "model.tflite"
    file.write_bytes(export_tflite(model, calibration=[np.zeros((4, 4), np.float32)]).content)
    with pytest.raises(InputError, match=r"such as the file can compute, indices within what an embedding has\. "):
        LiteRT(file.read_bytes()).run(np.full((2, 4), 101, np.float32))
