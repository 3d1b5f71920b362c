"""A picture as one SVG file that stands alone, with the colours of report.html for a light and a dark reader.

A picture on a README sees neither the page's style nor its background, so it carries its own.
"""

import re
from importlib import resources

from markupsafe import Markup

from reflow_tf.report import svg
from reflow_tf.report.wording import SPACE

MARGIN = 28.0
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
# Rules of the page's style sheet that speak of what is inside of a picture.
_PICTURE_RULES = (
    "svg text",
    "svg .",
    ".grid",
    ".axis",
    ".reference",
    ".curve",
    ".stroke-",
    ".dashed",
    ".dotted",
    ".dash-",
    ".fill-",
    ".whisker",
    ".ring",
)


def stand_alone(width: float, height: float, label: str, *parts: Markup) -> str:
    """The text of an SVG file; `label` is what a screen reader says in its place."""
    sheet = svg.element("rect", width=width, height=height, rx=8, class_="paper")
    spoken = label.replace(SPACE, " ")
    picture = svg.picture(width, height, spoken, svg.element("style", Markup(_style())), sheet, *parts)
    return str(picture).replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" ', 1) + "\n"


def _style() -> str:
    """The page's colours, for light and for dark, and its rules for pictures."""
    sheet = resources.files("reflow_tf.report").joinpath("page.css").read_text(encoding="utf-8")
    colours = sheet.partition("* {")[0]
    rules = [line for line in sheet.splitlines() if line.startswith(_PICTURE_RULES)]
    own = [
        f"text {{ font: 13px {_FONT}; font-variant-numeric: tabular-nums; }}",
        "svg .title { font-size: 19px; font-weight: 660; letter-spacing: -0.01em; }",
        "svg .words { fill: var(--soft); font-size: 14px; }",
        ".paper { fill: var(--paper); stroke: var(--rule); }",
    ]
    return re.sub(r"\n\s*", "\n", "\n".join([colours.strip(), *own, *rules]))
