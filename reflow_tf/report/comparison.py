"""A comparison of methods: its JSON, its table on the terminal, and its page.

A cell is a method at a sparsity. It has two scores, 'alone' and 'reflow', and each a gain: percentage points above
plain magnitude pruning, without any repair, at the same sparsity.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from reflow_tf.report import nouns, resumable, svg
from reflow_tf.report.charts import NARROW, WIDE
from reflow_tf.report.html_page import frame, table
from reflow_tf.report.preparation import describe_unmerged
from reflow_tf.report.svg import element
from reflow_tf.report.wording import count, interval, percent, plural, points, seconds

Document = dict[str, Any]
"""Plain JSON: version, settings, data, norms (batch norms: all paths, and those unmerged), dense (a score), cells."""

VERSION = 5
_KEPT = {"settings": dict, "data": dict, "norms": dict, "dense": dict | None, "cells": list}
_OF_CELLS = ("method", "criterion", "repair", "sparsity", "alone", "reflow", "recalibrates", "statements", "seconds")
BASELINE = "magnitude"
STATES = ("alone", "reflow")
_TITLES = {"alone": "alone", "reflow": "with REFLOW"}
_KINDS = ("plain magnitude", "other criteria", "weights updated", "recalibrated by the repair")
_LABEL, _ROW, _GAP = 158.0, 19.0, 9.0  # pixels: names of methods, one method, between two kinds


class SummaryRow(NamedTuple):
    """The methods of one kind: their gains, in the mean over the sparsities, from the least to the highest."""

    kind: str
    alone: str
    reflow: str


def from_json(text: bytes) -> Document:
    """What `resumable.to_json` made of a comparison.

    Raises:
        InputError: the text is not a comparison of this version.
    """
    return resumable.from_json(text, "compare.json", "run", VERSION, _KEPT, _OF_CELLS)


def add_gains(document: Document) -> None:
    """Gives every score its gain; None as long as plain magnitude pruning is missing at that sparsity."""
    baseline = {cell["sparsity"]: cell["alone"]["top1"] for cell in document["cells"] if cell["method"] == BASELINE}
    for cell in document["cells"]:
        before = baseline.get(cell["sparsity"])
        for state in STATES:
            gain = None if before is None else 100 * (cell[state]["top1"] - before)
            cell[state]["gain_points"] = gain


def measure(document: Document) -> str:
    """What the scores count."""
    if document["data"]["task"] == "fidelity":
        return "fidelity to the dense model's outputs"
    return "top-1 accuracy" if document["data"]["labelled"] else "agreement with the dense model"


def format_table(document: Document) -> list[str]:
    """The lines that a person reads: the scores alone, with REFLOW, and in the mean."""
    dense, columns = document["dense"], list_sparsities(document)
    lines = [
        f"{measure(document)} in %, and points gained over plain magnitude pruning; dense {100 * dense['top1']:.1f} %, "
        f"n = {count(dense['n'])}"
    ]
    for state in STATES:
        lines += ["", f"{_TITLES[state]:<22}" + "".join(f"{f'{sparsity:.4g}':>14}" for sparsity in columns)]
        for method in list_methods(document):
            cells = (find_cell(document, method, sparsity) for sparsity in columns)
            lines.append(f"{method:<22}" + "".join(_format_cell(cell, state) for cell in cells))
    if rows := summarize(document):
        heading = SummaryRow("mean gain in points", *(_TITLES[state] for state in STATES))
        widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(3)]
        lines += ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in (heading, *rows))]
    return lines + [line for note in list_notes(document) for line in ("", note)]


def list_notes(document: Document) -> list[str]:
    """What a reader has to know beside the numbers."""
    unmerged = document["norms"]["unmerged"]
    return [describe_unmerged(len(unmerged))] if unmerged else []


def _format_cell(cell: dict[str, Any] | None, state: str) -> str:
    if cell is None:
        return f"{'-':>14}"
    gain = cell[state]["gain_points"]
    return f"{100 * cell[state]['top1']:z7.1f}" + (f"{gain:+z7.1f}" if gain is not None else f"{'':7}")


def summarize(document: Document) -> list[SummaryRow]:
    """Each kind of method in one row, over the sparsities at which every method was measured; none: no rows."""
    methods = list_methods(document)
    common = [s for s in list_sparsities(document) if all(find_cell(document, method, s) for method in methods)]
    if not common or BASELINE not in methods:
        return []
    rows = []
    for kind in _KINDS:
        of_kind = [method for method in methods if _kind(document, method) == kind]
        if of_kind:
            rows.append(SummaryRow(kind, *(_range(document, of_kind, common, state) for state in STATES)))
    return rows


def _range(document: Document, methods: Sequence[str], sparsities: Sequence[float], state: str) -> str:
    def mean_gain(method: str) -> float:
        cells = [find_cell(document, method, sparsity) for sparsity in sparsities]
        return sum(cell[state]["gain_points"] for cell in cells if cell) / len(cells)

    gains = sorted((mean_gain(method), method) for method in methods)
    words = [f"{gain:+z.1f} ({method})" for gain, method in gains]
    return words[0] if len(words) == 1 else f"{words[0]} to {words[-1]}"


def _kind(document: Document, method: str) -> str:
    cell = next(cell for cell in document["cells"] if cell["method"] == method)
    if cell["recalibrates"]:
        return _KINDS[3]
    if cell["repair"] != "none":
        return _KINDS[2]
    return _KINDS[0] if method == BASELINE else _KINDS[1]


def list_methods(document: Document) -> list[str]:
    """Kind by kind, within a kind as they were measured."""
    names = dict.fromkeys(cell["method"] for cell in document["cells"])
    return sorted(names, key=lambda name: _KINDS.index(_kind(document, name)))


def list_sparsities(document: Document) -> list[float]:
    """Of all cells, rising."""
    return sorted({cell["sparsity"] for cell in document["cells"]})


def find_cell(document: Document, method: str, sparsity: float) -> dict[str, Any] | None:
    """The cell of a method at a sparsity; None where it is not measured."""
    found = (cell for cell in document["cells"] if (cell["method"], cell["sparsity"]) == (method, sparsity))
    return next(found, None)


def render(document: Document, figures: Sequence[Markup] = ()) -> str:
    """The page as HTML text that needs nothing but itself, with sections that `report.figures` drew."""
    settings, data, dense = (document[name] for name in ("settings", "data", "dense"))
    unit = data["unit"]
    given = ((name, value) for name, value in settings.items() if value is not None)
    title = f"{settings['model']}: ways to choose weights and to update the rest, side by side"
    lead = (
        f"Measured on {plural(data['evaluation'], f'held-out {unit}')}; {plural(data['calibration'], f'other {unit}')} "
        f"served to calibrate. The dense model: {percent(dense['top1'])} {measure(document)}{_bounds(dense)}. "
        "At one sparsity every method zeroes as many weights of each layer."
    )
    bounds = nouns.interval(unit, dense["positions"], data["task"] == "fidelity")
    caption = (
        f"{measure(document).capitalize()} of each method, alone (square) and with REFLOW after it (circle). Whiskers: "
        f"{bounds}. Dashed: the dense model. A method is a criterion and, behind the "
        "plus, what updates weights."
    )
    parts = [
        element("header", element("h1", title), element("p", lead, class_="lead")),
        *(element("p", note) for note in list_notes(document)),
        element("section", element("h2", "In the mean"), _summary_table(document)),
        element("section", element("h2", "Every cell"), element("figure", _figures(document), _caption(caption))),
        *figures,
        element("section", element("h2", "In numbers"), _cells_table(document)),
        element("section", element("h2", "Settings"), table(given, class_="plain")),
    ]
    return frame(title, *parts)


def _caption(text: str) -> Markup:
    return element("figcaption", text)


def _summary_table(document: Document) -> Markup:
    heading = ("gain over plain magnitude, points", *(_TITLES[state] for state in STATES))
    return table(iter(summarize(document)), heading)


def _cells_table(document: Document) -> Markup:
    heading = (
        "method",
        "sparsity",
        *(f"{_TITLES[state]}{rest}" for state in STATES for rest in ("", ", gain")),
        "time",
    )
    ordered = (
        cell
        for sparsity in list_sparsities(document)
        for method in list_methods(document)
        if (cell := find_cell(document, method, sparsity))
    )
    rows = (
        (
            cell["method"],
            percent(cell["sparsity"], 0),
            *(text for state in STATES for text in _score_texts(cell[state])),
            seconds(cell["seconds"]),
        )
        for cell in ordered
    )
    return table(rows, heading)


def _score_texts(score: dict[str, Any]) -> tuple[str, str]:
    gain = "" if score["gain_points"] is None else points(score["gain_points"])
    return f"{percent(score['top1'])}{_bounds(score)}", gain


def _bounds(score: dict[str, Any]) -> str:
    return "" if score["top1_interval"] is None else f" ({interval(score['top1_interval'])})"


def _figures(document: Document) -> Markup:
    """The same picture for a wide page and for a phone; the style sheet shows one of them."""
    label = f"{measure(document)} of {len(list_methods(document))} methods, alone and with REFLOW."
    pictures = []
    for width, columns, class_ in ((WIDE, 2, "wide"), (NARROW, 1, "narrow")):
        height, children = _draw(document, width, columns)
        pictures.append(svg.picture(width, height, label, *children, class_=class_))
    return Markup("\n").join(pictures)


def _draw(document: Document, width: float, columns: int) -> tuple[float, list[Markup]]:
    """A panel for each sparsity, in which every method has a row."""
    sparsities, methods = list_sparsities(document), list_methods(document)
    kinds = len({_kind(document, method) for method in methods})
    panel_width = (width - 44 * (columns - 1)) / columns
    panel_height = 34 + _ROW * len(methods) + _GAP * (kinds - 1) + 44
    parts: list[Markup] = []
    for index, sparsity in enumerate(sparsities):
        row, column = divmod(index, columns)
        parts += _draw_panel(document, sparsity, column * (panel_width + 44), row * panel_height, panel_width)
    return -(-len(sparsities) // columns) * panel_height, parts


def _draw_panel(document: Document, sparsity: float, left: float, top: float, width: float) -> Iterator[Markup]:
    methods = list_methods(document)
    kinds = [_kind(document, method) for method in methods]
    places = [
        top + 42 + _ROW * index + _GAP * len(set(kinds[: index + 1]) - {kinds[0]}) for index in range(len(methods))
    ]
    bottom = places[-1] + 12
    x = svg.linear((0, 1), (left + _LABEL, left + width - 8))
    yield svg.text(left, top + 16, f"{percent(sparsity, 0)} sparse", "label")
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield svg.line(x(tick), top + 28, x(tick), bottom, "grid" if tick else "axis")
        if tick in (0.0, 0.5, 1.0):
            yield svg.text(x(tick), bottom + 16, percent(tick, 0), "tick", "middle")
    yield svg.line(x(document["dense"]["top1"]), top + 28, x(document["dense"]["top1"]), bottom, "reference")
    for method, y in zip(methods, places, strict=True):
        yield svg.text(x(0) - 8, y + 4, method, "tick", "end")
        if cell := find_cell(document, method, sparsity):
            yield from _draw_cell(cell, x, y)


def _draw_cell(cell: dict[str, Any], x: svg.Scale, y: float) -> Iterator[Markup]:
    alone, reflow = (cell[state] for state in STATES)
    yield svg.line(x(alone["top1"]), y, x(reflow["top1"]), y, "grid")
    for state, score, colour in (("alone", alone, "pruned"), ("reflow", reflow, "repaired")):
        if score["top1_interval"] is not None:
            low, high = score["top1_interval"]
            yield svg.line(x(low), y, x(high), y, "whisker")
        title = element("title", f"{cell['method']} {_TITLES[state]}: {' '.join(_score_texts(score))}")
        if state == "alone":
            yield svg.element(
                "rect", title, x=x(score["top1"]) - 4, y=y - 4, width=8, height=8, class_=f"fill-{colour}"
            )
        else:
            yield svg.element("circle", title, cx=x(score["top1"]), cy=y, r=4.5, class_=f"fill-{colour}")
