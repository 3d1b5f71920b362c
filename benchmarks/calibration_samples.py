"""How many calibration images REFLOW needs, and in batches of which size, on the embedded model at --sparsity.

    python benchmarks/calibration_samples.py

Uses the embedded training-split images only, one half to calibrate and the other to score: for choosing defaults.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

from reflow_tf.config import PruneConfig
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.data.loading import load_sets
from reflow_tf.models.loading import load_model
from reflow_tf.pruning import prune
from reflow_tf.repair.batchnorm import recalibrate
from reflow_tf.report.scores import score_accuracy
from reflow_tf.signal import measure_signal

FLAGS = flags.FLAGS
flags.DEFINE_float("sparsity", 0.8, "Of the 1x1 convolutions.")
flags.DEFINE_list("samples", ["16", "64", "250", "500", "1000"], "Numbers of calibration images.")
flags.DEFINE_list("batch_sizes", ["16", "64", "128", "250"], "Images at a time.")


def main(_):
    loaded = load_model("mobilenet_v2")
    images, _ = load_sets(
        "fashion_mnist",
        None,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names_path=None,
        calibration_samples=2000,
        batch_size=250,
        seed=0,
    )
    middle = len(images) // 2
    scored = EvaluationSet(images.source, images.indices[middle:], images.preprocessing, 250)
    print("| images |" + "".join(f" batch {size} |" for size in FLAGS.batch_sizes))
    for num_samples in map(int, FLAGS.samples):
        cells = []
        for batch_size in map(int, FLAGS.batch_sizes):
            pruned = prune(loaded.model, PruneConfig(sparsity=FLAGS.sparsity, repair="none")).model
            chosen = images.indices[: min(num_samples, middle)]
            recalibrate(pruned, CalibrationSet(images.source, chosen, images.preprocessing, batch_size))
            signal = measure_signal(pruned, scored)
            cells.append(score_accuracy(signal.ranked, scored.labels, signal.num_classes).top1)
        print(f"| {num_samples} |" + "".join(f" {cell:.1%} |" for cell in cells), flush=True)


if __name__ == "__main__":
    app.run(main)
