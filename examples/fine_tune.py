"""Prune, train on, export, verify: once with zeros that a callback keeps, once with a narrower network.

    python examples/fine_tune.py --epochs=1

The network is the embedded ResNet-8, the images are the embedded Fashion-MNIST. Both files are run in LiteRT.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import reflow_tf
from reflow_tf.data.loading import load_sets
from reflow_tf.models.loading import load_model
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.sparsity import patterns

FLAGS = flags.FLAGS
flags.DEFINE_integer("epochs", 1, "How long each network is trained on.", lower_bound=1)
flags.DEFINE_integer("images", 5000, "So many labelled images train.", lower_bound=100)

CONFIGS = {
    "80 % zeros": reflow_tf.PruneConfig(sparsity=0.8, target="storage"),
    "half of the multiply-adds": reflow_tf.PruneConfig(
        pattern=patterns.Channel(), max_macs=0.5, repair="least_squares", target="storage"
    ),
}


def train_on(result: reflow_tf.PruneResult, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    """Trains a pruned model; zeros stay zero, and a narrower network has none."""
    is_narrow = result.report.narrowing is not None
    callbacks = [] if is_narrow else [reflow_tf.keep_zeros(result.model, result.masks)]
    result.model.compile(keras.optimizers.Adam(3e-4), "sparse_categorical_crossentropy")
    result.model.fit(images, labels, epochs=epochs, batch_size=64, verbose=0, callbacks=callbacks)


def main(_: list[str]) -> None:
    keras.utils.set_random_seed(0)
    loaded = load_model("resnet8")
    training, testing = load_sets(
        "fashion_mnist",
        None,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names_path=None,
        calibration_samples=FLAGS.images,
        batch_size=256,
        seed=0,
    )
    images, labels = np.concatenate(list(training)), training.source.labels[training.indices]
    tests = np.concatenate(list(testing))
    for name, config in CONFIGS.items():
        result = reflow_tf.prune(loaded.model, config, images[:500])
        before = LiteRT(reflow_tf.export_tflite(result.model).content).run(tests)
        train_on(result, images, labels, FLAGS.epochs)
        file = reflow_tf.export_tflite(result.model)
        after = LiteRT(file.content).run(tests)
        np.testing.assert_allclose(after, result.model.predict(tests, verbose=0), atol=1e-4)  # the file is the model
        scores = (float((outputs.argmax(-1) == testing.labels).mean()) for outputs in (before, after))
        print(f"{name}: top-1 {next(scores):.1%} pruned, {next(scores):.1%} trained on; {len(file.content):,} bytes")


if __name__ == "__main__":
    app.run(main)
