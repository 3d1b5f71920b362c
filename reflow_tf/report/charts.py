"""The pictures of the page. Each is drawn twice, for a wide page and for a phone, so that its text stays readable."""

import math
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from reflow_tf.report import nouns, story, svg
from reflow_tf.report.document import Report
from reflow_tf.report.wording import count, interval, percent, points, significant

WIDE, NARROW = 860.0, 350.0
STAGES = ("dense", "pruned", "repaired")
# More classes than this are shown by their shares, not one by one.
_MOST_CLASSES = 30
# Of many classes, so many are drawn on their own before the rest become one.
_MOST_SEGMENTS = 24
_SMALLEST_RATIO = 1e-8

Draw = Callable[[Report, float], tuple[float, list[Markup]]]
"""(report, width) -> (height, contents of the picture)."""


def figure(report: Report, draw: Draw, label: str) -> Markup:
    """The same picture for both widths; the style sheet shows one of them."""
    pictures = []
    for width, class_ in ((WIDE, "wide"), (NARROW, "narrow")):
        height, children = draw(report, width)
        pictures.append(svg.picture(width, height, label, *children, class_=class_))
    return Markup("\n").join(pictures)


def accuracy(report: Report) -> Markup:
    """A column for each stage, with its 95 % interval and its distance from the dense model."""
    spoken = ", ".join(f"{step.name} {percent(step.share)}" for step in story.steps(report))
    return figure(report, _draw_accuracy, f"{story.measure(report)}: {spoken}.")


def _percent_axis(y: svg.Scale, left: float, right: float) -> list[Markup]:
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts += [
            svg.line(left, y(tick), right, y(tick), "grid" if tick else "axis"),
            svg.text(left - 8, y(tick) + 4, percent(tick, 0), "tick", "end"),
        ]
    return parts


def _draw_accuracy(report: Report, width: float) -> tuple[float, list[Markup]]:
    left, top, bottom, height = 52.0, 34.0, 280.0, 328.0
    y = svg.linear((0, 1), (bottom, top))
    parts = _percent_axis(y, left, width)
    steps = story.steps(report)
    dense = steps[0].share if steps[0].name == "dense" else 1.0
    slot = (width - left) / len(steps)
    column = min(slot * 0.56, 104)
    parts.append(svg.line(left, y(dense), width, y(dense), "reference"))
    for index, step in enumerate(steps):
        middle = left + slot * (index + 0.5)
        bounds = "" if step.bounds is None else f" 95 % interval {interval(step.bounds)},"
        title = f"{step.name}: {percent(step.share)},{bounds} n = {count(step.n)}"
        low, high = (y(end) for end in step.bounds or [step.share, step.share])
        whisker = [
            (middle, low, middle, high),
            (middle - 7, low, middle + 7, low),
            (middle - 7, high, middle + 7, high),
        ]
        parts += [
            svg.bar(middle - column / 2, y(step.share), column, bottom - y(step.share), f"fill-{step.name}", title),
            *(svg.line(*ends, "whisker") for ends in whisker if step.bounds),
            svg.text(middle, high - 9, percent(step.share), "value halo", "middle"),
            svg.text(middle, bottom + 20, story.label(report, step), "label", "middle"),
            svg.text(middle, bottom + 38, _distance(step, width), "tick", "middle"),
        ]
    return height, parts


def _distance(step: story.Step, width: float) -> str:
    if step.name == "dense":
        return "reference"
    difference = points(-step.drop_points)
    return difference if width == WIDE else difference.replace("points", "pt")


def depth(report: Report) -> Markup:
    """The variance ratio of every batch norm, from input to output, on a logarithmic axis."""
    return figure(report, _draw_depth, f"Variance against the dense model over depth. {story.signal_sentence(report)}")


def _draw_depth(report: Report, width: float) -> tuple[float, list[Markup]]:
    layers = sorted(report["signal"]["layers"], key=lambda layer: layer["depth"])
    left, right, top, bottom, height = 52.0, width - 78, 16.0, 286.0, 330.0
    y, parts = _ratio_axis(layers, (left, right), (bottom, top))
    x = svg.linear((1, max(len(layers), 2)), (left + 8, right - 8))
    for tick in _index_ticks(len(layers), 5 if width == NARROW else 10):
        parts.append(svg.text(x(tick), bottom + 20, str(tick), "tick", "middle"))
    parts.append(svg.text((left + right) / 2, bottom + 40, "batch norm, from input to output", "tick", "middle"))
    ends = {"dense": y(1.0)}
    for stage in ("pruned", "repaired"):
        values = [layer[stage]["ratio"] for layer in layers]
        places = [None if value is None else (x(index), y(value)) for index, value in enumerate(values, 1)]
        parts.append(svg.path(places, f"curve stroke-{stage}"))
        for layer, value, place in zip(layers, values, places, strict=True):
            if place is not None:
                parts.append(_marker(stage, place, f"{layer['path']}, {stage}: {significant(value, 3)}"))
                ends[stage] = place[1]
    return height, [*parts, *_end_labels(ends, right + 6)]


