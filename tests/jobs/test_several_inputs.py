"""Networks with several inputs, or with one of whole numbers: images, vectors, words, from the archive to the file."""

import json
import subprocess

import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.jobs.device_kit import write_device_kit
from reflow_tf.jobs.evaluation import evaluate
from reflow_tf.jobs.firmware.packing import write_firmware
from reflow_tf.models.channels.groups import find_channel_groups
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.joining import Join, Take
from reflow_tf.models.loading import load_model
from reflow_tf.models.packing import is_plain, pack, unpack
from reflow_tf.runtimes import device_script
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.runtimes.tflm.runtime import TFLM
from reflow_tf.sparsity.patterns import Channel

RNG = np.random.default_rng(0)
DATA = {
    "image": RNG.random((120, 8, 8, 3)).astype(np.float32),
    "vector": RNG.standard_normal((120, 6)).astype(np.float32),
    "words": RNG.integers(0, 10, (120, 4)),
}
ROWS = np.concatenate([part.reshape(120, -1) for part in DATA.values()], axis=1).astype(np.float32)


def build(structure="dict", heads=("softmax",)):
    """Three towers and as many heads; inputs in a dict, a list, or a list in another order than that of their names."""
    keras.utils.set_random_seed(0)
    image, vector = layers.Input((8, 8, 3), name="image"), layers.Input((6,), name="vector")
    words = layers.Input((4,), dtype="int32", name="words")
    seen = image
    for width in (16, 24):
        seen = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 1, use_bias=False)(seen)))
    towers = [
        layers.GlobalAveragePooling2D()(seen),
        layers.Dense(16, "relu")(vector),
        layers.Flatten()(layers.Embedding(10, 3)(words)),
    ]
    both = layers.Dense(32, "relu")(layers.Concatenate()(towers))
    outputs = [layers.Dense(3, head, name=f"head_{place}")(both) for place, head in enumerate(heads)]
    inputs = {"dict": {"image": image, "vector": vector, "words": words}, "list": [image, vector, words]}[structure]
    return reflow_tf.recalibrate(keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0]), ROWS)


