"""Pruned networks on microcontrollers against dense ones: accuracy, flash, arena, instructions, Vela's estimates.

    pip download --no-deps bakenn==1.0.0 --dest /tmp        # it vendors the sources of CMSIS-NN 4.0.0
    python benchmarks/microcontrollers.py --bakenn=/tmp/bakenn-1.0.0-py3-none-any.whl --output=mcu.jsonl

Of each network and sparsity: convolutions and fully connected layers are pruned by magnitude and repaired in each way
of --repairs, and the last of them is written as an int8 file. That file, its weights as bitmaps, runs in TFLM; C is
generated from it and counted on emulated boards, beside dense CMSIS-NN running the unpruned network; Vela estimates the
rest. A network without images of its own, such as DS-CNN with random weights, has no accuracy: '-'.

Columns: top-1 of magnitude pruning alone, after each repair, and of the int8 file in TFLM, all on the same images;
bytes of the file, and of the unpruned one as the converter writes it; smallest arena with weights expanded in it;
images on which TFLM with bitmaps equals TFLM without, and C equals TFLM; flash and instructions of the C by those of
CMSIS-NN; cycles.
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
from calibration import export_int8, open_images
from program import Program
from sources import read_sources

import reflow_tf
from reflow_tf.choices import BOARDS
from reflow_tf.export.c_kernels.generation import generate_c
from reflow_tf.jobs.microcontroller import Files, build, measure_cortex_m, measure_ethos_u, measure_tflm
from reflow_tf.jobs.scoring import rank_outputs
from reflow_tf.models.loading import load_model
from reflow_tf.report.scores import score_accuracy
from reflow_tf.runtimes.tflm.runtime import TFLM

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["resnet8", "mobilenet_v1_025", "ds_cnn"], "As --model of reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune. Default: embedded ones; random ones for ds_cnn.")
flags.DEFINE_string("data", None, "As in reflow_tf.tools.prune. Default: the images of embedded weights.")
flags.DEFINE_list("sparsities", ["0", "0.5", "0.65", "0.8", "0.9"], "Of the kernels that C skips zeros in.")
flags.DEFINE_string("allocation", "erk", "As in reflow_tf.tools.prune.")
flags.DEFINE_list("repairs", ["reflow", "least_squares"], "Chains, with + between their links; the last is exported.")
flags.DEFINE_string("accelerator", "ethos-u55-128", "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("compared_images", 100, "Evaluation images on which outputs are compared bit for bit.")
flags.DEFINE_string("bakenn", None, "Wheel or folder of bakenn, or a checkout of CMSIS-NN.", required=True)
flags.DEFINE_string("output", None, "JSON lines, appended to.", required=True)


def main(_):
    sources = read_sources(pathlib.Path(FLAGS.bakenn))
    rows = []
    for name in FLAGS.models:
        loaded = load_model(name, weights=FLAGS.weights or ("random" if name == "ds_cnn" else None))
        calibration, evaluation = open_images(loaded, FLAGS.data, calibration_samples=1000, num_noise=64)
        dense = export_int8(loaded.model, calibration)
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


def measure(loaded, calibration, evaluation, dense, sparsity):
    """What one sparsity comes to."""
    results = {chain: prune(loaded.model, chain, sparsity, calibration, evaluation) for chain in FLAGS.repairs}
    result = results[FLAGS.repairs[-1]]
    plain, bitmaps = export_int8(result.model, calibration), export_int8(result.model, calibration, "bitmap")
    images = calibration[0] if evaluation is None else first(evaluation, FLAGS.compared_images)
    files = [Files(exported, dense, images[: FLAGS.compared_images]) for exported in (bitmaps, plain)]
    tflm, cortex = measure_tflm(files[0]), measure_cortex_m(files[1], BOARDS)
    vela = measure_ethos_u(files[1], FLAGS.accelerator)
    dense_c = build(dense.content, generate_c(dense.content, storage="dense"), "m4")
    return {
        **score(results, evaluation, bitmaps.content),
        "tflm": dataclasses.asdict(tflm),
        "cortex_m": dataclasses.asdict(cortex),
        "vela": dataclasses.asdict(vela),
        "dense_c_flash": dense_c.sizes.flash_bytes,
    }


def prune(model, chain, sparsity, calibration, evaluation):
    config = reflow_tf.PruneConfig(
        sparsity=sparsity, target="cortex_m", allocation=FLAGS.allocation, repair=chain.replace("+", ",")
    )
    return reflow_tf.prune(model, config, calibration, evaluation=evaluation)


def first(evaluation, number):
    images, batches = [], iter(evaluation)
    while sum(map(len, images)) < number:
        images.append(next(batches))
    return np.concatenate(images)[:number]


def score(results, evaluation, content):
    """Top-1 of the dense network, after magnitude pruning, after each repair, and of the file."""
    if evaluation is None:
        return {"accuracy": None}
    signals = {chain: result.report.signals for chain, result in results.items()}
    one = signals[FLAGS.repairs[-1]]
    ranked = {"dense": one["dense"].ranked, "magnitude": one["pruned"].ranked}
    ranked |= {chain: of_chain["repaired"].ranked for chain, of_chain in signals.items()}
    classes = one["dense"].num_classes
    ranked["int8"] = rank_outputs(map(TFLM(content).run, evaluation), classes)
    return {"accuracy": {name: score_accuracy(each, evaluation.labels, classes).top1 for name, each in ranked.items()}}


def print_table(rows):
    print(
        "| model | zeros | top-1: "
        + ", ".join(("magnitude", *FLAGS.repairs, "int8 file"))
        + " | file, bytes | arena | equal | C: flash / CMSIS-NN | "
        + " | ".join(f"{board} / CMSIS-NN" for board in BOARDS)
        + " | Vela: flash | cycles |\n"
        + "|---" * (9 + len(BOARDS))
        + "|"
    )
    for row in rows:
        scores = [f"{top1:.1%}" for name, top1 in (row["accuracy"] or {}).items() if name != "dense"]
        tflm, cortex, vela = row["tflm"], row["cortex_m"], row["vela"]
        ratio = tflm["flash_bytes"] / tflm["dense_flash_bytes"]
        equal = ", ".join(f"{each['num_equal']} of {each['num_compared']}" for each in (tflm, cortex))
        work = [(cortex["instructions"][board]["file"], row["cmsis_nn"][board]) for board in BOARDS]
        cells = [
            *(row["model"], f"{row['sparsity']:.0%}", ", ".join(scores) or "-"),
            f"{tflm['flash_bytes']:,} of {tflm['dense_flash_bytes']:,} ({ratio:.2f}x)",
            f"{tflm['arena_bytes']:,} (dense {tflm['dense_arena_bytes']:,})",
            equal,
            f"{cortex['flash_bytes']:,} of {row['cmsis_nn_flash']:,}",
            *(f"{ours / 1e6:.2f} of {theirs / 1e6:.2f} M ({ours / theirs:.2f}x)" for ours, theirs in work),
            f"{vela['flash_bytes']:,} of {vela['dense_flash_bytes']:,}",
            f"{vela['npu_cycles']['file'] / 1e3:.0f} of {vela['npu_cycles']['dense'] / 1e3:.0f} k",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