def _ratio_axis(
    layers: list[dict[str, Any]], across: tuple[float, float], span: tuple[float, float]
) -> tuple[svg.Scale, list[Markup]]:
    """A logarithmic axis over at least one decade that holds every ratio and 1; ratios of 0 stand on its lower end."""
    ratios = [layer[stage]["ratio"] for layer in layers for stage in ("pruned", "repaired")]
    exponents = [math.log10(max(ratio, _SMALLEST_RATIO)) for ratio in ratios if ratio]
    low = min(-1, math.floor(min(exponents, default=0.0) - 0.02))
    high = max(0.15, max(exponents, default=0.0) + 0.08)
    y = svg.logarithmic((10.0**low, 10.0**high), span)
    parts = []
    for exponent in range(math.floor(high), low - 1, -1 if low >= -5 else -2):
        place = y(10.0**exponent)
        parts += [
            svg.line(across[0], place, across[1], place, "reference-dense" if exponent == 0 else "grid"),
            svg.text(across[0] - 8, place + 4, significant(10.0**exponent, 1), "tick", "end"),
        ]
    return y, parts


def _marker(stage: str, point: tuple[float, float], title: str) -> Markup:
    """Round for repaired, square for pruned: the two differ without colour, too."""
    x, y = point
    if stage == "pruned":
        return svg.bar(x - 2.6, y - 2.6, 5.2, 5.2, f"fill-{stage}", title)
    return svg.element("circle", svg.element("title", title), cx=x, cy=y, r=2.8, class_=f"fill-{stage}")


def _end_labels(ends: dict[str, float], x: float) -> list[Markup]:
    """The names of the curves beside their ends, pushed apart where they would overlap."""
    ordered = sorted(ends.items(), key=lambda end: end[1])
    places = svg.push_apart([y + 4 for _, y in ordered], 16)
    return [svg.text(x, place, stage, f"label ink-{stage}") for place, (stage, _) in zip(places, ordered, strict=True)]


