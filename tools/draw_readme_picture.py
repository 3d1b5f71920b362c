"""Draws the README's picture, the collapse and its repair, from a report.json: charts of report.html as one SVG file.

    python -m reflow_tf.tools.prune --model=mobilenet_v2
    python tools/draw_readme_picture.py --report=reflow_out/mobilenet_v2/report.json

What makes it stand alone is in `reflow_tf.report.standalone`.
"""

import json
import pathlib
from xml.etree import ElementTree

from absl import app, flags
from markupsafe import Markup

from reflow_tf.report import charts, document, story, svg
from reflow_tf.report.document import Report
from reflow_tf.report.standalone import MARGIN, stand_alone
from reflow_tf.report.wording import percent

FLAGS = flags.FLAGS
flags.DEFINE_string("report", "reflow_out/mobilenet_v2/report.json", "The report.json of a run with batch norms.")
flags.DEFINE_string("output", "docs/images/collapse.svg", "The SVG file to write.")

GAP, LINE = 34.0, 22.0


def draw(report: Report) -> str:
    """The picture as the text of an SVG file: what is predicted, stage by stage, and the variance over depth."""
    width = charts.WIDE + 2 * MARGIN
    parts: list[Markup] = []
    y = MARGIN + 6
    for title, words, chart in _panels(report):
        parts.append(svg.text(MARGIN, y + 12, title, "title"))
        parts.append(svg.text(MARGIN, y + 12 + LINE, words, "words"))
        inner, height = _place(chart, MARGIN, y + LINE + 30)
        parts.append(inner)
        y += LINE + 30 + height + GAP
    label = f"{story.headline(report)} {story.signal_sentence(report)}"
    return stand_alone(width, y - GAP + MARGIN, label, *parts)


def _panels(report: Report) -> list[tuple[str, str, Markup]]:
    scores = {step.name: percent(step.share) for step in story.steps(report)}
    name, histogram = report["model"]["name"], report["signal"]["predictions"]["dense"]["histogram"]
    return [
        (
            f"Top-1: {scores['dense']} dense, {scores['pruned']} pruned, {scores['repaired']} repaired",
            f"Share of {sum(histogram):,} held-out images that {name} gives to each class.",
            charts.predictions(report),
        ),
        (
            "Why: the variance of the activations shrinks from layer to layer",
            "Variance behind each batch norm, divided by that of the dense model.",
            charts.depth(report),
        ),
    ]


def _place(figure: Markup, x: float, y: float) -> tuple[Markup, float]:
    """The wide one of a figure's two pictures at this place, and its height."""
    wide = ElementTree.fromstring(f"<figure>{figure}</figure>")[0]
    height = float(wide.attrib["viewBox"].split()[3])
    place = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{charts.WIDE:g}", "height": f"{height:g}"}
    wide.attrib = {"viewBox": wide.attrib["viewBox"], "aria-hidden": "true", "overflow": "visible", **place}
    return Markup(ElementTree.tostring(wide, encoding="unicode")), height


def main(_: list[str]) -> None:
    report = json.loads(pathlib.Path(FLAGS.report).read_text(encoding="utf-8"))
    document.validate(report)
    pathlib.Path(FLAGS.output).write_text(draw(report), encoding="utf-8")
    print(f"Wrote {FLAGS.output}")


if __name__ == "__main__":
    app.run(main)
