"""Draws a search for the file to ship, from its frontier.json: one SVG file.

python tools/draw_frontier_picture.py --search=reflow_out/mobilenet_v2-phone/frontier.json
"""

import pathlib
from typing import Any

from absl import app, flags
from markupsafe import Markup

from reflow_tf.report import frontier, svg
from reflow_tf.report.standalone import MARGIN, stand_alone
from reflow_tf.report.wording import percent

FLAGS = flags.FLAGS
flags.DEFINE_string("search", None, "The path of a frontier.json.", required=True)
flags.DEFINE_string("title", "MobileNetV2, ImageNet: the file to ship on a Cortex-A76", "What the picture is called.")
flags.DEFINE_string("output", "docs/images/frontier.svg", "The SVG file to write.")

WIDTH, CHART, TOP, LINE = 916.0, 540.0, 64.0, 24.0


def draw(document: dict[str, Any], title: str) -> str:
    """The picture as the text of an SVG file."""
    height, chart = frontier.draw(document, CHART)
    score = frontier.measure(document)
    parts = [
        svg.text(MARGIN, MARGIN + 14, title, "title"),
        svg.element("g", *chart, transform=f"translate({MARGIN} {TOP - 10})"),
        svg.text(WIDTH - MARGIN, TOP, f"cost, {score}", "tick", "end"),
        *list_cells(document),
    ]
    return stand_alone(WIDTH, TOP + height + MARGIN, frontier.headline(document), *parts)


def list_cells(document: dict[str, Any]) -> list[Markup]:
    """Names, costs and scores beside the picture, one line each."""
    parts: list[Markup] = []
    for number, cell in enumerate(frontier.ordered(document), start=1):
        up = TOP + LINE * number
        chosen = document["answer"] is not None and cell["name"] == document["answer"]["recommended"]
        parts.append(svg.text(MARGIN + CHART + 12, up, f"{number}  {cell['name']}", "label" if chosen else ""))
        numbers = f"{frontier.price(cell):.2f}, {percent(cell['score']['top1'])}"
        parts.append(svg.text(WIDTH - MARGIN, up, numbers, "tick", "end"))
    return parts


def main(_: list[str]) -> None:
    document = frontier.from_json(pathlib.Path(FLAGS.search).read_bytes())
    pathlib.Path(FLAGS.output).write_text(draw(document, FLAGS.title), encoding="utf-8")
    print(f"Wrote {FLAGS.output}")


if __name__ == "__main__":
    app.run(main)