def compute(model):
    given = DATA if isinstance(model.input, dict) else list(DATA.values())
    return [np.asarray(output) for output in keras.tree.flatten(model(given, training=False))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    model = build()
    model.save(folder / "model.keras")
    build("list", heads=(None, "sigmoid")).save(folder / "heads.keras")
    named = {f"x_{name}": values for name, values in DATA.items()}
    np.savez(folder / "data.npz", **named, y=compute(model)[0].argmax(axis=1))
    np.savez(folder / "numbered.npz", **{f"x_{place}": values for place, values in enumerate(DATA.values())})
    return folder


@pytest.mark.parametrize("structure", ["dict", "list"])
@pytest.mark.parametrize("heads", [("softmax",), (None, "sigmoid")])
def test_packed_and_unpacked_again(structure, heads):
    model = build(structure, heads)
    packed = pack(model, ROWS)
    assert not is_plain(model) and is_plain(packed) and packed.input_shape == (None, 202)
    rows = packed(ROWS).numpy()
    expected = np.concatenate(compute(model), axis=1)
    scales = [scale for layer in packed.layers if isinstance(layer, Join) for scale in layer.scales] or [1.0]
    np.testing.assert_allclose(rows, expected * np.repeat(scales, 3), rtol=1e-5)
    again = unpack(packed, model)
    assert type(again.input) is type(model.input) and again.output_names == model.output_names
    assert [tensor.name for tensor in again.inputs] == [tensor.name for tensor in model.inputs]
    assert not any(isinstance(layer, Join | Take) for layer in again.layers)
    for mine, theirs in zip(compute(again), compute(model), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_arrays_by_their_names_are_rows():
    model = build("list")
    backwards = dict(reversed(DATA.items()))
    mine, theirs = (reflow_tf.measure_signal(model, data) for data in (backwards, ROWS))
    np.testing.assert_array_equal(mine.outputs, theirs.outputs)
    for wrong in ({"vector": DATA["vector"]}, DATA | {"words": DATA["words"][:7]}, DATA | {"image": ROWS}):
        with pytest.raises(InputError, match="data must have an array"):
            reflow_tf.measure_signal(model, wrong)


def test_what_is_taken_is_an_input_of_the_network():
    reasons = {
        span.variable.path.rpartition("/")[0]: group.frozen
        for group in find_channel_groups(pack(build(), None))
        for span in group.spans
        if span.axis == len(span.variable.shape) - 2
    }
    assert list(reasons.values()).count("is an input of the network") >= 2


@pytest.mark.parametrize("structure", ["dict", "list"])
@pytest.mark.parametrize(
    "changes",
    [
        {"repair": "least_squares", "allocation": "auto"},
        {"repair": "auto"},
        {"criterion": "woodfisher", "repair": "obs,reflow"},
        {"max_size_bytes": 14_000, "repair": "least_squares"},
        {"sparsity": None, "pattern": Channel(), "max_macs": 0.8, "channel_multiple": 2, "repair": "least_squares"},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_pruned_in_python(structure, changes):
    model = build(structure)
    given = {"target": "storage"} | ({} if "max_size_bytes" in changes else {"sparsity": 0.4}) | changes
    fitted = {name: values[:90] for name, values in DATA.items()}  # by their names, in any order; or in rows
    result = reflow_tf.prune(model, PruneConfig(**given), fitted, evaluation=ROWS[90:])
    assert type(result.model.input) is type(model.input)
    (found,), (dense,) = compute(result.model), compute(model)
    assert np.abs(found - dense).mean() < 0.5 * np.abs(dense - dense.mean(axis=0)).mean()
    kernels = find_kernels(result.model).read()
    assert all(not kernels[path][~mask].any() for path, mask in result.masks.items())
    assert set(result.report.signals) == {"dense", "pruned", "repaired"}


@pytest.mark.parametrize("quantize", ["none", "int8", "float16"])
def test_from_the_archive_to_the_file(folder, tmp_path, quantize):
    prune = PruneConfig(target="storage", sparsity=0.4, repair="least_squares")
    paths = {"data": str(folder / "data.npz"), "quantize": quantize, "io": "float" if quantize == "int8" else None}
    report = pipeline.run(JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), prune, **paths))
    assert report["accuracy"]["dense"]["top1"] == 1.0 and report["accuracy"]["file"]["top1"] > 0.5
    assert report["model"]["input_shape"] == [None, 202]
    file = LiteRT((tmp_path / "out/model.tflite").read_bytes())
    assert (file.num_inputs, file.input_shape) == (3, (1, 202))
    (expected,) = compute(load_model(str(tmp_path / "out/model.keras")).model)
    np.testing.assert_allclose(file.run(ROWS), expected, atol=1e-5 if quantize == "none" else 0.05)
    assert quantize != "none" or any(tensor["storage"] == "sparse" for tensor in report["file"]["tensors"])
    recorded = json.loads((tmp_path / "out/config.json").read_text())["preprocessing"]
    assert recorded["parts"][2] == {"name": "words", "shape": [4], "dtype": "int32"}
    score = evaluate(EvaluateConfig(str(tmp_path / "out/model.keras"), str(folder / "data.npz"))).accuracy
    assert score.n == 120 and score.top1 > 0.5
    assert file.measure() > 0


def test_the_file_by_itself(folder, tmp_path, capfd):
    """With the names of its inputs in the config.json beside it, or without: scored, and checked as on a device."""
    prune = PruneConfig(target="cpu", sparsity=0.0, repair="none")
    out, data = tmp_path / "out", str(folder / "data.npz")
    pipeline.run(JobConfig(str(folder / "model.keras"), str(out), prune, data=data))
    assert evaluate(EvaluateConfig(str(out / "model.tflite"), data)).accuracy.top1 > 0.9  # in int8
    kit = write_device_kit(EvaluateConfig(str(out / "model.tflite"), data), str(tmp_path / "kit"), num_inputs=5)
    assert device_script.main([f"--model={kit}/model.tflite", f"--data={kit}/data.npz", "--rounds=2"]) == 0
    assert "outputs agree" in capfd.readouterr().out
    (tmp_path / "model.tflite").write_bytes((out / "model.tflite").read_bytes())
    found = [evaluate(EvaluateConfig(str(path / "model.tflite"), data)).accuracy for path in (out, tmp_path)]
    assert found[0] == found[1]  # its names are those of the network


@pytest.fixture(scope="module", params=[("softmax",), ("softmax", None)], ids=["one head", "two heads"])
def towers(tmp_path_factory, request):
    """A folder with a network of an image and a vector, and data."""
    folder = tmp_path_factory.mktemp("towers")
    keras.utils.set_random_seed(0)
    image, vector = layers.Input((8, 8, 3), name="image"), layers.Input((6,), name="vector")
    seen = layers.GlobalAveragePooling2D()(layers.Conv2D(24, 3, activation="relu")(image))
    both = layers.Dense(32, "relu")(layers.Concatenate()([seen, layers.Dense(16, "relu")(vector)]))
    model = keras.Model([image, vector], [layers.Dense(3, head)(both) for head in request.param])
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x_image=DATA["image"], x_vector=DATA["vector"], y=np.arange(120) % 3)
    return folder, len(request.param)


@pytest.mark.usefixtures("cortex_m")
@pytest.mark.parametrize("target", ["tflm", "cortex_m"])
def test_on_a_microcontroller(towers, tmp_path, target):
    """In TFLM, and as C: with bitmaps, or in C, every output is what it is in TFLM with dense weights."""
    folder, num_heads = towers
    data, prune = str(folder / "data.npz"), PruneConfig(target=target, sparsity=0.6, repair="least_squares")
    report = pipeline.run(JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), prune, data=data))
    assert report["mcu"]["num_equal"] == report["mcu"]["num_compared"] > 0 and report["mcu"]["passed"] is None
    assert report["mcu"]["flash_bytes"] < report["mcu"]["dense_flash_bytes"]
    assert report["mcu"]["arena_bytes"] > 192 + 6 + 3 * num_heads
    content = (tmp_path / "out/model.tflite").read_bytes()
    runtime = TFLM(content)
    assert (runtime.num_inputs, runtime.input_shape) == (2, (1, 198)) and runtime.measure() > 0
    assert runtime.output_sizes == (3,) * num_heads
    found = evaluate(EvaluateConfig(str(tmp_path / "out/model.tflite"), data, reference=str(folder / "model.keras")))
    assert found.agreement.top1 > 0.8 if num_heads == 1 else found.fidelity.relative_error < 0.3


