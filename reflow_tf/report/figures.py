"""The pictures of the REFLOW paper, drawn from a comparison of methods.

The paper ("Signal Collapse in One-Shot Pruning", Saikumar & Varghese, arXiv 2502.15790) shows what selecting other
weights and what updating the rest gains over magnitude pruning, how the variance of activations falls with depth and
sparsity, what pruned networks predict, and what re-estimated batch norms alone restore. Each figure is of a comparison
that measured its methods; least squares stands beside them.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from reflow_tf.report import svg
from reflow_tf.report.charts import NARROW, WIDE
from reflow_tf.report.comparison import BASELINE, Document, find_cell, list_methods, list_sparsities, measure
from reflow_tf.report.standalone import MARGIN, stand_alone
from reflow_tf.report.wording import percent, points, significant

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEAST_SQUARES = "magnitude+least_squares"
SELECTIONS = ("activation", "fisher", "woodfisher", "cbs", "obs")
UPDATES = ("magnitude+woodfisher", "woodfisher+woodfisher", "cbs+woodfisher", "magnitude+chita", "obs+obs")
_SMALLEST_RATIO = 1e-4
_DASHES = ("", " dashed", " dotted")

Draw = Callable[[Document, float], tuple[float, list[Markup]]]
"""(comparison, width) -> (height, contents of the picture)."""


class Figure(NamedTuple):
    """One picture.

    Attributes:
        title: what it shows.
        caption: how to read it.
        methods: that have to be measured, beside plain magnitude pruning.
        draw: None of a table.
    """

    title: str
    caption: str
    methods: tuple[str, ...]
    draw: Draw | None


class Series(NamedTuple):
    """One curve: a method, alone or with REFLOW after it, its name in the picture, and how it is drawn."""

    method: str
    state: str
    label: str
    style: str


_REFLOW = Series(BASELINE, "reflow", "REFLOW", "repaired")
_LEAST_SQUARES = Series(LEAST_SQUARES, "alone", "least squares", "file")


def _draw_gains(methods: Sequence[str]) -> Draw:
    def draw(document: Document, width: float) -> tuple[float, list[Markup]]:
        return _draw_curves(
            document, width, [*_as_series(methods), _REFLOW, _LEAST_SQUARES], "gain over magnitude, points", True
        )

    return draw


def _as_series(methods: Sequence[str]) -> list[Series]:
    """Each alone, in grey and in dashes of its own."""
    return [Series(name, "alone", name, f"dense{_DASHES[place % len(_DASHES)]}") for place, name in enumerate(methods)]


def _draw_accuracies(document: Document, width: float) -> tuple[float, list[Markup]]:
    series = [Series(BASELINE, "alone", BASELINE, "pruned"), *_as_series(UPDATES), _REFLOW, _LEAST_SQUARES]
    return _draw_curves(document, width, series, measure(document), False)


def _draw_curves(
    document: Document, width: float, series: Sequence[Series], axis: str, of_gains: bool
) -> tuple[float, list[Markup]]:
    """One curve a series over the sparsities, with the 95 % interval of each score as a whisker."""
    sparsities, dense = list_sparsities(document), document["dense"]["top1"]
    beside = 176.0 if width >= WIDE else 112.0
    left, right, top, bottom = 52.0, width - beside, 26.0, 330.0
    x = svg.linear((min(sparsities), max(sparsities)), (left + 14, right - 14))
    spans = [span for one in series for span in _read(document, one, of_gains).values()]
    ends = [end for span in spans for end in span] or [0.0, 1.0]
    low, high = (min(*ends, 0.0), max(*ends, 1.0)) if of_gains else (0.0, 1.0)
    y = svg.linear((low, high), (bottom, top))
    parts: list[Markup] = [svg.text(left - 44, top - 12, axis, "tick")]
    for tick in _ticks(low, high) if of_gains else (0.0, 0.25, 0.5, 0.75, 1.0):
        words = f"{tick:+.0f}" if of_gains and tick else percent(tick, 0) if not of_gains else "0"
        parts += [
            svg.line(left, y(tick), right, y(tick), "grid" if tick else "axis"),
            svg.text(left - 8, y(tick) + 4, words, "tick", "end"),
        ]
    if not of_gains:
        parts.append(svg.line(left, y(dense), right, y(dense), "reference"))
    parts += [svg.text(x(s), bottom + 20, percent(s, 0), "tick", "middle") for s in sparsities]
    parts.append(svg.text((left + right) / 2, bottom + 40, "sparsity", "tick", "middle"))
    labels: list[tuple[float, Series]] = []
    for one in series:
        found = _read(document, one, of_gains)
        if not found:
            continue
        places = [(x(s), y(found[s][1])) if s in found else None for s in sparsities]
        parts.append(svg.path(places, f"curve stroke-{one.style}"))
        for s, (lower, value, upper) in found.items():
            parts.append(svg.line(x(s), y(lower), x(s), y(upper), "grid"))
            shown = points(value) if of_gains else percent(value)
            title = svg.element("title", f"{one.label} at {percent(s, 0)}: {shown}")
            fill = f"fill-{one.style.split()[0]}"
            parts.append(svg.element("circle", title, cx=x(s), cy=y(value), r=3.2, class_=fill))
        labels.append((y(found[max(found)][1]), one))
    return bottom + 52, [*parts, *_name_curves(labels, right + 2, bottom)]


def _read(document: Document, one: Series, of_gains: bool) -> dict[float, tuple[float, float, float]]:
    """Sparsity -> lower end, value and upper end."""
    found = {}
    for sparsity in list_sparsities(document):
        cell, base = find_cell(document, one.method, sparsity), find_cell(document, BASELINE, sparsity)
        if cell is None or base is None:
            continue
        score = cell[one.state]
        low, high = score["top1_interval"] or (score["top1"], score["top1"])
        zero, scale = (base["alone"]["top1"], 100.0) if of_gains else (0.0, 1.0)
        found[sparsity] = (scale * (low - zero), scale * (score["top1"] - zero), scale * (high - zero))
    return found


def _ticks(low: float, high: float) -> Iterator[float]:
    step = next(step for step in (5, 10, 20, 25, 50) if (high - low) / step <= 8 or step == 50)
    return (float(step * k) for k in range(math.ceil(low / step), math.floor(high / step) + 1))


def _name_curves(ends: Sequence[tuple[float, Series]], x: float, bottom: float) -> list[Markup]:
    """The names beside the ends of the curves, pushed apart, and upwards again where they would pass the axis."""
    ordered = sorted(ends, key=lambda end: end[0])
    places = svg.push_apart([y + 4 for y, _ in ordered], 15)
    limit = bottom + 4
    for place in reversed(range(len(places))):
        places[place] = min(places[place], limit)
        limit = places[place] - 15
    return [
        svg.text(x, place, one.label, f"label ink-{one.style.split()[0]}")
        for place, (_, one) in zip(places, ordered, strict=True)
    ]


def _draw_ratios(document: Document, width: float) -> tuple[float, list[Markup]]:
    """Two panels, pruned and with REFLOW: the variance that every batch norm keeps, a curve a sparsity."""
    parts: list[Markup] = []
    stacked = width < WIDE
    panel = width if stacked else (width - 40) / 2
    height = 300.0
    for place, (state, title, colour) in enumerate(
        (("alone", "pruned by magnitude", "pruned"), ("reflow", "with REFLOW", "repaired"))
    ):
        left, top = (0.0, place * height) if stacked else (place * (panel + 40), 0.0)
        parts += _draw_ratio_panel(document, state, title, colour, (left, top, panel, height))
    return height * (2 if stacked else 1), parts


def _draw_ratio_panel(
    document: Document, state: str, title: str, colour: str, box: tuple[float, float, float, float]
) -> list[Markup]:
    left, top, width, height = box
    inner, right, upper, bottom = left + 48, left + width - 40, top + 36, top + height - 46
    cells = [
        (s, cell[state]["ratios"]) for s in list_sparsities(document) if (cell := find_cell(document, BASELINE, s))
    ]
    number = max((len(ratios) for _, ratios in cells), default=1)
    y = svg.logarithmic((_SMALLEST_RATIO, 3.0), (bottom, upper))
    x = svg.linear((1, max(number, 2)), (inner + 6, right - 6))
    parts = [svg.text(left, top + 14, title, f"label ink-{colour}")]
    for exponent in range(0, -5, -1):
        place = y(10.0**exponent)
        parts += [
            svg.line(inner, place, right, place, "grid" if exponent else "reference-dense"),
            svg.text(inner - 8, place + 4, significant(10.0**exponent, 1), "tick", "end"),
        ]
    ends = []
    for sparsity, ratios in cells:
        places = [None if ratio is None else (x(k), y(ratio)) for k, ratio in enumerate(ratios, 1)]
        known = [place for place in places if place is not None]
        parts.append(svg.path(places, f"curve stroke-{colour}"))
        if known:
            ends.append((known[-1][1], percent(sparsity, 0)))
    ends.sort()
    places_of_words = svg.push_apart([end + 4 for end, _ in ends], 14)
    parts += [
        svg.text(right + 2, place, words, "tick") for place, (_, words) in zip(places_of_words, ends, strict=True)
    ]
    parts.append(svg.text((inner + right) / 2, bottom + 24, "batch norm, from input to output", "tick", "middle"))
    return parts


def _draw_predictions(document: Document, width: float) -> tuple[float, list[Markup]]:
    """One bar of 100 % for the dense model, two at each sparsity; a segment is one class, the most frequent first."""
    parts: list[Markup] = []
    left, top, row = 128.0 if width >= WIDE else 84.0, 8.0, 24.0
    bars: list[tuple[str, str, Sequence[int]]] = [("dense", "dense", document["dense"]["histogram"])]
    for sparsity in list_sparsities(document):
        if cell := find_cell(document, BASELINE, sparsity):
            bars.append((f"{percent(sparsity, 0)} pruned", "pruned", cell["alone"]["histogram"]))
            bars.append(("with REFLOW" if width >= WIDE else "REFLOW", "repaired", cell["reflow"]["histogram"]))
    for name, stage, histogram in bars:
        parts.append(svg.text(left - 8, top + 14, name, f"tick ink-{stage}", "end"))
        total, done = max(sum(histogram), 1), 0.0
        for label, number in sorted(enumerate(histogram), key=lambda item: -item[1]):
            share = number / total * (width - left)
            if share >= 0.5:
                title = f"{name}, class {label}: {percent(number / total)}"
                parts.append(svg.bar(left + done, top, share - min(1.0, share / 3), 18, f"fill-{stage}", title))
            done += share
        largest = percent(max(histogram, default=0) / total, 0)
        parts.append(svg.text(left + 6, top + 14, largest, "on-fill"))
        top += row + (6 if stage != "pruned" else 0)
    return top + 6, parts


_WHISKERS = "Thin lines: the 95 % interval of the method's own score."

FIGURES: Mapping[str, Figure] = {
    "figure_1": Figure(
        "Selecting other weights: what it gains over magnitude",
        f"No weight is updated, but for least squares; REFLOW re-estimates batch norms alone. {_WHISKERS}",
        (*SELECTIONS, LEAST_SQUARES),
        _draw_gains(SELECTIONS),
    ),
    "figure_2": Figure(
        "Updating the rest: what it gains over magnitude",
        f"A criterion and, behind the plus, what updates weights; REFLOW updates none. {_WHISKERS}",
        (*UPDATES, LEAST_SQUARES),
        _draw_gains(UPDATES),
    ),
    "figure_3": Figure(
        "Variance against the dense network, by depth and sparsity",
        "Var(pruned) / Var(dense) behind every batch norm, on a logarithmic axis; a curve a sparsity.",
        (),
        _draw_ratios,
    ),
    "figure_4": Figure(
        "What is predicted: dense, pruned, with REFLOW",
        "A segment is one class, the most frequent first, with its share; a collapsed network names one.",
        (),
        _draw_predictions,
    ),
    "figure_5": Figure(
        "REFLOW beside updates and least squares",
        f"Dashed: the dense network. {_WHISKERS}",
        (*UPDATES, LEAST_SQUARES),
        _draw_accuracies,
    ),
    "table_1": Figure("Every method in numbers", "", (*SELECTIONS, *UPDATES, LEAST_SQUARES), None),
}
"""Name of a --preset -> what it is."""


def shows_numbers(name: str) -> bool:
    """Whether the figure can be drawn of a network that names no classes."""
    return FIGURES[name].draw is not _draw_predictions


def can_draw(document: Document, name: str) -> bool:
    """Whether a comparison has what the figure shows."""
    figure, methods = FIGURES[name], list_methods(document)
    if document["data"]["task"] == "fidelity" and not shows_numbers(name):
        return False
    curves = figure.methods and len(list_sparsities(document)) < 2
    return figure.draw is not None and not curves and {BASELINE, *figure.methods} <= set(methods)


def render_svg(document: Document, name: str, title: str) -> str:
    """The figure as an SVG file that stands alone; `title` says of which network."""
    figure = FIGURES[name]
    assert figure.draw is not None
    height, parts = figure.draw(document, WIDE)
    moved = svg.element("g", *parts, transform=f"translate({MARGIN} 56)")
    heading = f"{title}: {figure.title}"
    return stand_alone(WIDE + 2 * MARGIN, height + 56 + MARGIN, heading, svg.text(MARGIN, 34, heading, "title"), moved)


def render_csv(document: Document) -> str:
    """Every cell in numbers, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", "sparsity", "state", measure(document), "low", "high", "gain_points", "n"))
    for cell in sorted(
        document["cells"], key=lambda cell: (cell["sparsity"], list_methods(document).index(cell["method"]))
    ):
        for state in ("alone", "reflow"):
            score: dict[str, Any] = cell[state]
            low, high = score["top1_interval"] or ("", "")
            numbers = score["top1"], low, high, score["gain_points"], score["n"]
            writer.writerow((cell["method"], cell["sparsity"], state, *numbers))
    return text.getvalue()


def for_page(document: Document) -> list[Markup]:
    """Sections of a page, one for each figure that the comparison has what it takes for."""
    return [_section(document, name) for name in FIGURES if can_draw(document, name)]


def _section(document: Document, name: str) -> Markup:
    figure = FIGURES[name]
    assert figure.draw is not None
    pictures = []
    for width, class_ in ((WIDE, "wide"), (NARROW, "narrow")):
        height, children = figure.draw(document, width)
        pictures.append(svg.picture(width, height, figure.title, *children, class_=class_))
    drawn = svg.element("figure", Markup("\n").join(pictures), svg.element("figcaption", figure.caption))
    return svg.element("section", svg.element("h2", figure.title), drawn)
