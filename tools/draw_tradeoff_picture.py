"""Draws top-1 against speed, int8 beside zeros, from the rows of benchmarks/sparse_tradeoff.py: one SVG file.

    python benchmarks/sparse_tradeoff.py --model=mobilenet_v2 --output=tradeoff.jsonl ...
    python tools/draw_tradeoff_picture.py --rows=tradeoff.jsonl --model=mobilenet_v2

A panel for the browser and one for instructions on ARM, where instructions of other number formats are no measure of
time and so are left out. A curve is one pattern and one repair over shares of zeros.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from markupsafe import Markup

from reflow_tf.report import svg
from reflow_tf.report.standalone import MARGIN, stand_alone
from reflow_tf.report.wording import percent

FLAGS = flags.FLAGS
flags.DEFINE_string("rows", None, "JSON lines of benchmarks/sparse_tradeoff.py.", required=True)
flags.DEFINE_string("model", "mobilenet_v2", "Whose rows.")
flags.DEFINE_string("title", "MobileNetV2", "What the picture calls it.")
flags.DEFINE_string("allocation", "uniform", "Whose rows.")
flags.DEFINE_string("output", "docs/images/tradeoff.svg", "The SVG file to write.")

WIDTH, HEIGHT, GAP = 916.0, 500.0, 64.0
TOP, BOTTOM = 96.0, 410.0
# (runtime, heading, unit, patterns worth showing there)
PANELS = (
    ("web", "In a browser", "times as fast as dense, LiteRT.js", ("unstructured",)),
    ("aarch64", "On ARM", "times fewer instructions than dense, Cortex-A76", ("unstructured", "block:2x1")),
)
CURVES = {
    ("unstructured", "least_squares"): ("repaired", "single weights, refitted"),
    ("unstructured", "reflow"): ("pruned", "single weights, REFLOW"),
    ("block:2x1", "least_squares"): ("file", "blocks of 2x1, refitted"),
}

Row = dict[str, Any]


def draw(rows: Sequence[Row], title: str, allocation: str) -> str:
    """The picture as the text of an SVG file."""
    rows = [row for row in rows if row.get("allocation", allocation) == allocation and row.get("scored") != "held out"]
    lowest = min(row["hits"] / row["labelled"] for row in rows if row["measure"] == "accuracy")
    y = svg.linear((max(0.0, int(lowest * 10) / 10), 0.9), (BOTTOM, TOP))
    panel = (WIDTH - 2 * MARGIN - GAP) / len(PANELS)
    images = next(row["labelled"] for row in rows if row["measure"] == "accuracy")
    parts = [
        svg.text(MARGIN, MARGIN + 14, f"{title}: what accuracy buys", "title"),
        svg.text(
            MARGIN, MARGIN + 36, f"Top-1 on {images} ImageNet validation images; points say how much is zero.", "words"
        ),
    ]
    for number, (runtime, heading, unit, patterns) in enumerate(PANELS):
        left = MARGIN + number * (panel + GAP)
        parts += draw_panel(rows, (left + 44, left + panel), y, runtime, patterns)
        parts.append(svg.text(left + 44, TOP - 8, heading, "label"))
        parts.append(svg.text((2 * left + 44 + panel) / 2, BOTTOM + 42, unit, "tick", "middle"))
    for number, (colour, name) in enumerate(CURVES.values()):
        parts.append(svg.text(MARGIN + 44 + number * 210, HEIGHT - MARGIN + 4, name, f"ink-{colour}"))
    return stand_alone(WIDTH, HEIGHT, describe(rows, title), *parts)


def draw_panel(
    rows: Sequence[Row], span: tuple[float, float], y: svg.Scale, runtime: str, patterns: Sequence[str]
) -> list[Markup]:
    costs = [row for row in rows if row["measure"] == runtime]
    dense = next((row["cost"] for row in costs if row["file"] == "float32"), 0.0)
    shown = [row for row in costs if row.get("pattern", patterns[0]) in patterns]
    speeds = {key_of(row): row.get("gain") or dense / row["cost"] for row in shown}
    most = max(2.2, *speeds.values()) + 0.05
    x = svg.linear((min(0.8, *speeds.values()) - 0.05, most), span)
    parts = draw_axes(x, y, span, most)
    parts += mark(x(1), y(find_top1(rows, "float32")), "dense", "dense")
    if runtime == "web" and (key := ("int8",)) in speeds:
        parts += mark(x(speeds[key]), y(find_top1(rows, "int8")), "int8", "dense", lift=26)
    for (pattern, repair), (colour, name) in CURVES.items():
        if pattern not in patterns:
            continue
        scored = [row for row in rows if row["measure"] == "accuracy" and row.get("repair") == repair]
        scored = [row for row in scored if row["pattern"] == pattern and key_of(row) in speeds]
        points = sorted((row["sparsity"], speeds[key_of(row)], row["hits"] / row["labelled"]) for row in scored)
        if not points:
            continue
        parts.append(svg.path([(x(gain), y(top1)) for _, gain, top1 in points], f"curve stroke-{colour}"))
        for sparsity, gain, top1 in points:
            words = f"{name}, {percent(sparsity, 0)} zero: {gain:.2f} times, top-1 {percent(top1)}"
            dot = svg.element(
                "circle", svg.element("title", words), cx=x(gain), cy=y(top1), r=4, class_=f"fill-{colour}"
            )
            # Refitted curves lie above those that are not: their words go where the others' do not.
            place = (7, -8, "start") if repair == "least_squares" else (-7, 15, "end")
            parts += [dot, svg.text(x(gain) + place[0], y(top1) + place[1], percent(sparsity, 0), "tick", place[2])]
    return parts


def draw_axes(x: svg.Scale, y: svg.Scale, span: tuple[float, float], most: float) -> list[Markup]:
    parts = []
    for tick in (tenth / 10 for tenth in range(10)):
        if TOP - 1 <= y(tick) <= BOTTOM + 1:
            parts.append(svg.line(span[0], y(tick), span[1], y(tick), "grid"))
            parts.append(svg.text(span[0] - 8, y(tick) + 4, percent(tick, 0), "tick", "end"))
    for tick in (1, 1.5, 2, 2.5, 3):
        if tick <= most:
            parts.append(svg.line(x(tick), BOTTOM, x(tick), BOTTOM + 5, "axis"))
            parts.append(svg.text(x(tick), BOTTOM + 20, f"{tick:g}x", "tick", "middle"))
    return parts


def mark(x: float, y: float, name: str, colour: str, lift: float = 11) -> list[Markup]:
    """A square with its name, for what is no point of a curve."""
    square = svg.element("rect", x=x - 5, y=y - 5, width=10, height=10, class_=f"fill-{colour}")
    return [square, svg.text(x, y - lift, name, "label", "middle")]


def key_of(row: Row) -> tuple[str, ...] | tuple[str, str, float]:
    """Which file a row is about, however it was repaired."""
    return (row["file"], row["pattern"], row["sparsity"]) if row["file"] == "sparse" else (row["file"],)


def find_top1(rows: Sequence[Row], name: str) -> float:
    found = next(row for row in rows if row["measure"] == "accuracy" and row["file"] == name)
    return found["hits"] / found["labelled"]


def describe(rows: Sequence[Row], title: str) -> str:
    sparse = [row for row in rows if row["measure"] == "web" and row["file"] == "sparse"]
    gains = ", ".join(
        f"{percent(row['sparsity'], 0)} {row['gain']:.2f} times" for row in sparse if row["pattern"] == "unstructured"
    )
    return f"{title}: top-1 against speed over shares of zeros. In a browser: {gains}."


def main(_: list[str]) -> None:
    rows = [json.loads(line) for line in pathlib.Path(FLAGS.rows).read_text(encoding="utf-8").splitlines()]
    picture = draw([row for row in rows if row["model"] == FLAGS.model], FLAGS.title, FLAGS.allocation)
    pathlib.Path(FLAGS.output).write_text(picture, encoding="utf-8")
    print(f"Wrote {FLAGS.output}")


if __name__ == "__main__":
    app.run(main)