def test_words_on_a_microcontroller(folder, tmp_path, capsys):
    """As whole numbers, beside int8; also as an array for TFLM, which has them as they are."""
    prune = PruneConfig(target="tflm", sparsity=0.6, repair="least_squares")
    report = pipeline.run(
        JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), prune, data=str(folder / "data.npz"))
    )
    assert report["mcu"]["num_equal"] == report["mcu"]["num_compared"] > 0 and report["mcu"]["passed"] is None
    assert "cannot run" not in capsys.readouterr().err  # nor is anybody told that it could not
    source = EvaluateConfig(str(tmp_path / "out/model.tflite"), str(folder / "data.npz"))
    written = write_firmware(source, str(tmp_path / "array"), as_array=True)
    told = " ".join((written / "README.md").read_text().split())
    assert "Input 2, `words`, has the shape 4, the last axis fastest, from byte 198 on." in told
    assert "a real input x is stored as int32." in told
    assert "images[NUM_IMAGES][214]" in (written / "images.h").read_text()


@pytest.mark.usefixtures("cortex_m", "make")
def test_firmware(towers, tmp_path):
    """The folder proves itself; its README names each input, and where it begins. As an array it does as well."""
    folder, num_heads = towers
    prune = PruneConfig(target="cortex_m", sparsity=0.6)
    job = JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), prune, data=str(folder / "data.npz"))
    pipeline.run(job)
    source = EvaluateConfig(str(tmp_path / "out/model.tflite"), str(folder / "data.npz"))
    written = write_firmware(source, str(tmp_path / "firmware"))
    done = subprocess.run(["make", "run"], cwd=written, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 outputs are equal" in done.stdout + done.stderr
    told = " ".join((written / "README.md").read_text().split())
    assert "* Input 0, `image`, has the shape 8x8x3, the last axis fastest, from byte 0 on." in told
    assert "* Input 1, `vector`, has the shape 6, the last axis fastest, from byte 192 on." in told
    assert ("* Of output 1, of shape 3, from byte 3 on, a number y" in told) == (num_heads == 2)
    written = write_firmware(source, str(tmp_path / "array"), as_array=True)
    assert "interpreter.inputs_size()" in (written / "README.md").read_text()
    pair = (written / "images.h").read_text()
    assert "images[NUM_IMAGES][198]" in pair and f"expected[NUM_IMAGES][{3 * num_heads}]" in pair


def test_several_of_both(folder, tmp_path):
    prune = PruneConfig(target="storage", sparsity=0.4, repair="least_squares")
    paths = {"data": str(folder / "numbered.npz")}
    report = pipeline.run(JobConfig(str(folder / "heads.keras"), str(tmp_path / "out"), prune, **paths))
    assert [output["name"] for output in report["fidelity"]["file"]["outputs"]] == ["head_0", "head_1"]
    assert report["fidelity"]["file"]["relative_error"] < 0.5 and report["parity"]["max_abs"] < 1e-4


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_one_input_of_whole_numbers(tmp_path, dtype):
    """Raw images, as cameras give them; or indices."""
    keras.utils.set_random_seed(0)
    inputs = layers.Input((8, 8, 3), dtype=dtype)
    seen = layers.Rescaling(1 / 128, -1)(inputs)
    seen = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3)(seen)))
    model = keras.Model(inputs, layers.Dense(4, "softmax")(layers.GlobalAveragePooling2D()(seen)))
    images = RNG.integers(0, 255, (64, 8, 8, 3)).astype(np.uint8)
    model = reflow_tf.recalibrate(model, images)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=images)
    prune = PruneConfig(target="storage", sparsity=0.5, repair="least_squares")
    job = JobConfig(str(tmp_path / "model.keras"), str(tmp_path / "out"), prune, data=str(tmp_path / "data.npz"))
    report = pipeline.run(job)
    assert report["agreement"]["file"]["top1"] > 0.7 and report["parity"]["max_abs"] < 1e-4
    ours = load_model(str(tmp_path / "out/model.keras")).model
    assert keras.backend.standardize_dtype(ours.inputs[0].dtype) == dtype


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"vector": None}, "must hold each of them: x_image, x_vector, x_words. Received: no x_vector and no x_1"),
        ({"vector": DATA["vector"][:50]}, r"x_vector must have the shape .* as many samples"),
        ({"vector": DATA["vector"][:, :3]}, r"x_vector must have the shape that the network takes, \(n, 6\)"),
        ({"words": DATA["words"] + 0.5}, "x_words must hold whole numbers, int32"),
        (
            {"image": np.full((120, 8, 8, 3), np.nan)},
            r"x_image must be finite. Received: NaN or infinity in x_image\[0\]",
        ),
        ({"image": DATA["image"].astype(str)}, "x_image must be of real numbers"),
    ],
)
def test_archives_that_do_not_fit(folder, tmp_path, changes, words):
    arrays = {f"x_{name}": values for name, values in (DATA | changes).items() if values is not None}
    np.savez(tmp_path / "data.npz", **arrays)
    job = JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), data=str(tmp_path / "data.npz"))
    with pytest.raises(InputError, match=words):
        pipeline.run(job)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"prune": PruneConfig(target="cortex_m", sparsity=0.5)},
            "--target=tflm takes whole numbers. Received: int32 at the input 2",
        ),
        ({"data": "photos"}, r"with each of them: x_image \(n, 8, 8, 3\), x_vector \(n, 6\), x_words \(n, 4\)"),
        ({"image_size": 8}, "--image_size is only for models with one input"),
        ({"preprocess": "tf"}, "--preprocess scales the pixels of images"),
    ],
)
def test_what_they_cannot_be(folder, tmp_path, changes, words, save_photos):
    given = {"data": str(folder / "data.npz"), "prune": PruneConfig(target="storage", sparsity=0.5)} | changes
    if given["data"] == "photos":
        given["data"] = str(save_photos(tmp_path / "photos"))
    with pytest.raises(InputError, match=words):
        pipeline.run(JobConfig(str(folder / "model.keras"), str(tmp_path / "out"), **given))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def save_photos():
    def save(folder):
        from PIL import Image

        folder.mkdir()
        for number in range(3):
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
        return folder

    return save


