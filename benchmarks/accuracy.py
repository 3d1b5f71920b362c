"""Top-1 of magnitude pruning alone and with REFLOW, over allocations and sparsities: one table, one run.

    python benchmarks/accuracy.py --model=mobilenet_v2 --weights=mobilenet_v2.safetensors \
        --data=../shared/data/imagenet_dev --class_names=../shared/data/imagenet_wnids.txt --output=table.json

The images are split once by --seed: --calibration_samples calibrate, the others are scored. With --choose, only the
calibration images are used, one half to calibrate and the other to score: that is for choosing defaults, so that
nothing is ever chosen on the images that results are reported on.
"""

import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags

from reflow_tf.config import PruneConfig
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.data.loading import load_sets
from reflow_tf.models.loading import load_model
from reflow_tf.pruning import prune
from reflow_tf.repair.batchnorm import recalibrate
from reflow_tf.report.scores import score_accuracy
from reflow_tf.signal import compare_signals, measure_signal
from reflow_tf.sparsity.allocation import ALLOCATIONS

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_string("data", "fashion_mnist", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("class_names", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("calibration_samples", 250, "Images that calibrate.")
flags.DEFINE_integer("calibrate_on", None, "Only so many of them; the scored images stay the same.")
flags.DEFINE_integer("batch_size", 125, "Images at a time.")
flags.DEFINE_integer("seed", 0, "Seed of the split.")
flags.DEFINE_list("allocations", list(ALLOCATIONS), "Columns.")
flags.DEFINE_list("sparsities", ["0.5", "0.6", "0.7", "0.8"], "Rows.")
flags.DEFINE_bool("choose", False, "Use no evaluation image.")
flags.DEFINE_string("output", None, "JSON file to write.")


def halve(calibration: CalibrationSet) -> tuple[CalibrationSet, EvaluationSet]:
    """Two disjoint halves of the calibration images: one calibrates, one is scored."""
    middle = len(calibration) // 2
    rest = (calibration.preprocessing, calibration.batch_size)
    return (
        CalibrationSet(calibration.source, calibration.indices[:middle], *rest),
        EvaluationSet(calibration.source, calibration.indices[middle:], *rest),
    )


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
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
    )
    if FLAGS.choose:
        calibration, evaluation = halve(calibration)
    if FLAGS.calibrate_on:
        calibration.indices = calibration.indices[: FLAGS.calibrate_on]
    # Decoded once: every cell of the table goes over the same images.
    calibrating, scored = list(calibration), list(evaluation)

    dense = measure_signal(loaded.model, scored)

    def measure(model: keras.Model) -> dict:
        """Top-1, and the two figures that the verdict on collapse rests on."""
        signal = measure_signal(model, scored)
        return {
            "top1": score_accuracy(signal.ranked, evaluation.labels, signal.num_classes).top1,
            "last_ratio": compare_signals(signal, dense)[-1].ratio,
            "class_share": signal.effective_classes / dense.effective_classes,
        }

    top1 = score_accuracy(dense.ranked, evaluation.labels, dense.num_classes).top1
    table = {"model": FLAGS.model, "calibration": len(calibration), "n": len(evaluation), "dense": top1}
    print(json.dumps(table), flush=True)
    table["cells"] = []
    for allocation in FLAGS.allocations:
        for sparsity in map(float, FLAGS.sparsities):
            config = PruneConfig(sparsity=sparsity, allocation=allocation, repair="none")
            pruned = prune(loaded.model, config).model
            cell = {"allocation": allocation, "sparsity": sparsity, "magnitude": measure(pruned)}
            recalibrate(pruned, calibrating)
            cell["reflow"] = measure(pruned)
            table["cells"].append(cell)
            print(json.dumps(cell), flush=True)
    if FLAGS.output:
        pathlib.Path(FLAGS.output).write_text(json.dumps(table, indent=1) + "\n")
    print_table(table)


def print_table(table: dict) -> None:
    """One row a sparsity, one column an allocation; each cell 'magnitude alone -> with REFLOW', in percent."""
    cells = {(cell["sparsity"], cell["allocation"]): cell for cell in table["cells"]}
    print(f"\n{table['model']}, dense {table['dense']:.1%}, n = {table['n']}, calibrated on {table['calibration']}")
    print("| sparsity |" + "".join(f" {name} |" for name in FLAGS.allocations))
    print("|---|" + "---|" * len(FLAGS.allocations))
    for sparsity in map(float, FLAGS.sparsities):
        row = (cells[sparsity, name] for name in FLAGS.allocations)
        text = "".join(
            f" {100 * cell['magnitude']['top1']:.1f} -> {100 * cell['reflow']['top1']:.1f} |" for cell in row
        )
        print(f"| {sparsity:.0%} |{text}")


if __name__ == "__main__":
    app.run(main)
