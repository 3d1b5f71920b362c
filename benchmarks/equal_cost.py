"""Top-1 of every allocation at one cost for the target: how each shares out the zeros, at the same estimated speed.

    python benchmarks/equal_cost.py --model=mobilenet_v2 --weights=mobilenet_v2.safetensors \
        --data=../shared/data/imagenet_dev --class_names=../shared/data/imagenet_wnids.txt --min_speedup=2

XNNPACK counts the multiplications of the 1x1 convolutions in its cluster, and wants two thirds of their weights to be
zero. With --min_speedup each allocation gets the least sparsity at which the file is estimated to be so much faster
than dense; how many weights that leaves differs. Without --data it is the embedded model and its images. The split is
that of `reflow_tf.tools.prune` with the same seed.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags

from reflow_tf.config import ALLOCATION_NAMES, PruneConfig
from reflow_tf.data.loading import load_sets
from reflow_tf.models.loading import load_model
from reflow_tf.pruning import prune
from reflow_tf.report.scores import score_accuracy
from reflow_tf.signal import measure_signal

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_string("data", "fashion_mnist", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("class_names", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("calibration_samples", 250, "Images that calibrate.")
flags.DEFINE_integer("seed", 0, "Seed of the split.")
flags.DEFINE_list("allocations", list(ALLOCATION_NAMES), "Rows.")
flags.DEFINE_float("min_speedup", 2.0, "Estimated, over the dense file.")
flags.DEFINE_string("repair", "reflow", "As in reflow_tf.tools.prune.")


def main(_):
    keras.utils.set_random_seed(FLAGS.seed)
    loaded = load_model(FLAGS.model, weights=FLAGS.weights)
    calibration, evaluation = load_sets(
        FLAGS.data,
        None,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names_path=FLAGS.class_names,
        calibration_samples=FLAGS.calibration_samples,
        batch_size=125,
        seed=FLAGS.seed,
    )
    calibrating, scored = list(calibration), list(evaluation)

    def score(model: keras.Model) -> str:
        """Top-1 and its 95 % interval."""
        signal = measure_signal(model, scored)
        found = score_accuracy(signal.ranked, evaluation.labels, signal.num_classes)
        return "{:.1%} ({:.1%} to {:.1%})".format(found.top1, *found.top1_interval)

    print(
        f"{FLAGS.model}: dense {score(loaded.model)}, {len(evaluation)} images scored, {len(calibration)} calibrate; "
        f"estimated speed-up {FLAGS.min_speedup:g}, --repair={FLAGS.repair}"
    )
    print("| allocation | weights zero | top-1 |\n|---|---|---|")
    for allocation in FLAGS.allocations:
        config = PruneConfig(min_speedup=FLAGS.min_speedup, allocation=allocation, repair=FLAGS.repair)
        result = prune(loaded.model, config, calibrating)
        sizes = [(mask.size, mask.sum()) for mask in result.masks.values()]
        zeros = 1 - sum(kept for _, kept in sizes) / sum(size for size, _ in sizes)
        print(f"| {allocation} | {zeros:.1%} | {score(result.model)} |", flush=True)
        keras.backend.clear_session()


if __name__ == "__main__":
    app.run(main)
