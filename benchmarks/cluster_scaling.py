"""What workers gain, and what their parts cost: one against two workers of one thread each, on this machine.

    python benchmarks/cluster_scaling.py --model=mobilenet_v2 --image_size=224 --num_images=256

Random weights and JPEGs of random colours: time does not depend on them. Within one run, for one worker and for two:
the dense file over the images (evaluation), recalibration over them, and all that the least-squares sweep of the 1x1
kernels does with images, without views and without its decisions, which do not depend on images. "To begin" is the
same pass over two images for each worker, who has run before: what opening the file or tracing the network takes.
At last what a part costs by itself: putting the sums of two shards together, telling two workers what changed, a task
that does nothing. An idle machine with two cores or more is needed.
"""

import json
import os
import pathlib
import pickle
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from PIL import Image

from reflow_tf.cluster.opening import open_crew
from reflow_tf.crew import Crew
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.export.tflite import export_tflite
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.finished import OpenedFile
from reflow_tf.jobs.inputs import foresee_task, open_sets
from reflow_tf.jobs.scoring import rank_files
from reflow_tf.models.carrying import Address
from reflow_tf.models.execution import read_steps
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.loading import LoadedModel, load_model
from reflow_tf.models.surgery import write_masks
from reflow_tf.repair.batchnorm import recalibrate
from reflow_tf.repair.contract import PrunedModel, read_weights, show_nothing
from reflow_tf.repair.least_squares import SHARD, begin_course
from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.patterns import Unstructured
from reflow_tf.sparsity.plan import make_plan

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "A zoo name.")
flags.DEFINE_integer("image_size", 224, "Height and width.")
flags.DEFINE_integer("num_images", 256, "That calibrate, and as many that are evaluated on.")
flags.DEFINE_bool("sweep", True, "Whether shards are led as the least-squares sweep does, too.")

