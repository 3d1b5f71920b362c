"""Dense, the converter's own sparse export, and ours, side by side in one run of one runtime.

    python benchmarks/xnnpack_speed.py --model=mobilenet_v2 --weights=mobilenet_v2-b0353104.safetensors \
        --sparsities=0.7,0.8,0.9 --allocations=uniform,global --runtime=web --output=mobilenet_v2.json

An idle machine is needed for --runtime=web; --runtime=aarch64 counts instructions and does not mind. For each file the
table gives the verdict of `reflow_tf.tools.explain` beside what the runtime then did, and what it estimates for both
devices. Speed depends on where the zeros are and not on the other weights' values, so nothing is
repaired here.
"""

import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags

from reflow_tf.config import PruneConfig
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs.benchmark import RUNTIMES, Candidate, describe, measure_files
from reflow_tf.models.loading import load_model
from reflow_tf.pruning import prune
from reflow_tf.targets.xnnpack import XNNPack

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("image_size", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_list("sparsities", ["0.7", "0.8", "0.9"], "Of the 1x1 weights.")
flags.DEFINE_list("allocations", ["global"], "How they are shared out.")
flags.DEFINE_list("quantize", ["none"], "none, float16.")
flags.DEFINE_enum("runtime", "web", list(RUNTIMES), "Where to measure.")
flags.DEFINE_integer("rounds", None, "As in reflow_tf.tools.benchmark.")
flags.DEFINE_string("save", None, "A folder for the files.")
flags.DEFINE_string("output", None, "JSON file to write.")


def export_stock(model: keras.Model, input_shape: tuple[int, ...]) -> bytes:
    """What TensorFlow's converter makes of a pruned model when it is asked for sparsity, as its guide says."""
    function = tf.function(lambda images: model(images, training=False), autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function(tf.TensorSpec((1, *input_shape), tf.float32))]
    )
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    return converter.convert()


def main(_):
    keras.utils.set_random_seed(0)
    model = load_model(FLAGS.model, weights=FLAGS.weights, image_size=FLAGS.image_size).model
    input_shape = tuple(model.input_shape[1:])
    dense = Candidate("dense", export_tflite(model, storage="dense", input_shape=input_shape).content)
    files = []
    for allocation in FLAGS.allocations:
        for sparsity in FLAGS.sparsities:
            config = PruneConfig(sparsity=float(sparsity), allocation=allocation, repair="none")
            pruned = prune(model, config).model
            label = f"{allocation} {float(sparsity):.0%}"
            files.append(Candidate(f"{label}, stock export", export_stock(pruned, input_shape)))
            for quantize in FLAGS.quantize:
                ours = export_tflite(pruned, quantize=quantize, rewrite="exact", input_shape=input_shape)
                files.append(Candidate(f"{label}, ours, {quantize}".removesuffix(", none"), ours.content))
    if FLAGS.save:
        for file in (dense, *files):
            name = "".join(letter if letter.isalnum() else "_" for letter in file.label)
            pathlib.Path(FLAGS.save, f"{FLAGS.model}_{name}.tflite").write_bytes(file.content)
    found = measure_files(files, dense, runtime=FLAGS.runtime, rounds=FLAGS.rounds)
    verdicts = [XNNPack().judge(read_operators(file.content)) for file in (dense, *files)]
    print(f"\n{FLAGS.model}, {'x'.join(map(str, input_shape))}: {found.runtime}, {found.rounds} rounds")
    print(f"| file | bytes | {found.unit} | quartiles | dense / file | quartiles | estimates | linter |")
    print("|---|---|---|---|---|---|---|---|")
    for one, verdict in zip(found.all_files, verdicts, strict=True):
        cost = "{:,.0f}" if found.unit == "instructions" else "{:.2f}"
        spread = f"{cost.format(one.cost.low)} to {cost.format(one.cost.high)}"
        ratio, around = "", ""
        if one.speedup:
            ratio, around = f"{one.speedup.median:.2f}", f"{one.speedup.low:.2f} to {one.speedup.high:.2f}"
        words = (
            "sparse"
            if verdict.eligible
            else "; ".join(f"{blocker.operator or 'the file'}: {blocker.reason}" for blocker in verdict.blockers[:2])
        )
        print(
            f"| {one.label} | {one.size_bytes:,} | {cost.format(one.cost.median)} | {spread} | {ratio} | {around} | "
            f"{', '.join(f'{name} {value:.2f}' for name, value in verdict.possible_speedups.items())} | {words} |"
        )
    if FLAGS.output:
        pathlib.Path(FLAGS.output).write_text(json.dumps(describe(found), indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
