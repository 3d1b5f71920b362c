"""Top-1 of the gradient-free chain, and of distillation after it, where XNNPACK begins to pay: three draws, one table.

    python benchmarks/accuracy_bars.py --model=mobilenet_v2 --weights=mobilenet_v2.safetensors \
        --data=../shared/data/imagenet_dev --class_names=../shared/data/imagenet_wnids.txt --output=bars.jsonl

Half of the images, those that `reflow_tf.tools.prune --calibration_samples=250 --seed=0` calibrates on, are never
scored: whatever was chosen while this package was written was chosen on them. The other half is cut into --num_parts.
Each part in turn is scored, while all other images calibrate: each is scored once, by a network that has never seen it,
nor, with one image a class, its class. With one part, one half calibrates and the other is scored. Only 1x1
convolutions are pruned.

What a method owes to each part of the least-squares sweep is seen by leaving parts out: mask (the largest weights are
kept), refit (kept weights stay what they were), bn (moments stay the dense ones). `global:least_squares:mask/refit`
is then batch norms alone, as the sweep follows them.

Rows are appended to --output as they are finished, and what is in there is not measured again. Seconds hold for the
machine; memory is the process's peak so far.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import resource
import time
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from reflow_tf.data.loading import load_evaluation
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.loading import load_model
from reflow_tf.models.surgery import copy_model, write_masks
from reflow_tf.repair import layer_fitting, least_squares
from reflow_tf.repair.chain import run_chain
from reflow_tf.repair.contract import PrunedModel, read_weights, show_nothing
from reflow_tf.report.interval import wilson_interval
from reflow_tf.sensitivity import MOST_FITTED, MOST_JUDGED, measure_sensitivity
from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.budget import share_out
from reflow_tf.sparsity.layers import Kind
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.patterns import Unstructured
from reflow_tf.sparsity.plan import PruningPlan, make_plan

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "mobilenet_v2", "As in reflow_tf.tools.prune.")
flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_string("data", None, "As in reflow_tf.tools.prune.", required=True)
flags.DEFINE_string("class_names", None, "As in reflow_tf.tools.prune.")
flags.DEFINE_list("sparsities", ["0.7", "0.8"], "Of the 1x1 kernels.")
flags.DEFINE_list(
    "methods",
    ["global:reflow", "auto:least_squares"],
    "ALLOCATION:REPAIR[+REPAIR...][:PART[/PART...]]: parts of least squares that are left out.",
)
flags.DEFINE_integer("most_calibration", 500, "Images that calibrate, at most.")
flags.DEFINE_list("draws", ["0"], "Seeds of the draws of calibration images, where --most_calibration leaves some out.")
flags.DEFINE_integer("num_parts", 3, "Into how many the half that is scored is cut.")
flags.DEFINE_list("parts", None, "Which of them are scored. Default: all.")
flags.DEFINE_string("output", None, "JSON lines, appended to.", required=True)


def main(_):
    loaded = load_model(FLAGS.model, weights=FLAGS.weights)
    evaluation = load_evaluation(
        FLAGS.data,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names_path=FLAGS.class_names,
        batch_size=125,
    )
    images, labels = np.concatenate(list(evaluation)), np.asarray(evaluation.labels)
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.array_split(order[len(order) // 2 :], FLAGS.num_parts)
    output = pathlib.Path(FLAGS.output)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    shared, never_scored = Sensitivity(), images[order[: min(len(order) // 2, MOST_FITTED + MOST_JUDGED)]]
    for part, draw in itertools.product(map(int, FLAGS.parts or range(FLAGS.num_parts)), map(int, FLAGS.draws)):
        others = order[~np.isin(order, parts[part])]
        if len(others) > FLAGS.most_calibration:
            others = np.random.default_rng(draw).choice(others, FLAGS.most_calibration, replace=False)
        scored = images[parts[part]], labels[parts[part]]
        key = {"model": FLAGS.model, "part": part, "draw": draw}
        for row in measure(loaded.model, images[others], *scored, rows, key, shared, never_scored):
            rows.append(row)
            with output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    print_table(rows)


class Sensitivity:
    """The curves of `auto`, measured once for all parts, on images that calibrate whatever is scored."""

    def __init__(self):
        self.curves, self.seconds = None, 0.0

    def measure(self, model, specs, never_scored):
        if self.curves is None:
            start = time.monotonic()
            self.curves = measure_sensitivity(
                model, specs, dict.fromkeys((spec.path for spec in specs), Unstructured()), [never_scored], show_nothing
            )
            self.seconds = time.monotonic() - start


def measure(model, calibration, images, labels, rows, key, shared, never_scored):
    """The rows of one part and draw that are missing."""
    specs = [spec for spec in find_kernels(model).specs if spec.kind is Kind.POINTWISE_CONV]
    weights = find_kernels(model).read()
    scores = {spec.path: np.abs(weights[spec.path]) for spec in specs}
    wanted = [("dense", 0.0)] + [(method, float(text)) for text in FLAGS.sparsities for method in FLAGS.methods]
    for method, sparsity in wanted:
        cell = key | {"method": method, "sparsity": sparsity}
        if any(cell.items() <= row.items() for row in rows):
            continue
        allocation, repairs, left_out = (*method.split(":"), "", "")[:3]
        if allocation == "auto":
            shared.measure(model, specs, never_scored)
        start = time.monotonic()
        pruned = copy_model(model)
        if method != "dense":
            rule = ALLOCATIONS.get(allocation) or functools.partial(share_measured, shared.curves)
            plan = make_plan(specs, scores, dict.fromkeys(scores, Unstructured()), rule, sparsity)
            with leaving_out(left_out.split("/") if left_out else []):
                repair(pruned, plan, repairs.split("+") if repairs else [], calibration)
        seconds = time.monotonic() - start + (shared.seconds if allocation == "auto" else 0)
        found = np.concatenate([pruned(images[i : i + 50], training=False).numpy() for i in range(0, len(images), 50)])
        yield cell | {
            "hits": int((found.argmax(-1) == labels).sum()),
            "images": len(images),
            "calibration": len(calibration),
            "seconds": round(seconds),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
        }
        keras.backend.clear_session()


@contextlib.contextmanager
def leaving_out(names):
    """For the time of the block, the sweep of least squares does without these of its parts."""

    def keep_weights(problem, kernel, gains, layer):
        found = layer_fitting.fit_kernel(problem, kernel, gains, layer)
        return layer_fitting.Fit(kernel * found.mask, found.mask, found.error)

    def keep_moments(norm, *_):
        return np.array(norm.moving_mean), np.array(norm.moving_variance)

    replacements = {
        "mask": (layer_fitting, "choose_mask", lambda equations, weights, gains, select: select(np.abs(weights))),
        "refit": (least_squares, "fit_kernel", keep_weights),
        "bn": (least_squares, "follow_moments", keep_moments),
    }
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(*replacements[name]))
        yield


def share_measured(curves, specs, _, sparsity):
    return share_out(specs, curves, sparsity)


def repair(model, plan: PruningPlan, repairs, calibration) -> None:
    """Prunes the model by magnitude, and repairs it."""
    kernels, before = find_kernels(model), read_weights(model)
    weights = kernels.read()
    masks = build_masks(plan, {path: np.abs(weights[path]) for path in plan.layers})
    write_masks(kernels, masks)
    batches = np.array_split(calibration, -(-len(calibration) // 50))
    for outcome in run_chain(repairs, PrunedModel(model, masks, before), batches, show_nothing, plan=plan)[1]:
        print("   ", outcome.statement, flush=True)


def print_table(rows) -> None:
    """Over all parts, since every image is scored once."""
    print(
        "| model | method | sparsity | draw | top-1 (95 %) | by part | seconds | peak GB |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    groups = {}
    for row in rows:
        groups.setdefault((row["model"], row["method"], row["sparsity"], row["draw"]), []).append(row)
    for (model, method, sparsity, draw), group in sorted(groups.items()):
        hits, images = (sum(row[key] for row in group) for key in ("hits", "images"))
        low, high = wilson_interval(hits, images)
        by_part = ", ".join(f"{row['hits'] / row['images']:.1%}" for row in sorted(group, key=lambda row: row["part"]))
        seconds = " to ".join(str(f(row["seconds"] for row in group)) for f in (min, max))
        peak = max(row["peak_gb"] for row in group)
        score = f"{hits / images:.1%} ({low:.1%} to {high:.1%})"
        print(f"| {model} | {method} | {sparsity:.0%} | {draw} | {score} | {by_part} | {seconds} | {peak} |")


if __name__ == "__main__":
    app.run(main)
