"""Zeros or fewer bits: sparse float32 beside the dense network in every other number format, on emulated ARM CPUs.

    python -m reflow_tf.tools.setup_runtime --runtime=aarch64
    python benchmarks/number_formats.py --weights=random --image_size=224 --cpus=cortex-a76,cortex-a72

Counted are the instructions of one inference, which weights do not change. Across number formats they are no measure of
time: a vector instruction handles four float32 or sixteen int8 numbers, and not every CPU takes both at one pace. An
estimate of cycles stands behind them (docs/frontier.md).
"""

import contextlib
import io
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from reflow_tf.config import PruneConfig
from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs.benchmark import Candidate, measure_files
from reflow_tf.models.loading import load_model
from reflow_tf.pruning import prune
from reflow_tf.runtimes.aarch64 import cpus
from reflow_tf.runtimes.aarch64.runtime import AArch64

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("image_size", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_list("sparsities", ["0.7", "0.8"], "Of the 1x1 weights, the same in every layer.")
flags.DEFINE_list("cpus", [cpus.DEFAULT_CPU], f"What QEMU plays: {', '.join(cpus.CPUS)}.")


def make_files(model: keras.Model) -> list[Candidate]:
    """The dense network in every number format, float32 first, and float32 with zeros stored sparse."""
    sample = np.random.default_rng(0).standard_normal((4, *model.input_shape[1:])).astype(np.float32)
    files = []
    for name, quantize in (("float32", "none"), ("float16", "float16"), ("int8", "int8")):
        file = export_tflite(model, quantize=quantize, calibration=[sample], storage="dense")
        files.append(Candidate(f"{name}, dense", file.content))
    files.append(Candidate("dynamic range, dense", convert_dynamic_range(model)))
    for sparsity in map(float, FLAGS.sparsities):
        pruned = prune(model, PruneConfig(sparsity=sparsity, allocation="uniform", repair="none")).model
        files.append(Candidate(f"float32, {sparsity:.0%} zeros", export_tflite(pruned, rewrite="exact").content))
    return files


def convert_dynamic_range(model: keras.Model) -> bytes:
    """TensorFlow's own conversion with int8 weights and float activations, which needs no images."""
    image = keras.Input(model.input_shape[1:], batch_size=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, model(image)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with contextlib.redirect_stdout(io.StringIO()):  # it lists every variable
        return bytes(converter.convert())


def measure(file: Candidate, cpu: str) -> str:
    """Millions of instructions, and of cycles by estimate; the outputs are compared with LiteRT's first."""
    (found,) = measure_files([file], runtime="aarch64", cpu=cpu).files
    if found.differs:
        raise RuntimeError(f"{file.label} must give LiteRT's outputs on {cpu}. Received: {found.difference}")
    return f"{found.cost.median / 1e6:.1f} / {AArch64(file.content, cpu=cpu).estimate().cycles / 1e6:.1f}"


def main(_: list[str]) -> None:
    keras.utils.set_random_seed(0)
    dense, *others = make_files(load_model(FLAGS.model, weights=FLAGS.weights, image_size=FLAGS.image_size).model)
    print("| file | bytes | " + " | ".join(FLAGS.cpus) + " |\n|---|---|" + "---|" * len(FLAGS.cpus))
    for file in (dense, *others):
        counts = " | ".join(measure(file, cpu) for cpu in FLAGS.cpus)
        print(f"| {file.label} | {len(file.content):,} | {counts} |", flush=True)


if __name__ == "__main__":
    app.run(main)
