"""What a run costs beside what LiteRT alone needs for its images; and what an image costs in Keras, by batch.

    python benchmarks/scoring_cost.py --model=mobilenet_v2 --image_size=224 --num_images=5000

Random weights and images of random colours: time does not depend on them. The whole of `prune` is timed, from loading
to the written page, and afterwards the dense file and the file over the same images, one after the other, and nothing
else. An idle machine is needed.
"""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

from reflow_tf.export.tflite import export_tflite
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.models.loading import load_model
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.signal import measure_signal

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "A zoo name.")
flags.DEFINE_integer("image_size", 224, "Height and width.")
flags.DEFINE_integer("num_images", 5000, "Evaluation images; 1,000 more calibrate.")
flags.DEFINE_list("batch_sizes", ["8", "32", "128"], "For the cost of an image in Keras.")
flags.DEFINE_string("output_dir", None, "Where the run leaves its results; a temporary folder unless given.")


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def make_images(count: int, size: int, seed: int) -> np.ndarray:
    """uint8 (count, size, size, 3): a colour each, and noise, so that none is there twice."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 216, (count, 1, 1, 3), np.int16)
    noise = rng.integers(-40, 40, (16, size, size, 3), np.int16)
    return np.stack([(colours[i] + noise[i % 16]).astype(np.uint8) for i in range(count)])


def run_both(folder: pathlib.Path, dense: bytes, images: np.ndarray) -> None:
    for content in (dense, (folder / "model.tflite").read_bytes()):
        runtime = LiteRT(content)
        for batch in batches(images, 32):
            runtime.run(batch)


def batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield images[start : start + size].astype(np.float32) / 127.5 - 1


def main(_) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(FLAGS.output_dir or temporary)
        model = load_model(FLAGS.model, weights="random", image_size=FLAGS.image_size).model
        path = pathlib.Path(temporary) / f"{FLAGS.model}.keras"
        model.save(path)
        images = make_images(FLAGS.num_images, FLAGS.image_size, 0)
        np.savez(path.with_suffix(".npz"), x=images, y=np.arange(FLAGS.num_images) % model.output_shape[-1])
        np.savez(path.with_name("calibration.npz"), x=make_images(1000, FLAGS.image_size, 1))
        job = JobConfig(
            str(path),
            str(folder / "run"),
            data=str(path.with_name("calibration.npz")),
            eval_data=str(path.with_suffix(".npz")),
            preprocess="tf",
        )
        whole = seconds_of(lambda: pipeline.run(job))
        report = json.loads((folder / "run" / "report.json").read_text())
        dense = export_tflite(model, storage="dense").content
        alone = seconds_of(lambda: run_both(folder / "run", dense, images))
    print("| | seconds |\n|---|---|")
    for stage, spent in report["seconds"].items():
        print(f"| {stage} | {spent:.1f} |")
    print(f"| **the whole run** | **{whole:.1f}** |\n| LiteRT alone, dense file and file | {alone:.1f} |")
    print(f"\n{FLAGS.num_images:,} images: the run takes {whole / alone:.2f} times as long as LiteRT alone.\n")
    print("| images at a time | ms an image, signal in Keras |\n|---|---|")
    some = images[:256]
    for size in map(int, FLAGS.batch_sizes):
        spent = seconds_of(lambda size=size: measure_signal(model, batches(some, size)))
        print(f"| {size} | {1000 * spent / len(some):.1f} |")
    print(f"| LiteRT, one file | {1000 * alone / 2 / len(images):.1f} |")


if __name__ == "__main__":
    app.run(main)
