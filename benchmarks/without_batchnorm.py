"""What can be restored where no batch norm stands behind any layer: the embedded model with its batch norms folded.

    python benchmarks/without_batchnorm.py

Folding multiplies each batch norm into the convolution before it, so that the network computes the same and has none
left; REFLOW then has nothing to restore. Pruned by magnitude, and repaired in closed form: `moments` corrects mean and
variance in bias and scale, `least_squares` refits. Beside it the same network as it was, with REFLOW.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from reflow_tf.config import PruneConfig
from reflow_tf.data.loading import load_sets
from reflow_tf.models.loading import load_model
from reflow_tf.pruning import prune
from reflow_tf.report.scores import score_accuracy
from reflow_tf.signal import measure_signal

FLAGS = flags.FLAGS
flags.DEFINE_list("sparsities", ["0.5", "0.6", "0.7", "0.8"], "Of the 1x1 kernels.")
flags.DEFINE_list("folded_repairs", ["none", "moments", "obs,moments", "least_squares"], "Of the folded network.")
flags.DEFINE_string("allocation", "lamp", "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("calibration_samples", 256, "Images that calibrate.")


def fold(model: keras.Model) -> keras.Model:
    """The same network without batch norms: each goes into the convolution that it follows."""
    behind = {norm.input: norm for norm in model.layers if isinstance(norm, keras.layers.BatchNormalization)}

    def clone(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.BatchNormalization):
            return keras.layers.Identity(name=layer.name)
        changes = {"use_bias": True} if layer.output in behind else {}
        return type(layer).from_config(layer.get_config() | changes)

    def call(layer: keras.Layer, *args, mask=None, **options):  # which a batch norm takes and Identity does not
        return layer(*args, **options)

    folded = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in model.layers:
        values = layer.get_weights()
        if (norm := behind.get(layer.output)) is not None:
            gamma, beta, mean, variance = norm.get_weights()
            scale = gamma / np.sqrt(variance + norm.epsilon)
            is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            kernel = values[0] * (scale[:, None] if is_depthwise else scale)
            values = [kernel, beta - mean * scale + (values[1] * scale if layer.use_bias else 0)]
        if values and not isinstance(layer, keras.layers.BatchNormalization):
            folded.get_layer(layer.name).set_weights(values)
    return folded


def main(_):
    keras.utils.set_random_seed(0)
    loaded = load_model("mobilenet_v2")
    calibration, evaluation = load_sets(
        loaded.default_data,
        None,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names_path=None,
        calibration_samples=FLAGS.calibration_samples,
        batch_size=128,
        seed=0,
    )
    calibrating, scored = list(calibration), list(evaluation)

    def score(model: keras.Model) -> float:
        signal = measure_signal(model, scored)
        return score_accuracy(signal.ranked, evaluation.labels, signal.num_classes).top1

    folded = fold(loaded.model)
    images = scored[0]
    difference = np.abs(folded(images, training=False) - loaded.model(images, training=False)).max()
    print(f"dense {score(loaded.model):.1%}; folded {score(folded):.1%}, outputs differ by {difference:.1e} at most")
    runs = [(folded, "folded", repair) for repair in FLAGS.folded_repairs]
    runs += [(loaded.model, "with batch norms", repair) for repair in ("none", "reflow")]
    print("| network | repair |" + "".join(f" {float(s):.0%} |" for s in FLAGS.sparsities))
    print("|---|---|" + "---|" * len(FLAGS.sparsities))
    for model, name, repair in runs:
        cells = []
        for sparsity in map(float, FLAGS.sparsities):
            config = PruneConfig(sparsity=sparsity, allocation=FLAGS.allocation, repair=repair)
            cells.append(f" {score(prune(model, config, calibrating).model):.1%} |")
        print(f"| {name} | {repair} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    app.run(main)
