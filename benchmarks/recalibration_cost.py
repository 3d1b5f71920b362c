"""REFLOW's cost: one recalibration against one plain `predict` over the same batches of the same model, in one run.

    python benchmarks/recalibration_cost.py

Both are called as a user calls them, tracing included, in turn, on fresh copies of the model, so that neither profits
from the other's traces; the ratio is taken pair by pair. The bar is 1.3.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from reflow_tf.models.surgery import copy_model
from reflow_tf.repair.batchnorm import recalibrate

FLAGS = flags.FLAGS
flags.DEFINE_integer("pairs", 5, "Pairs of runs that count, after one that does not.")

# name, image size, width, images, batch size
CASES = (("MobileNetV2 1.0 at 224", 224, 1.0, 512, 64), ("embedded MobileNetV2 0.5 at 64", 64, 0.5, 2000, 125))


def time_predict(model: keras.Model, images: np.ndarray, batch_size: int) -> float:
    start = time.perf_counter()
    model.predict(images, batch_size=batch_size, verbose=0)
    return time.perf_counter() - start


def time_recalibrate(model: keras.Model, images: np.ndarray, batch_size: int) -> float:
    start = time.perf_counter()
    recalibrate(model, (images[i : i + batch_size] for i in range(0, len(images), batch_size)))
    return time.perf_counter() - start


def main(_):
    for name, size, width, num_images, batch_size in CASES:
        model = keras.applications.MobileNetV2(input_shape=(size, size, 3), alpha=width, weights=None, classes=10)
        images = np.random.default_rng(0).uniform(-1, 1, (num_images, size, size, 3)).astype(np.float32)
        pairs = []
        for _ in range(FLAGS.pairs + 1):
            times = (
                time_recalibrate(copy_model(model), images, batch_size),
                time_predict(copy_model(model), images, batch_size),
            )
            pairs.append(times)
        ratios = sorted(recalibration / predict for recalibration, predict in pairs[1:])
        seconds = np.median(pairs[1:], axis=0)
        print(
            f"{name}, {num_images} images: recalibration {seconds[0]:.2f} s, predict {seconds[1]:.2f} s, "
            f"ratio {np.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
