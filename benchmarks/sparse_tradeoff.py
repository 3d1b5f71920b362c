"""How much accuracy buys how much speed: top-1, browser time and ARM instructions over shares of zeros, one network.

    python benchmarks/sparse_tradeoff.py --model=mobilenet_v2 --weights=mobilenet_v2.safetensors \
        --calibration=../shared/data/natural_images:300 --eval_data=../shared/data/imagenet_val_dev \
        --class_names=../shared/data/imagenet_wnids.txt --measure=accuracy --output=tradeoff.jsonl

A row is one file: the dense network in float32, float16 or int8, or a sparse one of a pattern, an allocation and a
share of zeros (or, with --min_speedups, the least one at which it is estimated to be so much faster: allocations at one
cost). `accuracy` repairs the network and scores the file in LiteRT. `web` measures milliseconds in LiteRT.js, all
files of a pattern in turns, on an idle machine; `aarch64` counts instructions of an emulated Cortex-A76. Speed depends
on where zeros are and not on values, so nothing is repaired there. Int8 files take and give float32 in the browser,
which has no other way.

Besides --eval_data, the images of --calibration that were not drawn are scored ("held out"), by how often the file says
what the dense float32 file says, and by the labels of those that have one. That is for choosing: nothing is ever chosen
on the images that results are reported on.

Rows are appended to --output as they are finished, and what is there is not measured again. The last thing printed is
the table of everything there about this network; tools/draw_tradeoff_picture.py draws it.
"""

import functools
import itertools
import json
import math
import os
import pathlib
import resource
import time
from collections.abc import Sequence
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from tradeoff_table import Row, print_table

