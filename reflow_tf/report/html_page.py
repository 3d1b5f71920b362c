"""What pages without a template are made of: the frame, the style sheet, and tables."""

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from markupsafe import Markup

from reflow_tf.report.svg import element


def frame(title: str, *parts: Markup) -> str:
    """The page as HTML text that needs nothing but itself."""
    style = resources.files("reflow_tf.report").joinpath("page.css").read_text(encoding="utf-8")
    head = (
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">\n')
        + element("title", title)
        + element("style", Markup(style))
    )
    body = element("body", element("main", *parts))
    return Markup("<!doctype html>\n") + element("html", element("head", head), body, lang="en") + "\n"


def table(rows: Iterable[Sequence[Any]], heading: Sequence[str] = (), class_: str | None = None) -> Markup:
    """A table that scrolls by itself where it is too wide; the first entry of each row names it."""
    body = (
        element("tr", element("th", row[0], scope="row"), *(element("td", _shown(value)) for value in row[1:]))
        for row in rows
    )
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in heading)))
    whole = element("table", *([head] if heading else []), element("tbody", *body), class_=class_)
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label="table")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