def test_open_sizes_and_subclassed_models_are_refused(tmp_path):
    first, second = layers.Input((None, 3)), layers.Input((4,), name="second")
    pooled = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 1)(first))
    keras.Model([first, second], layers.Add()([pooled, second])).save(tmp_path / "open.keras")
    with pytest.raises(InputError, match="must fix every dimension of its inputs"):
        load_model(str(tmp_path / "open.keras"))


def test_an_input_that_no_output_depends_on(tmp_path):
    image, vector = keras.Input((8, 8, 3), name="image"), keras.Input((6,), name="vector")
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(8, 1)(image)))
    keras.Model([image, vector], layers.Dense(3, "softmax")(x)).save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x_image=DATA["image"], x_vector=DATA["vector"])
    job = JobConfig(
        str(tmp_path / "model.keras"),
        str(tmp_path / "out"),
        data=str(tmp_path / "data.npz"),
        prune=PruneConfig(target="storage", sparsity=0.5, repair="least_squares"),
    )
    report = pipeline.run(job)
    assert report["agreement"]["file"]["top1"] > 0.7 and report["parity"]["max_abs"] < 1e-4
    loaded = keras.models.load_model(tmp_path / "out" / "model.keras")
    assert [tensor.name for tensor in loaded.inputs] == ["image", "vector"]