from reflow_tf import planning, pruning
from reflow_tf.choices import ALLOCATION_NAMES
from reflow_tf.config import PruneConfig
from reflow_tf.data.batches import EvaluationSet
from reflow_tf.data.loading import load_evaluation, load_sets
from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs.benchmark import Candidate, Measured, measure_files
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.loading import LoadedModel, load_model
from reflow_tf.models.predictions import read_outputs
from reflow_tf.models.walking import walk
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.sparsity.masks import count_masked
from reflow_tf.sparsity.patterns import parse

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_integer("image_size", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_string("preprocess", "auto", "As in reflow_tf.tools.prune.")
flags.DEFINE_list("calibration", [], "DATA:COUNT, several with commas: so many images of each calibrate.")
flags.DEFINE_integer("seed", 0, "Of the draw.")
flags.DEFINE_string("eval_data", None, "Images that results are reported on; all are scored.")
flags.DEFINE_string("class_names", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_list("measure", ["accuracy", "web", "aarch64"], "What to measure: accuracy, web, aarch64.")
flags.DEFINE_list("formats", ["float32", "float16", "int8"], "Of the dense network, the first one always.")
flags.DEFINE_list("sparsities", ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8"], "Of the 1x1 weights.")
flags.DEFINE_list("min_speedups", [], "Estimated, over the dense file, in place of --sparsities.")
flags.DEFINE_list("patterns", ["unstructured", "block:2x1"], "As in reflow_tf.tools.prune.")
flags.DEFINE_list("repairs", ["reflow", "least_squares"], "As in reflow_tf.tools.prune; for accuracy.")
flags.DEFINE_string("prunable", "target", "As in reflow_tf.tools.prune.")
flags.DEFINE_list("allocations", ["uniform"], f"Of {', '.join(ALLOCATION_NAMES)}.")
flags.DEFINE_string("output", None, "JSON lines, appended to.", required=True)


class Rows:
    """What was measured, in a file; a row is known by what it says of the file measured and of how."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has(self, key: Row) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


class Scored:
    """Images that are scored, decoded when they are first asked for.

    Attributes:
        name: as rows have it.
    """

    def __init__(self, name: str, parts: Sequence[EvaluationSet]):
        self.name, self._parts = name, [part for part in parts if len(part)]

    @functools.cached_property
    def images(self) -> np.ndarray:
        return np.concatenate([batch for part in self._parts for batch in part])

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(n,) int64, -1 where there is none."""
        return np.concatenate([np.full(len(part), -1) if part.labels is None else part.labels for part in self._parts])


class Images:
    """What calibrates and what is scored.

    Attributes:
        key: what rows say of what calibrates.
        scored: the sets that are scored.
    """

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        drawn, left = [], []
        for text in FLAGS.calibration:
            data, _, count = text.rpartition(":")
            images = self._open(data)
            order = np.random.default_rng(FLAGS.seed).permutation(len(images))
            drawn.append(images.select(order[: int(count)]))
            left.append(images.select(np.sort(order[int(count) :])))
        self._drawn = drawn
        names = [
            ":".join([pathlib.Path(text.rpartition(":")[0]).name, text.rpartition(":")[2]])
            for text in FLAGS.calibration
        ]
        self.key: Row = {"calibration": "+".join(names), "seed": FLAGS.seed}
        self.scored = [Scored("held out", left)] if any(map(len, left)) else []
        if FLAGS.eval_data is not None:
            self.scored.append(
                Scored(pathlib.Path(FLAGS.eval_data).name, [self._open(FLAGS.eval_data, is_reported=True)])
            )

    def _open(self, data: str, *, is_reported: bool = False) -> EvaluationSet:
        """All images of a source; of embedded or packed data those that results are reported on, or the others."""
        options: Row = {
            "preprocessing": self._loaded.preprocessing,
            "num_classes": self._loaded.num_classes,
            "class_names_path": FLAGS.class_names,
            "batch_size": 32,
        }
        if is_reported or os.path.isdir(data):
            return load_evaluation(data, **options)
        drawn = load_sets(data, None, **options, calibration_samples=2**31, seed=0)[0]
        return EvaluationSet(drawn.source, np.sort(drawn.indices), drawn.preprocessing, 32)

    @functools.cached_property
    def calibration(self) -> np.ndarray:
        """(n, ...) float32, the sources mixed: what takes the first few takes some of each."""
        images = np.concatenate([batch for part in self._drawn for batch in part])
        return images[np.random.default_rng(FLAGS.seed).permutation(len(images))]


class Network:
    """The dense network and the files that are made of it."""

    def __init__(self) -> None:
        self.loaded = load_model(
            FLAGS.model, weights=FLAGS.weights, preprocess=FLAGS.preprocess, image_size=FLAGS.image_size
        )
        self.model = self.loaded.model
        self.images = Images(self.loaded)
        self._curves: Row = {}

    def export(self, quantize: str, *, float_inputs: bool = False) -> bytes:
        """The dense network as a file; int8 by the calibration images, or by noise where there are none."""
        shape = tuple(self.model.input_shape[1:])
        samples = self.images.calibration if FLAGS.calibration else noise((4, *shape))
        if quantize == "int8" and float_inputs:
            return export_int8_between_floats(self.model, samples)
        quantize = {"float32": "none"}.get(quantize, quantize)
        return export_tflite(self.model, quantize=quantize, calibration=[samples], storage="dense").content

    def prune(self, cell: Row, repair: str, device: str | None = None) -> pruning.PruneResult:
        """A sparse one."""
        config = PruneConfig(
            sparsity=cell.get("sparsity"),
            min_speedup=cell.get("min_speedup"),
            pattern=parse(cell["pattern"]),
            allocation=cell["allocation"],
            prunable=FLAGS.prunable,
            repair=repair,
            device=device,
        )
        needs_images = repair != "none" or config.allocation == "auto"
        with mock.patch.object(planning, "measure_sensitivity", self._remember(config)):
            return pruning.prune(self.model, config, self.images.calibration if needs_images else None, batch_size=32)

    def _remember(self, config: PruneConfig):
        """Curves of 'auto' do not depend on how much is to be zero: they are measured once."""

        def measure(model, specs, patterns, *rest):
            key = (tuple(patterns.items()), config.turns_streams)
            if key not in self._curves:
                self._curves[key] = REAL_SENSITIVITY(model, specs, patterns, *rest)
            return self._curves[key]

        return measure

    @functools.cached_property
    def multiplications(self) -> dict[str, int]:
        """Path -> how often each weight of that kernel is used in one inference: the positions of its output."""
        layers = {place.path: place.layer for place in walk(self.model)}
        paths = [spec.path for spec in find_kernels(self.model).specs]
        return {path: math.prod(layers[path.rpartition("/")[0]].output.shape[1:-1]) for path in paths}


# What a file that is measured there is made for.
DEVICE_OF = {"web": "browser", "aarch64": "arm"}
REAL_SENSITIVITY = planning.measure_sensitivity


def export_int8_between_floats(model: keras.Model, samples: np.ndarray) -> bytes:
    """Integer arithmetic, with float32 in and out."""
    function = tf.function(lambda images: model(images, training=False), autograph=False)
    spec = tf.TensorSpec((1, *samples.shape[1:]), tf.float32)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function(spec)])
    converter.optimizations = {tf.lite.Optimize.DEFAULT}
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: ([sample[np.newaxis]] for sample in samples)
    return converter.convert()


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def list_cells() -> list[Row]:
    """The sparse files asked for, without what repairs them."""
    budgets = [{"min_speedup": float(text)} for text in FLAGS.min_speedups]
    budgets = budgets or [{"sparsity": float(text)} for text in FLAGS.sparsities]
    sorts = itertools.product(FLAGS.patterns, FLAGS.allocations, budgets)
    chosen = {} if FLAGS.prunable == "target" else {"prunable": FLAGS.prunable}
    kinds = [{"file": "sparse", "pattern": pattern, "allocation": name, **budget} for pattern, name, budget in sorts]
    return [kind | chosen for kind in kinds]


def measure_accuracy(network: Network, rows: Rows, key: Row) -> None:
    key = key | {"measure": "accuracy"} | network.images.key
    dense = functools.cache(lambda: score(network.export("float32"), network))
    for quantize in FLAGS.formats:
        cell = key | {"file": quantize}
        if not is_scored(cell, network, rows):
            found = dense() if quantize == "float32" else score(network.export(quantize, float_inputs=True), network)
            add_scores(found, dense(), cell, {}, network, rows)
    for cell, repair in itertools.product(list_cells(), FLAGS.repairs):
        cell = key | cell | {"repair": repair}
        if is_scored(cell, network, rows):
            continue
        start = time.monotonic()
        pruned = network.prune(cell, repair)
        seconds = round(time.monotonic() - start)
        found = score(export_tflite(pruned.model, storage="dense").content, network)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
        cost = {"seconds": seconds, "peak_gb": peak}  # the memory is the process's peak so far
        add_scores(found, dense(), cell, describe_masks(pruned.masks, network) | cost, network, rows)
        keras.backend.clear_session()


def is_scored(cell: Row, network: Network, rows: Rows) -> bool:
    return all(rows.has(cell | {"scored": part.name}) for part in network.images.scored)


def score(content: bytes, network: Network) -> list[np.ndarray]:
    """The class that the file names first for each image of each set that is scored, (n,) int each."""
    file = LiteRT(content)
    outputs = [read_outputs(file.run(part.images), network.loaded.num_classes) for part in network.images.scored]
    return [found.argmax(axis=-1) for found in outputs]


def add_scores(found, dense, cell: Row, more: Row, network: Network, rows: Rows) -> None:
    """A row for each set that is scored, unless it is there."""
    for part, ours, others in zip(network.images.scored, found, dense, strict=True):
        cell = cell | {"scored": part.name}
        if not rows.has(cell):
            known = part.labels >= 0
            hits = {"hits": int((ours == part.labels)[known].sum()), "labelled": int(known.sum())}
            rows.add(cell | hits | {"agree": int((ours == others).sum()), "n": len(ours)} | more)


def describe_masks(masks, network: Network) -> Row:
    """Shares of the pruned kernels: of their weights that are zero, of their multiplications that are left."""
    counts = network.multiplications
    sizes = {path: (mask.size, np.count_nonzero(mask)) for path, mask in masks.items()}
    whole, left = (sum(counts[path] * pair[which] for path, pair in sizes.items()) for which in (0, 1))
    zeros = count_masked(masks) / sum(size for size, _ in sizes.values())
    return {"zeros": round(zeros, 4), "multiplications_left": round(left / whole, 4)}


def measure_speed(network: Network, rows: Rows, key: Row, runtime: str) -> None:
    """In the browser all files of a pattern in one run, since what else the machine does differs from run to run."""
    key = key | {"measure": runtime}
    plain = [key | {"file": name} for name in FLAGS.formats]
    cells = [key | cell for cell in list_cells()]
    if runtime == "aarch64":
        for cell in [*plain, *cells]:
            measure_together(network, rows, [cell], runtime)
        return
    for pattern in FLAGS.patterns:
        measure_together(network, rows, [*plain[1:], *(cell for cell in cells if cell["pattern"] == pattern)], runtime)


def measure_together(network: Network, rows: Rows, cells: Sequence[Row], runtime: str) -> None:
    """Measures those that are missing, in turns with the dense file where it is time that is measured."""
    missing = [cell for cell in cells if not rows.has(cell)]
    if not missing:
        return
    dense = Candidate("float32", network.export("float32")) if runtime == "web" else None
    files = [make_file(network, cell, runtime) for cell in missing]
    contents = [Candidate(f"file {number}", file.pop("content")) for number, file in enumerate(files)]
    found = measure_files(contents, dense, runtime=runtime)
    for cell, file, cost in zip(missing, files, found.files, strict=True):
        rows.add(cell | file | describe_cost(cost, found.baseline) | {"load": round(os.getloadavg()[0], 2)})


def make_file(network: Network, cell: Row, runtime: str) -> Row:
    if cell["file"] != "sparse":
        return {"content": network.export(cell["file"], float_inputs=runtime == "web")}
    pruned = network.prune(cell, "none", DEVICE_OF[runtime])
    file = export_tflite(pruned.model, rewrite="exact", device=DEVICE_OF[runtime])
    has_ballast = any(applied.rewrite == "ballast" for applied in file.rewrites)
    refusals = [f"{refused.rewrite}: {refused.reason}" for refused in file.refused]
    said = {"ballast": has_ballast, "notes": [*file.notes, *refusals]}
    return {"content": file.content, **said, **describe_masks(pruned.masks, network)}


def describe_cost(file: Measured, baseline: Measured | None) -> Row:
    row: Row = {"bytes": file.size_bytes, "cost": file.cost.median, **file.describe_difference()}
    if baseline is not None and file.speedup is not None:
        gains = {"gain": file.speedup.median, "gain_low": file.speedup.low, "gain_high": file.speedup.high}
        row |= {"dense_cost": baseline.cost.median} | {name: round(value, 4) for name, value in gains.items()}
    return row


def main(_: list[str]) -> None:
    keras.utils.set_random_seed(0)
    rows, network = Rows(pathlib.Path(FLAGS.output)), Network()
    key: Row = {"model": pathlib.Path(FLAGS.model).stem}
    for measure in FLAGS.measure:
        if measure == "accuracy":
            measure_accuracy(network, rows, key)
        else:
            measure_speed(network, rows, key, measure)
    print_table([row for row in rows.rows if key.items() <= row.items()])


if __name__ == "__main__":
    app.run(main)
