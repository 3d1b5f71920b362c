"""Draws what more calibration images buy, from the reports of runs that differ in their number: one SVG file.

    python -m reflow_tf.tools.prune --model=mobilenet_v2 --calibration_samples=250 --output_dir=out/v2_250 ...
    python tools/draw_images_picture.py --folders='out/*'

A curve is one model; whiskers are the intervals of the scores.
"""

import glob
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from markupsafe import Markup

from reflow_tf.report import svg
from reflow_tf.report.standalone import MARGIN, stand_alone
from reflow_tf.report.wording import count, interval, percent

FLAGS = flags.FLAGS
flags.DEFINE_list("folders", None, "Output folders of prune, or patterns of them.", required=True)
flags.DEFINE_string("output", "docs/images/images.svg", "The SVG file to write.")

WIDTH, HEIGHT = 640.0, 430.0
TOP, BOTTOM, LEFT, RIGHT = 92.0, 360.0, 68.0, WIDTH - 150.0
APART = 8.0
COLOURS = ("repaired", "file", "pruned")
NAMES = {"mobilenet_v2": "MobileNetV2", "efficientnet_lite0": "EfficientNet-Lite0"}


def draw(reports: Sequence[dict[str, Any]]) -> str:
    """The picture as the text of an SVG file; reports as in report.json."""
    points: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for report in reports:
        found = points.setdefault(report["model"]["name"], [])
        found.append((report["data"]["calibration"]["num_images"], report["accuracy"]["file"]))
    counts = sorted({number for found in points.values() for number, _ in found})
    x = svg.linear((math.log(counts[0]), math.log(counts[-1])), (LEFT, RIGHT))
    scores = [bound for found in points.values() for _, score in found for bound in score["top1_interval"]]
    lowest, highest = math.floor(min(scores) * 20) / 20, math.ceil(max(scores) * 20) / 20
    y = svg.linear((lowest, highest), (BOTTOM, TOP))
    (sparsity,) = {report["config"]["sparsity"] for report in reports}
    (scored,) = {score["n"] for found in points.values() for _, score in found}
    below = f"Top-1 of {scored} ImageNet validation images, {percent(sparsity, 0)} of weights zero."
    parts = [
        svg.text(MARGIN, MARGIN + 14, "What more calibration images buy", "title"),
        svg.text(MARGIN, MARGIN + 36, below, "words"),
        svg.text((LEFT + RIGHT) / 2, BOTTOM + 44, "unlabelled images to calibrate, logarithmic", "tick", "middle"),
    ]
    for number in counts:
        parts.append(svg.line(x(math.log(number)), BOTTOM, x(math.log(number)), BOTTOM + 5, "axis"))
        parts.append(svg.text(x(math.log(number)), BOTTOM + 20, count(number), "tick", "middle"))
    for step in range(round(lowest * 20), round(highest * 20) + 1):
        parts.append(svg.line(LEFT, y(step / 20), RIGHT, y(step / 20), "grid"))
        parts.append(svg.text(LEFT - 8, y(step / 20) + 4, percent(step / 20, 0), "tick", "end"))
    for place, ((name, found), colour) in enumerate(zip(sorted(points.items()), COLOURS, strict=False)):
        beside = APART * (place - (len(points) - 1) / 2)
        parts += draw_curve(NAMES.get(name, name), sorted(found, key=lambda point: point[0]), x, y, colour, beside)
    words = "; ".join(
        f"{NAMES.get(name, name)}: " + ", ".join(f"{number} images {percent(score['top1'])}" for number, score in found)
        for name, found in sorted(points.items())
    )
    return stand_alone(WIDTH, HEIGHT, f"What more calibration images buy. {words}.", *parts)


def draw_curve(
    name: str, found: Sequence[tuple[int, dict[str, Any]]], x: svg.Scale, y: svg.Scale, colour: str, beside: float
) -> list[Markup]:
    """One model: its curve, whiskers, and the score at the end; so far beside where it is, to be told from others."""
    places = [(x(math.log(number)) + beside, y(score["top1"])) for number, score in found]
    parts = [svg.path(places, f"curve stroke-{colour}")]
    for (across, down), (number, score) in zip(places, found, strict=True):
        low, high = score["top1_interval"]
        parts.append(svg.line(across, y(low), across, y(high), f"whisker stroke-{colour}"))
        title = f"{name}, {number} images: {percent(score['top1'])} ({interval(score['top1_interval'])})"
        parts.append(
            svg.element("circle", svg.element("title", title), cx=across, cy=down, r=4, class_=f"fill-{colour}")
        )
    _, down = places[-1]
    parts.append(svg.text(RIGHT + 16, down - 2, name, f"ink-{colour}"))
    parts.append(svg.text(RIGHT + 16, down + 14, percent(found[-1][1]["top1"]), "tick"))
    return parts


def main(_: list[str]) -> None:
    paths = [path for pattern in FLAGS.folders for path in sorted(glob.glob(f"{pattern}/report.json"))]
    reports = [json.loads(pathlib.Path(path).read_text(encoding="utf-8")) for path in paths]
    pathlib.Path(FLAGS.output).write_text(draw(reports), encoding="utf-8")
    print(f"Wrote {FLAGS.output}")


if __name__ == "__main__":
    app.run(main)
