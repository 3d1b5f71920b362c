"""Trains the embedded MobileNetV2 sparse as TensorFlow Model Optimization does, and exports it as its guide does.

    pip install reflow_tf tf_keras 'tensorflow-model-optimization==0.8.*'
    python tools/train_sparse_with_tfmot.py --sparsity=0.8 --output_dir=/tmp/trained_sparse_80

In an environment of its own: TFMOT wants an older absl than TensorFlow. It reads the official Fashion-MNIST files
(Debian package `dataset-fashion-mnist`), starts from the embedded weights, prunes the 1x1 convolutions, which XNNPACK
runs sparse, from half of them to `--sparsity` over the first half of the steps, and fine-tunes on. Into the folder:

* `model.h5`: as it was trained, wrappers and all. `reflow_tf.tools.prune --sparsity=existing` takes it from there.
* `stock.tflite`: wrappers stripped, and TensorFlow's converter without options, as TFMOT's guide exports.
* `stock_sparse.tflite`: the same with `tf.lite.Optimize.EXPERIMENTAL_SPARSITY`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow: TFMOT and its converter take Keras 2 models

import pathlib
import time

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from absl import app, flags
from train_fashion_mnist import read_idx, to_network

from reflow_tf.models.loading import load_model

SIZE = 64
FREQUENCY = 20  # steps from one choice of masks to the next

FLAGS = flags.FLAGS
flags.DEFINE_float("sparsity", 0.8, "Of the 1x1 convolutions at the end.")
flags.DEFINE_integer("epochs", 2, "Over the training images.")
flags.DEFINE_integer("most_images", 60_000, "Training images.")
flags.DEFINE_float("learning_rate", 0.02, "Of SGD with momentum 0.9, at first; it falls by half a cosine to zero.")
flags.DEFINE_string("output_dir", None, "Where the three files go.", required=True)


def build():
    """The embedded network, built by Keras 2: the same layers in the same order."""
    model = tf_keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.5, classes=10, weights=None)
    trained = load_model("mobilenet_v2", image_size=SIZE).model
    assert [layer.name for layer in model.layers[1:]] == [layer.name for layer in trained.layers[1:]]
    model.set_weights(trained.get_weights())
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.99  # keras.applications' 0.999 needs more steps than this training has
    return model


def wrap(model, num_steps):
    """The 1x1 convolutions in TFMOT's wrappers."""
    end = max(1, num_steps // 2 // FREQUENCY) * FREQUENCY  # a step at which masks are chosen
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.5, FLAGS.sparsity, 0, end, frequency=FREQUENCY)

    def prune(layer):
        if type(layer) is tf_keras.layers.Conv2D and layer.kernel_size == (1, 1):
            return tfmot.sparsity.keras.prune_low_magnitude(layer, schedule)
        return layer

    wrapped = tf_keras.models.clone_model(model, clone_function=prune)
    for old, new in zip(model.layers, wrapped.layers, strict=True):
        inner = getattr(new, "layer", new)
        inner.set_weights(old.get_weights())
    return wrapped


def train(model, images, labels):
    num_steps = FLAGS.epochs * (len(images) // 128)
    wrapped = wrap(model, num_steps)
    rate = tf_keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, num_steps)
    wrapped.compile(
        tf_keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        tf_keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0)
    batches = batches.batch(128, drop_remainder=True)
    batches = batches.map(lambda x, y: (to_network(x, SIZE), tf.one_hot(y, 10))).prefetch(2)
    step = tfmot.sparsity.keras.UpdatePruningStep()
    wrapped.fit(batches, epochs=FLAGS.epochs, verbose=2, callbacks=[step])
    return wrapped


def main(_):
    folder = pathlib.Path("/usr/share/datasets/fashion-mnist")
    images, labels = (
        read_idx(folder / f"train-{kind}-ubyte.gz")[: FLAGS.most_images] for kind in ("images-idx3", "labels-idx1")
    )
    started = time.perf_counter()
    tf_keras.utils.set_random_seed(0)
    wrapped = train(build(), images, labels)
    out = pathlib.Path(FLAGS.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    wrapped.save(out / "model.h5")
    stripped = tfmot.sparsity.keras.strip_pruning(wrapped)
    for name, optimizations in (("stock", []), ("stock_sparse", [tf.lite.Optimize.EXPERIMENTAL_SPARSITY])):
        converter = tf.lite.TFLiteConverter.from_keras_model(stripped)
        converter.optimizations = optimizations
        (out / f"{name}.tflite").write_bytes(converter.convert())
    kernels = [layer.kernel.numpy() for layer in stripped.layers if type(layer) is tf_keras.layers.Conv2D]
    zeros = [float(np.mean(kernel == 0)) for kernel in kernels if kernel.shape[:2] == (1, 1)]
    print(f"zeros: {np.mean(zeros):.3f}; {time.perf_counter() - started:.0f} s; wrote {out}")


if __name__ == "__main__":
    app.run(main)
