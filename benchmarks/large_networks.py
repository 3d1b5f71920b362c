"""What the largest networks of the REFLOW paper take: seconds for each image, fixed seconds, and peak memory.

    python benchmarks/large_networks.py --models=resnet50,regnet_x_3_2gf,resnext101_64x4d

The networks have random weights and the images are noise: neither changes what is computed. Each is pruned as in the
paper (every kernel, 80 %, `global`, REFLOW, for storage) by the command itself, in a process of its own, with two
numbers of calibration and of evaluation images: the slope is what an image takes, the rest what any run does.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["resnet50", "regnet_x_3_2gf", "resnext101_64x4d"], "Names of the zoo.")
flags.DEFINE_list("num_images", ["8", "24"], "So many calibrate, and as many are scored, in the two runs.")
flags.DEFINE_integer("image_size", 224, "Height and width.")

GROUPS = {
    "calibrate": ("repair",),
    "score": ("evaluate dense", "evaluate pruned", "evaluate repaired", "evaluate files", "parity"),
}


def run(folder, model, num_images):
    """Seconds of each group of stages and of all, and the peak memory in bytes, of one run in its own process."""
    rng = np.random.default_rng(num_images)
    for name in ("calibration", "evaluation"):
        images = rng.integers(0, 256, (num_images, FLAGS.image_size, FLAGS.image_size, 3))
        np.savez(folder / f"{name}.npz", x=images.astype(np.uint8))
    out = folder / f"{model}_{num_images}"
    command = [sys.executable, "-m", "reflow_tf.tools.prune", f"--model={model}", "--weights=random"]
    command += [f"--data={folder}/calibration.npz", f"--eval_data={folder}/evaluation.npz", f"--output_dir={out}"]
    command += ["--target=storage", "--sparsity=0.8", "--allocation=global", f"--image_size={FLAGS.image_size}"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{model} ended with {os.waitstatus_to_exitcode(status)}")
    seconds = json.loads((out / "report.json").read_text())["seconds"]
    found = {group: sum(seconds.get(stage, 0) for stage in stages) for group, stages in GROUPS.items()}
    return found | {"all": sum(seconds.values())}, usage.ru_maxrss * 1024


def main(_):
    few, many = (int(number) for number in FLAGS.num_images)
    print("| network | fixed, s | to calibrate, s an image | to score, s an image | peak, GB |\n|---|---|---|---|---|")
    for model in FLAGS.models:
        with tempfile.TemporaryDirectory() as folder:
            (first, _), (second, peak) = (run(pathlib.Path(folder), model, number) for number in (few, many))
        each = {group: (second[group] - first[group]) / (many - few) for group in GROUPS}
        fixed = first["all"] - few * sum(each.values())
        numbers = f"{fixed:.0f} | {each['calibrate']:.2f} | {each['score']:.2f} | {peak / 1e9:.1f}"
        print(f"| {model} | {numbers} |", flush=True)


if __name__ == "__main__":
    app.run(main)
