"""The pictures of the REFLOW paper, drawn from a comparison of methods.

The paper ("Signal Collapse in One-Shot Pruning", Saikumar & Varghese, arXiv 2502.15790) shows what selecting other
weights and what updating the rest gains over magnitude pruning, how the variance of activations falls with depth and
sparsity, what pruned networks predict, and what re-estimated batch norms alone restore. Each figure is of a comparison
that measured its methods; least squares stands beside them.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from reflow_tf.report import svg
from reflow_tf.report.charts import NARROW, WIDE
from reflow_tf.report.comparison import BASELINE, STATES, Document, find_cell, list_methods, list_sparsities, measure
from reflow_tf.report.standalone import MARGIN, stand_alone
from reflow_tf.report.wording import percent, points, significant

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEAST_SQUARES = "magnitude+least_squares"
SELECTIONS = ("activation", "fisher", "woodfisher", "cbs", "obs")
UPDATES = (
    "magnitude+woodfisher",
    "woodfisher+woodfisher",
    "cbs+woodfisher",
    "magnitude+chita",
    "magnitude+obs",
    "obs+obs",
)
_SMALLEST_RATIO = 1e-4
_DASHES = ("", " dashed", " dotted", " dash-dot", " dash-long", " dash-sparse")

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
    return [
        Series(name, "alone", name, f"dense{dash}") for name, dash in zip(methods, _DASHES[: len(methods)], strict=True)
    ]


def _draw_accuracies(document: Document, width: float) -> tuple[float, list[Markup]]:
    series = [Series(BASELINE, "alone", BASELINE, "pruned"), *_as_series(UPDATES), _REFLOW, _LEAST_SQUARES]
    return _draw_curves(document, width, series, measure(document), False)


def _draw_curves(
    document: Document, width: float, series: Sequence[Series], axis: str, of_gains: bool
) -> tuple[float, list[Markup]]:
    """One curve a series over the sparsities, with the 95 % interval of each score as a whisker.

    At one sparsity points stand side by side, or whiskers would cover each other.
    """
    sparsities, dense = list_sparsities(document), document["dense"]["top1"]
    stacked = width < WIDE
    left, right, top, bottom = 52.0, width - (8.0 if stacked else 208.0), 26.0, 330.0
    x = svg.linear((min(sparsities), max(sparsities)), (left + 18, right - 18))
    apart = 2.0 if stacked else 3.5
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
    for place, one in enumerate(series):
        found = _read(document, one, of_gains)
        if not found:
            continue
        aside, colour = apart * (place - (len(series) - 1) / 2), one.style.split()[0]
        places = [(x(s) + aside, y(found[s][1])) if s in found else None for s in sparsities]
        parts.append(svg.path(places, f"curve stroke-{one.style}"))
        for s, (lower, value, upper) in found.items():
            parts.append(svg.line(x(s) + aside, y(lower), x(s) + aside, y(upper), f"whisker stroke-{colour}"))
            shown = points(value) if of_gains else percent(value)
            title = svg.element("title", f"{one.label} at {percent(s, 0)}: {shown}")
            parts.append(svg.element("circle", title, cx=x(s) + aside, cy=y(value), r=3.2, class_=f"fill-{colour}"))
        labels.append((y(found[max(found)][1]) + 4, one))
    if stacked:
        rows = [(bottom + 66 + 18 * place, one) for place, (_, one) in enumerate(labels)]
        return bottom + 60 + 18 * len(rows), [*parts, *_name_curves(rows, left)]
    labels.sort(key=lambda label: label[0])
    heights = svg.push_apart([height for height, _ in labels], 15, bottom + 4)
    rows = [(height, one) for height, (_, one) in zip(heights, labels, strict=True)]
    return bottom + 52, [*parts, *_name_curves(rows, right + 6)]


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


def _name_curves(rows: Iterable[tuple[float, Series]], x: float) -> list[Markup]:
    """The names from x on, each at its height behind a piece of its curve."""
    parts: list[Markup] = []
    for place, one in rows:
        parts.append(svg.path([(x, place - 4), (x + 28, place - 4)], f"curve stroke-{one.style}"))
        parts.append(svg.text(x + 34, place, one.label, f"label ink-{one.style.split()[0]}"))
    return parts


def _draw_ratios(document: Document, width: float) -> tuple[float, list[Markup]]:
    """Two panels, pruned and with REFLOW: the variance that every batch norm keeps, a curve a sparsity."""
    parts: list[Markup] = []
    stacked = width < WIDE
    panel = width if stacked else (width - 40) / 2
    height = 300.0
    curves = {state: _list_ratios(document, state) for state in STATES}
    known = [ratio for of_state in curves.values() for _, ratios in of_state for ratio in ratios if ratio is not None]
    highest = max(3.0, 1.1 * max(known, default=1.0))
    for place, (state, title, colour) in enumerate(
        (("alone", "pruned by magnitude", "pruned"), ("reflow", "with REFLOW", "repaired"))
    ):
        left, top = (0.0, place * height) if stacked else (place * (panel + 40), 0.0)
        parts += _draw_ratio_panel(curves[state], highest, title, colour, (left, top, panel, height))
    return height * (2 if stacked else 1), parts


def _list_ratios(document: Document, state: str) -> list[tuple[float, Sequence[float | None]]]:
    """Of magnitude pruning: (sparsity, what every batch norm keeps)."""
    cells = ((sparsity, find_cell(document, BASELINE, sparsity)) for sparsity in list_sparsities(document))
    return [(sparsity, cell[state]["ratios"]) for sparsity, cell in cells if cell]


def _draw_ratio_panel(
    curves: Sequence[tuple[float, Sequence[float | None]]],
    highest: float,
    title: str,
    colour: str,
    box: tuple[float, float, float, float],
) -> list[Markup]:
    """A curve for each (sparsity, ratios); the axis ends at the highest."""
    left, top, width, height = box
    inner, right, upper, bottom = left + 48, left + width - 40, top + 36, top + height - 46
    number = max((len(ratios) for _, ratios in curves), default=1)
    y = svg.logarithmic((_SMALLEST_RATIO, highest), (bottom, upper))
    x = svg.linear((1, max(number, 2)), (inner + 6, right - 6))
    parts = [svg.text(left, top + 14, title, f"label ink-{colour}")]
    for exponent in range(math.floor(math.log10(highest)), -5, -1):
        place = y(10.0**exponent)
        parts += [
            svg.line(inner, place, right, place, "grid" if exponent else "reference-dense"),
            svg.text(inner - 8, place + 4, significant(10.0**exponent, 1), "tick", "end"),
        ]
    ends = []
    for sparsity, ratios in curves:
        places = [None if ratio is None else (x(k), y(ratio)) for k, ratio in enumerate(ratios, 1)]
        known = [place for place in places if place is not None]
        parts.append(svg.path(places, f"curve stroke-{colour}"))
        if known:
            ends.append((known[-1][1], percent(sparsity, 0)))
    ends.sort()
    places_of_words = svg.push_apart([end + 4 for end, _ in ends], 14, bottom + 4)
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


_WHISKERS = "Upright lines: the 95 % interval of the method's own score; points of one sparsity stand side by side."

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


def find_objection(name: str, task: str, num_norms: int, num_sparsities: int) -> str | None:
    """Why the figure cannot be drawn of a network, in words of what it shows and what there is instead; None: it can.

    Args:
        name: of the figure.
        task: what the network's outputs are taken for.
        num_norms: batch norms that the network has.
        num_sparsities: that are measured.
    """
    figure = FIGURES[name]
    if figure.draw is _draw_predictions and task == "fidelity":
        return "shows classes. Received: a network whose outputs are numbers"
    if figure.draw is _draw_ratios and not num_norms:
        return "shows batch norms. Received: a network without any"
    if figure.draw is not None and figure.methods and num_sparsities < 2:
        return f"shows curves over sparsities, at least two. Received: {num_sparsities}"
    return None


def can_draw(document: Document, name: str) -> bool:
    """Whether a comparison has what the figure shows."""
    figure = FIGURES[name]
    given = document["data"]["task"], len(document["norms"]["paths"]), len(list_sparsities(document))
    measured = {BASELINE, *figure.methods} <= set(list_methods(document))
    return figure.draw is not None and measured and find_objection(name, *given) is None


def restrict(document: Document, name: str, sparsities: Sequence[float]) -> Document:
    """The comparison with the figure's cells at these sparsities alone, in the figure's order.

    So a figure is the same whatever else was measured in its folder, and when.
    """
    methods = (BASELINE, *FIGURES[name].methods)
    cells = (find_cell(document, method, sparsity) for sparsity in sorted(set(sparsities)) for method in methods)
    return document | {"cells": [cell for cell in cells if cell]}


def render_svg(document: Document, name: str, title: str) -> str:
    """The figure as an SVG file that stands alone; `title` says of which network."""
    figure = FIGURES[name]
    assert figure.draw is not None
    height, parts = figure.draw(document, WIDE)
    moved = svg.element("g", *parts, transform=f"translate({MARGIN} 56)")
    heading = f"{title}: {figure.title}"
    return stand_alone(WIDE + 2 * MARGIN, height + 56 + MARGIN, heading, svg.text(MARGIN, 34, heading, "title"), moved)


def render_csv(document: Document) -> str:
    """Every cell in numbers, in the order of the document: a line alone, and one with REFLOW."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("method", "sparsity", "state", measure(document), "low", "high", "gain_points", "n", "variance_ratio")
    )
    for cell in document["cells"]:
        for state in ("alone", "reflow"):
            score: dict[str, Any] = cell[state]
            low, high = score["top1_interval"] or ("", "")
            numbers = score["top1"], low, high, score["gain_points"], score["n"], score["variance_ratio"]
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
