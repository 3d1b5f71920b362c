"""The report as one HTML page that needs nothing but itself: no script, no font, no picture from elsewhere."""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from reflow_tf.report import charts, device, limits, measures, nouns, story, wording
from reflow_tf.report.document import Report, validate

# The largest tensors get a row each; the rest share one.
_MOST_TENSORS = 14
# What a browser would break at its hyphens.
_WORD = re.compile(r"--[a-z_]+(?:=[\w:,.]+)?|top-[15]")


class SizeRow(NamedTuple):
    """A part of the file, in bytes, as it would be dense and as it is stored."""

    name: str
    storage: str
    dense_size_bytes: int
    size_bytes: int


def render(report: Report) -> str:
    """The page as HTML text.

    Every name and text of the report is escaped; the same report always gives the same page.

    Raises:
        ValueError: The report breaks its schema.
    """
    validate(report)
    rows = size_rows(report)
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            charts=charts,
            device=device,
            limits=limits,
            measures=measures,
            nouns=nouns,
            story=story,
            size_rows=rows,
            largest_size=max((max(row.dense_size_bytes, row.size_bytes) for row in rows), default=1) or 1,
            settings=list(_settings(report["config"])),
            skips=wording.grouped_skips(report["skipped"]),
        )
    )


def size_rows(report: Report) -> list[SizeRow]:
    """Where the bytes of the file are: the largest tensors, the others together, and what is not a tensor."""
    tensors = sorted(report["file"]["tensors"], key=lambda tensor: (-tensor["dense_size_bytes"], tensor["name"]))
    rows = [
        SizeRow(tensor["name"].partition(";")[0], tensor["storage"], tensor["dense_size_bytes"], tensor["size_bytes"])
        for tensor in tensors[:_MOST_TENSORS]
    ]
    if rest := tensors[_MOST_TENSORS:]:
        dense, stored = (sum(tensor[key] for tensor in rest) for key in ("dense_size_bytes", "size_bytes"))
        rows.append(SizeRow(wording.plural(len(rest), "smaller tensor"), "", dense, stored))
    sizes = report["size_bytes"]
    graph_dense = sizes["dense_file"] - sum(tensor["dense_size_bytes"] for tensor in tensors)
    graph = sizes["file"] - sum(tensor["size_bytes"] for tensor in tensors)
    if graph > 0 and graph_dense > 0:
        rows.append(SizeRow("graph and metadata", "", graph_dense, graph))
    return rows


def unbroken(sentence: str) -> Markup:
    """The sentence, escaped, with flags and 'top-1' kept on one line each."""
    return Markup(_WORD.sub(r'<span class="nowrap">\g<0></span>', str(escape(sentence))))


def _settings(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings as rows; a setting inside of a setting has both names: 'resolved.seed'."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reflow_tf.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters = ("percent", "interval", "points", "size", "count", "large_count", "significant", "seconds")
    environment.filters |= {name: getattr(wording, name) for name in filters}
    environment.filters["unbroken"] = unbroken
    environment.globals["plural"] = wording.plural
    return environment
