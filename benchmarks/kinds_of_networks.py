"""Networks of every kind, from a Keras file to a file that was run: what comes of each, one table.

    python benchmarks/kinds_of_networks.py --output=kinds.jsonl
    python benchmarks/kinds_of_networks.py --output=kinds.jsonl --names=unet,ssd,two_towers

Detectors, segmenters, regressors, towers, keyword spotters, autoencoders, sequence models, super-resolution, a vision
transformer, and networks of keras.applications; built here, at random weights, with batch norms that have seen the
inputs: what is asked is whether everything holds together, not how much is lost. Inputs are the embedded images, scaled
and coloured, or numbers at random where a network takes none. Each is pruned for storage by magnitude, 50 % of every
kernel alike, since magnitudes of random ones say nothing across layers, and refitted by least squares; what that cannot
do falls back to REFLOW, and the row says why.

Rows are appended to --output as they are finished, and what is in there is not made again.
"""

import json
import os
import pathlib
import tempfile
import time
from importlib import resources

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from keras import applications, layers
from PIL import Image

import reflow_tf
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import pipeline

FLAGS = flags.FLAGS
flags.DEFINE_list("names", None, "Which networks. Default: all.")
flags.DEFINE_integer("num_inputs", 64, "To calibrate with and to score, together.")
flags.DEFINE_string("output", None, "JSON lines, appended to.", required=True)

RNG = np.random.default_rng(0)


def photos(size, channels=3):
    """Embedded images, as floats from 0 to 1."""
    with resources.files("reflow_tf.data").joinpath("fashion_mnist", "images.npz").open("rb") as file:
        stored = np.load(file)["x_calibration"][: FLAGS.num_inputs]
    scaled = np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in stored])
    tints = RNG.uniform(0.5, 1, (len(scaled), 1, 1, channels))
    return (scaled[..., None] / 255 * tints).astype(np.float32)


def noise(*shape):
    """Smooth over the first axis, as series and spectra are."""
    values = RNG.standard_normal((FLAGS.num_inputs, *shape))
    return np.cumsum(values, axis=1).astype(np.float32) / np.sqrt(shape[0])


def block(values, width, kernel=3, strides=1):
    found = layers.Conv2D(width, kernel, strides=strides, padding="same", use_bias=False)(values)
    return layers.ReLU()(layers.BatchNormalization()(found))


def unet():
    image = keras.Input((64, 64, 3))
    high = block(image, 16)
    middle = block(high, 32, strides=2)
    low = block(block(middle, 64, strides=2), 64)
    up = layers.Concatenate()([layers.Conv2DTranspose(32, 2, strides=2)(low), middle])
    up = layers.Concatenate()([layers.Conv2DTranspose(16, 2, strides=2)(block(up, 32)), high])
    return keras.Model(image, layers.Conv2D(4, 1, activation="softmax")(block(up, 16))), photos(64)


def ssd():
    base = applications.MobileNetV2(input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None)
    boxes, scores = [], []
    for place, features in enumerate((base.get_layer("block_13_expand_relu").output, base.output)):
        features = block(features, 64, 1)  # a refit of 3x3 kernels over 1,280 channels takes half an hour
        boxes.append(layers.Reshape((-1, 4))(layers.Conv2D(16, 3, padding="same", name=f"box_{place}")(features)))
        scores.append(layers.Reshape((-1, 10))(layers.Conv2D(40, 3, padding="same", name=f"class_{place}")(features)))
    boxes = layers.Concatenate(axis=1, name="boxes")(boxes)
    scores = layers.Activation("sigmoid", name="scores")(layers.Concatenate(axis=1)(scores))
    return keras.Model(base.input, {"boxes": boxes, "scores": scores}), photos(96)


def landmarks():
    image = keras.Input((64, 64, 3))
    found = image
    for width in (16, 32, 64):
        found = block(layers.DepthwiseConv2D(3, padding="same")(block(found, width, strides=2)), width, 1)
    return keras.Model(image, layers.Dense(10, name="points")(layers.GlobalAveragePooling2D()(found))), photos(64)


def two_towers():
    image, vector = keras.Input((32, 32, 3), name="image"), keras.Input((16,), name="vector")
    seen = layers.GlobalAveragePooling2D()(block(block(image, 16, strides=2), 32, strides=2))
    told = layers.ReLU()(layers.BatchNormalization()(layers.Dense(32)(vector)))
    both = layers.Dense(32, "relu")(layers.Concatenate()([seen, told]))
    return keras.Model([image, vector], layers.Dense(5, "softmax")(both)), [photos(32), noise(16)]


def keywords_1d():
    wave = keras.Input((512, 8))
    found = wave
    for width in (32, 64, 64):
        found = layers.Conv1D(width, 5, strides=2, padding="same", use_bias=False)(found)
        found = layers.ReLU()(layers.BatchNormalization()(found))
    return keras.Model(wave, layers.Dense(12, "softmax")(layers.GlobalAveragePooling1D()(found))), noise(512, 8)


def keywords_2d():
    spectrum = keras.Input((49, 10, 1))
    found = block(spectrum, 64, (10, 4), 2)
    for _ in range(3):
        found = block(
            layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(found))), 64, 1
        )
    return keras.Model(spectrum, layers.Dense(12, "softmax")(layers.GlobalAveragePooling2D()(found))), noise(49, 10, 1)


