"""Trains the networks that ship inside the package, and packs the images that ship with it.

    python tools/train_fashion_mnist.py --architecture=mobilenet_v2 --work_dir=/tmp/train_fashion_mnist/mobilenet_v2

reads the official Fashion-MNIST files (Debian package `dataset-fashion-mnist`), trains the architecture's embedded
network on all 60,000 training images, evaluates it once on all 10,000 test images, and writes the weights and their
card to `reflow_tf/models/zoo/weights/`, the images to `reflow_tf/data/`. It resumes from the last finished epoch when
it is started again with the same `--work_dir`. The last epoch is the one that ships: no epoch is chosen on the test
images.

Two cosine cycles: the first sees images that grow, with random erasing; the second sees the largest ones at last,
without erasing. At each of these sizes every stride-2 layer has an even input, so the padding is the same and the
weights carry over, and the early epochs cost a fraction.
"""

import dataclasses
import gzip
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from reflow_tf.models.zoo.architectures import ARCHITECTURES
from reflow_tf.models.zoo.embedded import NUM_CLASSES

FLAGS = flags.FLAGS
flags.DEFINE_string("source_dir", "/usr/share/datasets/fashion-mnist", "Folder of the four official idx.gz files.")
flags.DEFINE_string("work_dir", "/tmp/train_fashion_mnist", "Folder for checkpoints.")
flags.DEFINE_string("package_dir", "reflow_tf", "The package that the results are written into.")
flags.DEFINE_integer("seed", 20, "Seed of the initial weights, the order of the images and the augmentation.")
flags.DEFINE_integer("batch_size", 128, "Images per gradient step.")
flags.DEFINE_integer("calibration_images", 2000, "Training images to embed, the same number of each class.")
flags.DEFINE_integer("evaluation_images", 5000, "Test images to embed: the first ones of the official order.")


