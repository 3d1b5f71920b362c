"""Pruned networks on microcontrollers against dense ones: accuracy, flash, arena, instructions, Vela's estimates.

    pip download --no-deps bakenn==1.0.0 --dest /tmp        # it vendors the sources of CMSIS-NN 4.0.0
    python benchmarks/microcontrollers.py --models=resnet8,mobilenet_v1_025 --bakenn=/tmp/bakenn-1.0.0-py3-none-any.whl

Of each network and sparsity: convolutions and fully connected layers are pruned by magnitude, batch norms re-estimated,
and one int8 file written. That file, its weights as bitmaps, runs in TFLM; C is generated from it and counted on
emulated boards, beside dense CMSIS-NN running the unpruned network; Vela estimates the rest. A network without images
of its own (--weights=random or a path, and no --data) has no accuracy: '-'.

Columns: top-1 of magnitude pruning alone, after REFLOW, and of the int8 file in TFLM; bytes of the file, and of the
unpruned one as the converter writes it; smallest arena with weights expanded in it; images on which TFLM with bitmaps
equals TFLM without, and C equals TFLite's reference kernels; instructions of the C by those of CMSIS-NN; cycles.
"""

import dataclasses
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent / "cmsis_nn"))

import numpy as np
from absl import app, flags
from program import Program
from sources import read_sources

import reflow_tf
from reflow_tf.config import BOARDS
from reflow_tf.data.loading import load_sets
from reflow_tf.evaluation import rank_outputs
from reflow_tf.export.c_kernels.generation import generate_c
from reflow_tf.export.tflite import export_tflite
from reflow_tf.microcontroller import Files, build, measure_cortex_m, measure_ethos_u, measure_tflm
from reflow_tf.models.loading import load_model
from reflow_tf.report.scores import score_accuracy
from reflow_tf.runtimes.tflm.runtime import TFLM

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["resnet8", "mobilenet_v1_025"], "As --model of reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_string("data", None, "As in reflow_tf.tools.prune. Default: the images of embedded weights.")
flags.DEFINE_list("sparsities", ["0", "0.5", "0.65", "0.8", "0.9"], "Of the kernels that C skips zeros in.")
flags.DEFINE_string("allocation", "erk", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("repair", "reflow", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("accelerator", "ethos-u55-128", "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("int8_images", 1000, "Evaluation images that the int8 file is scored on.")
flags.DEFINE_integer("compared_images", 100, "Of them, those on which outputs are compared bit for bit.")
flags.DEFINE_string("bakenn", None, "Wheel or folder of bakenn, or a checkout of CMSIS-NN.", required=True)
flags.DEFINE_string("output", None, "JSON lines, appended to.", required=True)


def main(_):
    sources = read_sources(pathlib.Path(FLAGS.bakenn))
    rows = []
    for name in FLAGS.models:
        loaded = load_model(name, weights=FLAGS.weights)
        calibration, evaluation = open_images(loaded)
        dense = export(loaded.model, calibration)
        rival = {board: Program(dense.content, sources).runtime(board, "-O3") for board in BOARDS}
        rival_costs = {board: int(runtime.measure()) for board, runtime in rival.items()}
        for sparsity in map(float, FLAGS.sparsities):
            row = {"model": name, "sparsity": sparsity, "cmsis_nn": rival_costs}
            row["cmsis_nn_flash"] = rival["m4"].sizes.flash_bytes
            row |= measure(loaded, calibration, evaluation, dense, sparsity)
            rows.append(row)
            with pathlib.Path(FLAGS.output).open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    print_table(rows)


def open_images(loaded):
    """Calibration batches, and an evaluation set or None."""
    data = FLAGS.data or loaded.default_data
    if data is None:
        shape = loaded.model.input_shape[1:]
        return [np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)], None
    return load_sets(
        data,
        None,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names_path=None,
        calibration_samples=1000,
        batch_size=128,
        seed=0,
    )


def export(model, calibration, storage="dense"):
    return export_tflite(model, quantize="int8", calibration=calibration, storage=storage)


def measure(loaded, calibration, evaluation, dense, sparsity):
    """What one sparsity comes to."""
    config = reflow_tf.PruneConfig(
        sparsity=sparsity, target="cortex_m", allocation=FLAGS.allocation, repair=FLAGS.repair
    )
    result = reflow_tf.prune(loaded.model, config, calibration, evaluation=evaluation)
    plain, bitmaps = export(result.model, calibration), export(result.model, calibration, "bitmap")
    images = calibration[0] if evaluation is None else first(evaluation, FLAGS.compared_images)
    files = [Files(exported, dense, images[: FLAGS.compared_images]) for exported in (bitmaps, plain)]
    tflm, cortex = measure_tflm(files[0]), measure_cortex_m(files[1], BOARDS)
    vela = measure_ethos_u(files[1], FLAGS.accelerator)
    dense_c = build(dense.content, generate_c(dense.content, storage="dense"), "m4")
    return {
        **score(result, evaluation, bitmaps.content),
        "tflm": dataclasses.asdict(tflm),
        "cortex_m": dataclasses.asdict(cortex),
        "vela": dataclasses.asdict(vela),
        "dense_c_flash": dense_c.sizes.flash_bytes,
    }


def first(evaluation, number):
    images, batches = [], iter(evaluation)
    while sum(map(len, images)) < number:
        images.append(next(batches))
    return np.concatenate(images)[:number]


def score(result, evaluation, content):
    if evaluation is None:
        return {"magnitude": None, "repaired": None, "int8": None}
    signals, labels = result.report.signals, evaluation.labels
    classes = signals["dense"].num_classes
    found = {
        stage: score_accuracy(signals[name].ranked, labels, classes).top1
        for stage, name in (("magnitude", "pruned"), ("repaired", "repaired"))
    }
    images = first(evaluation, FLAGS.int8_images)
    ranked = rank_outputs([TFLM(content).run(images)])
    return found | {"int8": score_accuracy(ranked, labels[: len(images)], classes).top1}


def print_table(rows):
    print(
        "| model | zeros | magnitude | repaired | int8 | file, bytes | arena | equal | "
        + " | ".join(f"{board} / CMSIS-NN" for board in BOARDS)
        + " | Vela: flash | cycles |\n"
        + "|---" * (10 + len(BOARDS))
        + "|"
    )
    for row in rows:
        scores = ["-" if row[key] is None else f"{row[key]:.1%}" for key in ("magnitude", "repaired", "int8")]
        tflm, cortex, vela = row["tflm"], row["cortex_m"], row["vela"]
        ratio = tflm["flash_bytes"] / tflm["dense_flash_bytes"]
        equal = ", ".join(f"{each['num_equal']} of {each['num_compared']}" for each in (tflm, cortex))
        work = [(cortex["instructions"][board]["file"], row["cmsis_nn"][board]) for board in BOARDS]
        cells = [
            *(row["model"], f"{row['sparsity']:.0%}", *scores),
            f"{tflm['flash_bytes']:,} of {tflm['dense_flash_bytes']:,} ({ratio:.2f}x)",
            f"{tflm['arena_bytes']:,} (dense {tflm['dense_arena_bytes']:,})",
            equal,
            *(f"{ours / 1e6:.2f} of {theirs / 1e6:.2f} M ({ours / theirs:.2f}x)" for ours, theirs in work),
            f"{vela['flash_bytes']:,} of {vela['dense_flash_bytes']:,}",
            f"{vela['npu_cycles']['file'] / 1e3:.0f} of {vela['npu_cycles']['dense'] / 1e3:.0f} k",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