def autoencoder():
    spectrum = keras.Input((640,))
    found = spectrum
    for width in (128, 128, 8, 128, 128):
        found = layers.ReLU()(layers.BatchNormalization()(layers.Dense(width)(found)))
    return keras.Model(spectrum, layers.Dense(640)(found)), noise(640)


def sequence(kind, unroll):
    series = keras.Input((20, 12))
    found = kind(32, return_sequences=True, unroll=unroll)(series)
    return keras.Model(series, layers.Dense(6, "softmax")(kind(24, unroll=unroll)(found))), noise(20, 12)


def super_resolution():
    image = keras.Input((32, 32, 3))
    found = shortcut = layers.Conv2D(32, 3, padding="same")(image)
    for _ in range(3):
        found = layers.Add()([found, layers.Conv2D(32, 3, padding="same")(block(found, 32))])
    found = layers.Conv2D(12, 3, padding="same")(layers.Add()([found, shortcut]))
    parts = layers.Reshape((32, 32, 2, 2, 3))(found)  # depth to space
    large = layers.Reshape((64, 64, 3))(layers.Permute((1, 3, 2, 4, 5))(parts))
    return keras.Model(image, layers.Add()([large, layers.UpSampling2D(2)(image)])), photos(32)


def vision_transformer():
    image = keras.Input((32, 32, 3))
    found = layers.Reshape((64, 48))(layers.Conv2D(48, 4, strides=4)(image))
    for _ in range(2):
        normed = layers.LayerNormalization()(found)
        found = layers.Add()([found, layers.MultiHeadAttention(4, 12)(normed, normed)])
        hidden = layers.Dense(96, "gelu")(layers.LayerNormalization()(found))
        found = layers.Add()([found, layers.Dense(48)(hidden)])
    return keras.Model(image, layers.Dense(8, "softmax")(layers.GlobalAveragePooling1D()(found))), photos(32)


def application(name, size):
    return getattr(applications, name)(input_shape=(size, size, 3), weights=None, classes=10), photos(size)


KINDS = {
    "unet": unet,
    "ssd": ssd,
    "landmarks": landmarks,
    "two_towers": two_towers,
    "keywords_1d": keywords_1d,
    "keywords_2d": keywords_2d,
    "autoencoder": autoencoder,
    "lstm": lambda: sequence(layers.LSTM, False),
    "lstm_unrolled": lambda: sequence(layers.LSTM, True),
    "gru": lambda: sequence(layers.GRU, False),
    "super_resolution": super_resolution,
    "vision_transformer": vision_transformer,
    "EfficientNetV2B0": lambda: application("EfficientNetV2B0", 64),
    "DenseNet121": lambda: application("DenseNet121", 64),
    "NASNetMobile": lambda: application("NASNetMobile", 64),
    "Xception": lambda: application("Xception", 96),
    "InceptionV3": lambda: application("InceptionV3", 96),
    "ConvNeXtTiny": lambda: application("ConvNeXtTiny", 64),
}


def main(_):
    output = pathlib.Path(FLAGS.output)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    for name in FLAGS.names or KINDS:
        if name in {row["name"] for row in rows}:
            continue
        rows.append(measure(name))
        with output.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    print_table(rows)


def measure(name):
    keras.utils.set_random_seed(0)
    model, inputs = KINDS[name]()
    inputs = inputs if isinstance(inputs, list) else [inputs]
    joined = inputs[0] if len(inputs) == 1 else np.concatenate([part.reshape(len(part), -1) for part in inputs], axis=1)
    if any(isinstance(layer, layers.BatchNormalization) for layer in model._flatten_layers()):
        model = reflow_tf.recalibrate(model, joined)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        model.save(path / "model.keras")
        named = {"x": inputs[0]} if len(inputs) == 1 else dict(zip(("x_0", "x_1"), inputs, strict=True))
        np.savez(path / "data.npz", **named)
        start, reason = time.monotonic(), None
        try:
            report = run(path, "least_squares")
        except InputError as error:
            reason = str(error)
            report = run(path, "reflow")
    score = report["fidelity"] or report["agreement"]
    return {
        "name": name,
        "measure": "fidelity" if report["fidelity"] else "agreement",
        **{stage: score[stage].get("top1", score[stage].get("relative_error")) for stage in ("pruned", "file")},
        "masks": [sum(mask["ok"] for mask in report["masks_in_file"]), len(report["masks_in_file"])],
        "parity": report["parity"]["max_abs"],
        "repair": report["repair"]["name"],
        "reason": reason,
        "skipped": sorted({skipped["reason"] for skipped in report["skipped"]}),
        "seconds": round(time.monotonic() - start),
    }


def run(path, repair):
    prune = PruneConfig(target="storage", sparsity=0.5, allocation="uniform", repair=repair)
    data = str(path / "data.npz")
    return pipeline.run(
        JobConfig(str(path / "model.keras"), str(path / repair), prune, data=data, calibration_samples=48)
    )


def print_table(rows) -> None:
    """Agreement of top classes, or the relative error of outputs, pruned alone and as a file."""
    print("| network | scored by | pruned | file | masks in the file | file and Keras | repair | left dense |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        found, total = row["masks"]
        shares = " | ".join(f"{row[stage]:.1%}" for stage in ("pruned", "file"))
        kind = "agreement" if row["measure"] == "agreement" else "relative error"
        print(
            f"| {row['name']} | {kind} | {shares} | {found} of {total} | {row['parity']:.0e} | "
            f"{row['repair']}{': ' + row['reason'] if row['reason'] else ''} | {'; '.join(row['skipped'])} |"
        )


if __name__ == "__main__":
    app.run(main)