@dataclasses.dataclass(frozen=True)
class Cycle:
    """One cosine of the learning rate of SGD with Nesterov momentum 0.9; `sizes` has the image size of each epoch."""

    sizes: tuple[int, ...]
    learning_rate: float
    shift: int
    erase: bool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one architecture is trained; `network` has what the card says of it before all else."""

    network: dict[str, str | float]
    cycles: tuple[Cycle, ...]


RECIPES = {
    "mobilenet_v2": Recipe(
        network={"architecture": "keras.applications.MobileNetV2", "width": 0.5},
        cycles=(
            Cycle(sizes=(32,) * 14 + (64,) * 6, learning_rate=0.1, shift=2, erase=True),
            Cycle(sizes=(64,) * 10, learning_rate=0.05, shift=1, erase=False),
        ),
    ),
    "resnet8": Recipe(
        network={"architecture": "resnet8"},
        cycles=(
            Cycle(sizes=(16,) * 6 + (32,) * 6, learning_rate=0.1, shift=2, erase=True),
            Cycle(sizes=(32,) * 3, learning_rate=0.05, shift=1, erase=False),
        ),
    ),
    "mobilenet_v1_025": Recipe(
        network={"architecture": "mobilenet_v1_025"},
        cycles=(
            Cycle(sizes=(32,) * 12 + (64,) * 4, learning_rate=0.1, shift=2, erase=True),
            Cycle(sizes=(96,) * 2, learning_rate=0.05, shift=1, erase=False),
        ),
    ),
}
flags.DEFINE_enum("architecture", "mobilenet_v2", list(RECIPES), "The zoo name of what is trained.")


def read_idx(path):
    """Reads one gzipped idx file (format: the header comment of LeCun's MNIST page) as uint8."""
    data = gzip.decompress(pathlib.Path(path).read_bytes())
    num_axes = data[3]
    shape = np.frombuffer(data, ">i4", num_axes, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def read_split(name):
    folder = pathlib.Path(FLAGS.source_dir)
    return read_idx(folder / f"{name}-images-idx3-ubyte.gz"), read_idx(folder / f"{name}-labels-idx1-ubyte.gz")


def to_network(images, size):
    """(N, 28, 28) in 0..255 -> (N, size, size, 3) in [-1, 1], as `--preprocess=tf` does."""
    images = tf.image.resize(tf.cast(images, tf.float32)[..., None], (size, size))
    return tf.repeat(images, 3, axis=-1) / 127.5 - 1.0


def augment(image, label, cycle):
    """Random mirror, a shift of up to `cycle.shift` pixels, and perhaps a random square erased on half the images."""
    image = tf.image.random_flip_left_right(image[..., None])
    image = tf.image.random_crop(tf.pad(image, ((cycle.shift,) * 2, (cycle.shift,) * 2, (0, 0))), (28, 28, 1))
    if not cycle.erase:
        return image[..., 0], label
    side = tf.random.uniform((), 2, 11, tf.int32) * tf.random.uniform((), 0, 2, tf.int32)
    corner = tf.random.uniform((2,), 0, 28, tf.int32)
    rows, columns = tf.range(28)[:, None], tf.range(28)[None, :]
    inside = (rows >= corner[0]) & (rows < corner[0] + side) & (columns >= corner[1]) & (columns < corner[1] + side)
    return tf.where(inside, tf.cast(127, image.dtype), image[..., 0]), label


def training_batches(images, labels, size, cycle, seed):
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed)
    dataset = dataset.map(lambda x, y: augment(x, y, cycle), tf.data.AUTOTUNE).batch(
        FLAGS.batch_size, drop_remainder=True
    )
    return dataset.map(lambda x, y: (to_network(x, size), tf.one_hot(y, NUM_CLASSES))).prefetch(2)


def build(size):
    model = ARCHITECTURES[FLAGS.architecture].embedded.build(size, NUM_CLASSES)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.99  # keras.applications' 0.999 needs more steps than this training has
    return model


def learning_rate(peak, step, total_steps, warm_up_steps):
    """Linear warm-up, then half a cosine down to zero."""
    if step < warm_up_steps:
        return peak * (step + 1) / warm_up_steps
    progress = (step - warm_up_steps) / max(1, total_steps - warm_up_steps)
    return peak * 0.5 * (1 + np.cos(np.pi * progress))


class CosineSchedule(keras.callbacks.Callback):
    def __init__(self, peak, first_step, total_steps, warm_up_steps):
        super().__init__()
        self.peak, self.step, self.total_steps, self.warm_up_steps = peak, first_step, total_steps, warm_up_steps

    def on_train_batch_begin(self, batch, logs=None):
        rate = learning_rate(self.peak, self.step, self.total_steps, self.warm_up_steps)
        self.model.optimizer.learning_rate.assign(rate)
        self.step += 1


def train(images, labels):
    """Runs the cycles, one checkpoint an epoch. Returns the model at the last epoch's image size."""
    work_dir = pathlib.Path(FLAGS.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    cycles = RECIPES[FLAGS.architecture].cycles
    epochs = [(cycle, number, size) for cycle in cycles for number, size in enumerate(cycle.sizes)]
    steps_per_epoch = len(images) // FLAGS.batch_size
    model = build(cycles[0].sizes[0])
    for epoch, (cycle, number, size) in enumerate(epochs):
        checkpoint = work_dir / f"epoch_{epoch:03d}.weights.h5"
        if model.input_shape[1] != size:
            weights = model.get_weights()
            model = build(size)
            model.set_weights(weights)
        if checkpoint.exists():
            model.load_weights(checkpoint)
            continue
        # Momentum restarts with each epoch so that a resumed run equals an uninterrupted one.
        model.compile(
            keras.optimizers.SGD(cycle.learning_rate, momentum=0.9, nesterov=True, weight_decay=1e-4),
            keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
            metrics=["accuracy"],
            jit_compile=False,
        )
        total_steps = len(cycle.sizes) * steps_per_epoch
        schedule = CosineSchedule(cycle.learning_rate, number * steps_per_epoch, total_steps, steps_per_epoch)
        tf.random.set_seed(FLAGS.seed + epoch)
        batches = training_batches(images, labels, size, cycle, FLAGS.seed + epoch)
        history = model.fit(batches, epochs=1, verbose=2, callbacks=[schedule])
        print(json.dumps({"epoch": epoch, "size": size, **{k: v[0] for k, v in history.history.items()}}), flush=True)
        model.save_weights(checkpoint)
    return model


def evaluate(model, images, labels):
    """Top-1 over the images, in [0, 1]."""
    size = model.input_shape[1]
    infer = tf.function(lambda x: model(to_network(x, size), training=False))
    predicted = np.concatenate([np.argmax(infer(images[i : i + 250]), -1) for i in range(0, len(images), 250)])
    return float(np.mean(predicted == labels))


def pack_images(train_split, test_split, path):
    """Embeds a class-balanced draw of the training split and the first images of the test split."""
    rng = np.random.default_rng(FLAGS.seed)
    images, labels = train_split
    per_class = FLAGS.calibration_images // NUM_CLASSES
    chosen = np.concatenate([rng.choice(np.flatnonzero(labels == c), per_class, False) for c in range(NUM_CLASSES)])
    chosen = rng.permutation(chosen)
    np.savez_compressed(
        path,
        x_calibration=images[chosen],
        y_calibration=labels[chosen],
        x_evaluation=test_split[0][: FLAGS.evaluation_images],
        y_evaluation=test_split[1][: FLAGS.evaluation_images],
    )


def main(_):
    keras.utils.set_random_seed(FLAGS.seed)
    train_split, test_split = read_split("train"), read_split("t10k")
    package = pathlib.Path(FLAGS.package_dir)
    weights_dir = package / "models" / "zoo" / "weights"
    data_dir = package / "data" / "fashion_mnist"
    weights_dir.mkdir(parents=True, exist_ok=True)
    data_dir.mkdir(parents=True, exist_ok=True)
    pack_images(train_split, test_split, data_dir / "images.npz")

    model = train(*train_split)
    top1 = evaluate(model, *test_split)
    shipped = build(model.input_shape[1])  # never compiled, so that no optimizer state is saved with it
    shipped.set_weights(model.get_weights())
    files = ARCHITECTURES[FLAGS.architecture].embedded
    shipped.save_weights(weights_dir / files.weights_file)
    recipe = RECIPES[FLAGS.architecture]
    card = {
        **recipe.network,
        "image_size": model.input_shape[1],
        "preprocess": "tf",
        "cycles": [dataclasses.asdict(cycle) for cycle in recipe.cycles],
        "seed": FLAGS.seed,
        "test_images": len(test_split[0]),
        "test_top1": round(top1, 4),
    }
    (weights_dir / files.card_file).write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card))


if __name__ == "__main__":
    app.run(main)