Seconds = dict[str, float]
BEGUN = ", begun"


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_images(folder: pathlib.Path, count: int, size: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        noise = rng.integers(0, 256, (size // 8, size // 8, 3), np.uint8)
        image = Image.fromarray(noise).resize((size * 5 // 4, size), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=90)


def prune(loaded: LoadedModel) -> PrunedModel:
    kernels = find_kernels(loaded.model)
    specs = [spec for spec in kernels.specs if len(spec.canonical_shape) == 4 and spec.canonical_shape[1:3] == (1, 1)]
    weights = kernels.read()
    scores = {spec.path: np.abs(weights[spec.path]) for spec in specs}
    plan = make_plan(specs, scores, {spec.path: Unstructured() for spec in specs}, ALLOCATIONS["uniform"], 0.7)
    pruned = PrunedModel(loaded.model, build_masks(plan, scores), read_weights(loaded.model))
    write_masks(kernels, pruned.masks)
    return pruned


def time_crew(
    crew: Crew, loaded: LoadedModel, dense: bytes, calibration: CalibrationSet, evaluation: EvaluationSet
) -> Seconds:
    """Seconds of each stage with these workers."""

    def evaluate(images: EvaluationSet) -> None:
        rank_files({"dense": OpenedFile(dense, "litert")}, {}, images, loaded.num_classes or 0, show_nothing, crew=crew)

    few = np.arange(2 * crew.num_workers)
    begun = (
        calibration.select(few),
        EvaluationSet(evaluation.source, evaluation.indices[few], evaluation.preprocessing, 1),
    )
    begun[0].batch_size = 2
    evaluate(begun[1])  # TensorFlow starts
    found = {
        "evaluation" + BEGUN: seconds_of(lambda: evaluate(begun[1])),
        "evaluation": seconds_of(lambda: evaluate(evaluation)),
    }
    recalibrate(loaded.model, begun[0], crew=crew)  # the model is built
    found["recalibration" + BEGUN] = seconds_of(lambda: recalibrate(loaded.model, begun[0], crew=crew))
    found["recalibration"] = seconds_of(lambda: recalibrate(loaded.model, calibration, crew=crew))
    if FLAGS.sweep:
        found["shards led"] = seconds_of(lambda: lead(crew, prune(loaded), calibration))
    return found


def lead(crew: Crew, pruned: PrunedModel, calibration: CalibrationSet) -> None:
    """All that the least-squares sweep does with images, views left out, and nothing of what it decides."""
    SUMS.clear()
    steps = read_steps(pruned.model)
    first = next(iter(calibration))[:1]
    with begin_course(pruned, steps, first, calibration, None, crew) as (meter, course, _):
        course.add(course.num_shards)
        for position in range(len(steps.steps)):
            if position in meter.specs or meter.find_norm(position) is not None:
                SUMS.append(course.gather(position)[0])
    pruned.write_weights(pruned.dense_weights)


def time_parts(crew: Crew, loaded: LoadedModel) -> dict[str, Any]:
    """What a merge and a broadcast cost."""
    parts: dict[str, Any] = {"tensors told at the start, bytes": sum(v.nbytes for v in read_weights(loaded.model))}
    if SUMS:
        parts["sums of a shard, bytes, of all layers"] = sum(len(pickle.dumps(sums)) for sums in SUMS)
        parts["the same, of the largest layer"] = max(len(pickle.dumps(sums)) for sums in SUMS)
        parts["merging them, s, of all layers"] = min(
            seconds_of(lambda: [sums + sums for sums in SUMS]) for _ in range(5)
        )
    with crew.begin(_Echo()) as site:
        list(site.map(range(8), home=lambda item: item))
        parts["task that does nothing, s"] = seconds_of(lambda: list(site.map(range(64), home=lambda i: i))) / 64
        for size in (1_000_000, 16_000_000, 64_000_000):
            content = np.random.default_rng(0).integers(0, 256, size, np.uint8)
            start = time.perf_counter()
            site.tell(content)
            list(site.map(range(crew.num_workers), home=lambda item: item))
            parts[f"telling {crew.num_workers} workers {size:,} bytes, s"] = time.perf_counter() - start
        sent = [seconds_of(lambda: list(site.map([-8_000_000], home=lambda item: 0))) for _ in range(3)]
        parts["sending back 8,000,000 bytes, s"] = min(sent)
    return parts


class _Echo:
    """A work that costs nothing by itself."""

    def prepare(self) -> Any:
        from reflow_tf.crew import State

        class Echo(State):
            def __call__(self, items: Any) -> Any:
                return (np.empty(max(0, -item), np.uint8) for item in items)

            def hear(self, news: Any) -> None:
                """Nothing follows from it."""

        return Echo()


SUMS: list[Any] = []


def show(stage: str, one: tuple[float, float], two: tuple[float, float], num_images: int) -> None:
    """A line; each pair: seconds of all, and those until it had begun."""
    (alone, before), (both, before_both) = one, two
    ratio = (alone - before) / (both - before_both)
    each = 1000 * (alone - before) / num_images
    print(
        f"{stage:20} 1 worker {alone:7.2f} s ({before:.2f} to begin), 2 workers {both:7.2f} s ({before_both:.2f}): "
        f"{alone / both:.2f}x, {ratio:.2f}x once begun; {each:.1f} ms an image"
    )


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch, "images")
        write_images(folder, 2 * FLAGS.num_images, FLAGS.image_size)
        job = JobConfig(
            FLAGS.model, scratch, data=str(folder), weights="random", image_size=FLAGS.image_size,
            calibration_samples=FLAGS.num_images, batch_size=32,
        )  # fmt: skip
        loaded = load_model(job.model, weights=job.weights, image_size=job.image_size)
        calibration, evaluation, _ = open_sets(job, *foresee_task(job, loaded))
        dense = export_tflite(loaded.model, storage="dense", input_shape=calibration.sample_shape).content
        address = Address.of(job.model, job.weights, job.image_size)
        seconds: dict[int, Seconds] = {}
        for num_workers in (1, 2):
            with open_crew(str(num_workers), 1, address) as crew:
                seconds[num_workers] = time_crew(crew, loaded, dense, calibration, evaluation)
                parts = time_parts(crew, loaded) if num_workers == 2 else {}
    for stage in (stage for stage in seconds[1] if not stage.endswith(BEGUN)):
        show(stage, *((seconds[n][stage], seconds[n].get(stage + BEGUN, 0.0)) for n in (1, 2)), len(calibration))
    shards, load = -(-len(calibration) // SHARD), os.getloadavg()[0]
    print(f"{len(calibration)} images, {shards} shards, {len(os.sched_getaffinity(0))} cores, load {load:.1f}")
    print(json.dumps(parts, indent=2))


if __name__ == "__main__":
    app.run(main)