def test_a_file_alone_takes_inputs_by_their_place_and_by_its_own_names(folder, tmp_path):
    model = load_model(str(folder / "heads.keras")).model
    alone = tmp_path / "alone.tflite"
    alone.write_bytes(reflow_tf.export_tflite(model, storage="dense").content)
    reference = str(folder / "heads.keras")
    for data in ("data.npz", "numbered.npz"):
        found = evaluate(EvaluateConfig(str(alone), str(folder / data), reference=reference)).fidelity
        assert found.n == 120 and found.relative_error < 1e-5
    kit = write_device_kit(EvaluateConfig(str(alone), str(folder / "data.npz")), str(tmp_path / "kit"))
    assert subprocess.run(["python", kit / "run.py", "--rounds=0"], capture_output=True).returncode == 0
    np.savez(tmp_path / "fewer.npz", x_0=DATA["image"])
    with pytest.raises(InputError, match=r"must hold each of them: x_image, x_vector, x_words. Received: no x_vector"):
        evaluate(EvaluateConfig(str(alone), str(tmp_path / "fewer.npz"), reference=reference))


def test_ids_without_an_axis_of_their_own(tmp_path):
    keras.utils.set_random_seed(0)
    user, item = (layers.Input((), dtype="int32", name=name) for name in ("user", "item"))
    towers = [layers.Dense(16, "relu")(layers.Embedding(20, 8)(ids)) for ids in (user, item)]
    both = layers.Dense(8, "relu")(layers.Concatenate()(towers))
    model = keras.Model([user, item], layers.Dense(1)(both))
    model.save(tmp_path / "model.keras")
    ids = {name: np.random.default_rng(place).integers(0, 20, 200) for place, name in enumerate(("user", "item"))}
    np.savez(tmp_path / "data.npz", **{f"x_{name}": values for name, values in ids.items()})
    config = PruneConfig(target="storage", sparsity=0.5, repair="least_squares")
    job = JobConfig(str(tmp_path / "model.keras"), str(tmp_path / "out"), config, data=str(tmp_path / "data.npz"))
    report = pipeline.run(job)
    assert report["parity"]["max_abs"] < 1e-5
    wanted = np.asarray(keras.models.load_model(tmp_path / "out" / "model.keras")([ids["user"], ids["item"]]))
    rows = np.stack(list(ids.values()), axis=1).astype(np.float32)
    found = LiteRT((tmp_path / "out" / "model.tflite").read_bytes()).run(rows)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
def test_pixels_of_any_integers(tmp_path, dtype):
    keras.utils.set_random_seed(0)
    image = layers.Input((8, 8, 3), dtype="int32")
    x = layers.Conv2D(8, 1, activation="relu")(layers.Rescaling(1 / 127.5, -1)(image))
    keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x))).save(tmp_path / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3)).astype(dtype)
    np.savez(tmp_path / "data.npz", x=pixels)
    config = PruneConfig(target="storage", sparsity=0.5, repair="least_squares")
    job = JobConfig(str(tmp_path / "model.keras"), str(tmp_path / "out"), config, data=str(tmp_path / "data.npz"))
    assert pipeline.run(job)["parity"]["max_abs"] < 1e-5
    wanted = np.asarray(keras.models.load_model(tmp_path / "out" / "model.keras")(pixels))
    found = LiteRT((tmp_path / "out" / "model.tflite").read_bytes()).run(pixels.astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