def _index_ticks(number: int, most: int) -> list[int]:
    """1, then round numbers up to `number`, at most `most` + 1 of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if number / step <= most)
    return [1, *range(max(step, 2), number + 1, step)] if number else []


def predictions(report: Report) -> Markup:
    """What the dense, the pruned and the repaired model predict: class by class, or by shares where there are many."""
    few = len(report["signal"]["predictions"]["dense"]["histogram"]) <= _MOST_CLASSES
    label = f"Predicted classes. {story.predictions_sentence(report)}"
    return figure(report, _draw_histograms if few else _draw_shares, label)


def _draw_histograms(report: Report, width: float) -> tuple[float, list[Markup]]:
    stacked = width == NARROW
    panel_width = width if stacked else (width - 48) / 3
    panel_height, gap = (150.0, 18.0) if stacked else (220.0, 24.0)
    parts = []
    largest = max(report["signal"]["predictions"][stage]["largest_share"] for stage in STAGES)
    for index, stage in enumerate(STAGES):
        left = 0.0 if stacked else index * (panel_width + gap)
        top = index * (panel_height + gap) if stacked else 0.0
        parts += _histogram(report, stage, (left, top, panel_width, panel_height), largest)
    return (3 * panel_height + 2 * gap) if stacked else panel_height, parts


def _histogram(report: Report, stage: str, box: tuple[float, float, float, float], largest: float) -> list[Markup]:
    left, top, width, height = box
    prediction = report["signal"]["predictions"][stage]
    histogram = prediction["histogram"]
    total = max(sum(histogram), 1)
    bottom = top + height - 22
    y = svg.linear((0, max(largest, 1e-9)), (bottom, top + 40))
    slot = width / len(histogram)
    column = min(slot * 0.78, 64)
    effective = f"{significant(prediction['effective_classes'])} effective classes"
    parts = [
        svg.text(left, top + 14, stage, f"label ink-{stage}"),
        svg.text(left + width, top + 14, effective, "tick", "end"),
        svg.line(left, bottom, left + width, bottom, "axis"),
    ]
    peak = histogram.index(max(histogram))
    for index, number in enumerate(histogram):
        x, share = left + slot * (index + 0.5), number / total
        title = f"class {index}: {count(number)} {nouns.prediction(report)}s, {percent(share)}"
        parts.append(svg.bar(x - column / 2, y(share), column, bottom - y(share), f"fill-{stage}", title))
        if slot >= 18 or index in (0, len(histogram) - 1):
            parts.append(svg.text(x, bottom + 16, str(index), "tick", "middle"))
        if index == peak:
            inside = min(max(x, left + 20), left + width - 20)
            parts.append(svg.text(inside, y(share) - 6, percent(share, 0), "value small", "middle"))
    return parts


def _draw_shares(report: Report, width: float) -> tuple[float, list[Markup]]:
    """One bar of 100 % a stage; each segment is one predicted class, the most frequent first, the rest in one."""
    parts, row = [], 78.0
    for index, stage in enumerate(STAGES):
        prediction = report["signal"]["predictions"][stage]
        used, known = sum(map(bool, prediction["histogram"])), len(prediction["histogram"])
        words = f"{significant(prediction['effective_classes'], 3)} effective classes"
        if width == WIDE:
            words = f"{count(used)} of {count(known)} classes predicted; {words}"
        parts += [
            svg.text(0, index * row + 14, stage, f"label ink-{stage}"),
            svg.text(width, index * row + 14, words, "tick", "end"),
            *_segments(prediction["histogram"], stage, index * row + 24, width, nouns.prediction(report)),
        ]
    return 2 * row + 60, parts


def _segments(histogram: list[int], stage: str, top: float, width: float, noun: str) -> list[Markup]:
    total = max(sum(histogram), 1)
    ranked = sorted(((number, label) for label, number in enumerate(histogram) if number), reverse=True)
    x = svg.linear((0, total), (0, width))
    parts, done = [], 0
    for number, label in ranked[:_MOST_SEGMENTS]:
        # A thin gap parts the segments, narrower where they are narrow themselves.
        gap, share = min(1.0, x(number) / 3), percent(number / total, 0)
        title = f"class {label}: {count(number)} {noun}s, {share}"
        parts.append(svg.bar(x(done), top, x(number) - gap, 34, f"fill-{stage}", title))
        if x(number) > 60:
            words = f"class {label}: {share}" if x(number) > 130 else share
            parts.append(svg.text(x(done) + 8, top + 22, words, "on-fill"))
        done += number
    rest = len(ranked) - _MOST_SEGMENTS
    if rest > 0:
        title = f"{count(rest)} other classes: {percent(1 - done / total, 0)}"
        parts.append(svg.bar(x(done), top, width - x(done), 34, f"fill-{stage} faint", title))
        if width - x(done) > 170:
            parts.append(svg.text(x(done) + 8, top + 22, title, "label"))
    return parts


def sparsity(report: Report) -> Markup:
    """Above the axis the sparsity of every prunable kernel; below it how many weights it has, kept and zero."""
    return figure(report, _draw_sparsity, f"Sparsity per kernel. {story.sparsity_sentence(report)}")


def _draw_sparsity(report: Report, width: float) -> tuple[float, list[Markup]]:
    layers, requested = report["sparsity"]["layers"], report["sparsity"]["requested"]
    left, right, top, middle, bottom, height = 52.0, width - 4, 14.0, 190.0, 302.0, 346.0
    largest = max((layer["num_weights"] for layer in layers), default=1)
    up, down = svg.linear((0, 1), (middle, top)), svg.linear((0, largest), (middle + 26, bottom))
    slot = (right - left) / max(len(layers), 1)
    column = min(slot * 0.78, 48)
    parts = _percent_axis(up, left, right)
    ticks = _index_ticks(len(layers), 6 if width == NARROW else 12)
    for index, layer in enumerate(layers, 1):
        x = left + slot * (index - 0.5) - column / 2
        zeros = f"{percent(layer['sparsity'])} of {count(layer['num_weights'])} weights are zero"
        title = f"{index}. {layer['path']}: {zeros}"
        kept, end = down(layer["num_weights"] - layer["num_zeros"]), down(layer["num_weights"])
        parts += [
            svg.bar(x, up(layer["sparsity"]), column, middle - up(layer["sparsity"]), "fill-zero", title),
            svg.bar(x, down(0), column, kept - down(0), "fill-kept", title),
            svg.bar(x, kept, column, end - kept, "fill-zero", title),
        ]
        if index in ticks:
            parts.append(svg.text(x + column / 2, middle + 17, str(index), "tick", "middle"))
    if requested is not None:
        parts.append(svg.line(left, up(requested), right, up(requested), "reference"))
    parts += [
        svg.text(left - 8, down(0) + 10, "0", "tick", "end"),
        svg.text(left - 8, bottom + 2, _abbreviated(largest), "tick", "end"),
        svg.text((left + right) / 2, bottom + 30, "prunable kernel, from input to output", "tick", "middle"),
    ]
    return height, parts


def _abbreviated(number: int) -> str:
    value, unit = (number / 1e6, "M") if number >= 1e6 else (number / 1e3, "k") if number >= 1e3 else (number, "")
    return f"{significant(value)}{unit}"
