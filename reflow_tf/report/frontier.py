"""A search for the file to ship: its JSON, the sentence on top, its table on the terminal, and its page."""

import json
import shlex
from collections.abc import Iterator
from importlib import resources
from typing import Any

from markupsafe import Markup

from reflow_tf.report import nouns, resumable, svg
from reflow_tf.report.charts import NARROW, WIDE
from reflow_tf.report.html_page import frame, table
from reflow_tf.report.measures import MEASURES, bounds_of, share_of
from reflow_tf.report.svg import element
from reflow_tf.report.wording import SPACE, count, interval, percent, plural, seconds, significant, size

Document = dict[str, Any]
"""Plain JSON: version, command, settings, device, data, cells, what was left out, and the answer."""

VERSION = 7
_KEPT = {"settings": dict, "cells": list, "tried": list, "notes": list, "seconds": float, "best": dict | None}
"""What a later run goes on from."""
_PLAIN = "plain"
_SHAPES = "Squares: plain conversions; circles: pruned"
_DIFFERS = "made; its outputs there are wrong"
_SAME = 0.02  # costs so close are called the same


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the document, as a dict; treat it as read-only."""
    path = resources.files("reflow_tf.report").joinpath("frontier.schema.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def from_json(text: bytes) -> Document:
    """What `resumable.to_json` made of a search.

    Raises:
        InputError: the text is not a search of this version.
    """
    required = schema()["properties"]["cells"]["items"]["required"]
    return resumable.from_json(text, "frontier.json", "search", VERSION, _KEPT, required)


def find(document: Document, name: str | None) -> dict[str, Any] | None:
    """The cell of that name."""
    return next((cell for cell in document["cells"] if cell["name"] == name), None)


def headline(document: Document) -> str:
    """What to ship, in a sentence that needs no other."""
    answer, place = document["answer"], document["device"]["place"]
    place = place[0].upper() + place[1:]
    chosen = find(document, answer and answer["recommended"])
    plain = find(document, answer and answer["best_plain"])
    if document["pending"]:
        to_go = len(document["pending"])
        made = f"{plural(len(document['cells']), 'file')} made, {to_go} to go".replace(SPACE, " ")
        return f"Not finished: {made}; the same command goes on. {headline(document | {'pending': []})}"
    if chosen is None and document["cells"] and not any(cell["fits"] for cell in document["cells"]):
        return f"{place} nothing that was tried fits. {_nearest(document)}"
    if chosen is None:
        what = measure(document)
        fitting = [cell for cell in document["cells"] if cell["fits"] and not cell["differs"]]
        if document["cells"] and not fitting:
            return f"{place} nothing that was tried can be shipped: whatever fits computes something else there."
        least = min(fitting, key=lambda cell: float(cell["expected_drop_points"]), default=None)
        hope = f" The least is expected of {least['name']}: {_expected(least)}." if least else ""
        return f"{place} nothing that was tried can be trusted to lose at most {_limit(document)} of {what}.{hope}"
    against = _against(document, chosen, 1.0, 1.0 if document["device"]["estimates_cycles"] else None, _first(document))
    is_file = _is_of_file(document)
    ship = f"{place} ship {'the file ' if is_file else ''}{chosen['name']}"
    if chosen["kind"] == _PLAIN:
        verb = "is" if document["device"]["unit"] == "ms" else "takes"
        gained = "" if price(chosen) > 1 - _SAME else f" It {verb} {against}."
        return f"{ship}: {_unbeaten(document)}{gained} {_loss(document, chosen)}"
    if plain and plain is not chosen and abs(price(plain) - 1) > _SAME:
        against += f" and {_against(document, chosen, plain['cost_share'], plain['cycles_share'], plain['name'])}"
    return f"{ship}: {against}. {_loss(document, chosen)}"


def _unbeaten(document: Document) -> str:
    """That no other file is better than the plain one, and how far that is known."""
    if document["not_tried"]:
        return f"nothing that was tried in time beats it here; not tried: {len(document['not_tried'])}."
    if all(cell["kind"] == _PLAIN for cell in document["cells"]):
        return "nothing else was worth making, or could be made; why stands beside what was left out."
    return f"nothing that {'could be made of it' if _is_of_file(document) else 'was pruned'} beats it here."


def _is_of_file(document: Document) -> bool:
    """Whether a finished file was given, of which nothing is pruned."""
    return bool(document["given"] == "file")


def _dense(document: Document) -> str:
    """What everything is held to."""
    return "given file" if _is_of_file(document) else "dense network"


def _nearest(document: Document) -> str:
    """The file that is nearest to its budgets of flash and RAM, and by how much it is beyond them."""
    budgets = {
        what: (key, document["settings"][f"{what}_budget"])
        for what, key in (("flash", "flash_bytes"), ("ram", "ram_bytes"))
        if document["settings"][f"{what}_budget"] is not None
    }
    cell = min(document["cells"], key=lambda cell: max(cell[key] / budget for key, budget in budgets.values()))
    parts = [f"{count(cell[key])} where --{what}_budget={budget}" for what, (key, budget) in budgets.items()]
    return f"Nearest is {cell['name']}, which needs {' and '.join(parts)}."


def _against(document: Document, cell: dict[str, Any], share: float, cycles: float | None, name: str) -> str:
    """How much cheaper a cell is than a file of this name and these shares of the first one's cost and cycles."""
    unit = document["device"]["unit"]
    if unit == "ms":
        return f"{significant(share / cell['cost_share'])} times as fast as {name}"
    if cycles is not None:
        fewer, counted = _fewer(cycles, cell["cycles_share"]), _fewer(share, cell["cost_share"])
        return f"by estimate {fewer} cycles, with {counted} instructions, than {name}"
    estimated = "by estimate " if document["device"]["is_estimate"] else ""
    return f"{estimated}{_fewer(share, cell['cost_share'])} {unit} than {name}"


def _fewer(share: float, own: float) -> str:
    """How a file's own share compares with another's: never '0.9 times fewer'."""
    return f"{significant(share / own)} times fewer" if own <= share else f"{significant(own / share)} times more"


def _first(document: Document) -> str:
    device = document["device"]
    if _is_of_file(document):  # generated C leaves zeros out in any case
        is_generated = device["runtime"] == "microcontroller" and device["unit"] == "instructions"
        return "the file with its zeros stored" if is_generated else "the file as it is"
    return "the dense int8 file" if device["runtime"] == "microcontroller" else "the float32 file"


def _limit(document: Document) -> str:
    allowed = document["max_accuracy_drop"]
    return f"{allowed:g} point{'' if allowed == 1 else 's'}"


def _loss(document: Document, cell: dict[str, Any]) -> str:
    score, data = cell["score"], document["data"]
    measured = MEASURES[data["measure"]]
    what = measured.score if data["measure"] == "accuracy" else measured.name.replace("dense model", _dense(document))
    lost, held_out = score["drop_points"], f"{'held-out ' if data['fitted'] else ''}calibration {data['unit']}"
    verb = f"It gained {-lost:.1f}" if lost <= -0.05 else f"It lost {abs(lost):.1f}"
    return (
        f"{verb} points of {what} on {plural(score['n'], data['unit'])}, and was expected to lose "
        f"{_expected(cell)} by {plural(data['judged'], held_out)}."
    )


def _expected(cell: dict[str, Any]) -> str:
    return f"{cell['expected_drop_points']:.1f} ± {cell['expected_error_points']:.1f}"


def measure(document: Document) -> str:
    """What the scores count."""
    return MEASURES[document["data"]["measure"]].score


def format_table(document: Document) -> list[str]:
    """The lines that a person reads."""
    heading = ("", "cost", "share", *_cycles_heading(document), "bytes", measure(document), "lost", "expected")
    lines_of: list[tuple[str, ...]] = [heading]
    for cell in ordered(document):
        mark = _mark(document, cell)
        lines_of.append((f"{mark} {cell['name']}", *_numbers(document, cell)))
    widths = [max(len(row[column]) for row in lines_of) for column in range(len(heading))]
    lines = [headline(document), ""]
    lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in lines_of]
    lines += [
        "",
        "* recommended; + on the frontier. Lost: on evaluation images; expected: by held-out calibration images.",
        _explain_share(document),
    ]
    lines += document["notes"]
    lines += [f"left out: {each['name']}: {each['reason']}" for each in document["dropped"]]
    lines += [f"left out: {cell['name']}: {_DIFFERS}" for cell in document["cells"] if cell["differs"]]
    if document["not_tried"]:
        lines.append(f"not tried for want of time: {', '.join(document['not_tried'])}")
    if (equal := _at_equal_cost(document)) is not None:
        lines.append(equal)
    return lines


def _at_equal_cost(document: Document) -> str | None:
    """Which file is best at no more than the plain conversion's cost, where that is none of the two that are told."""
    answer = document["answer"]
    cell = find(document, answer and answer["best_at_equal_cost"])
    if cell is None or cell["name"] in (answer["recommended"], answer["best_plain"]):
        return None
    least = f"{cell['name']} is expected to lose least: {_expected(cell)} points"
    return f"At no more than the cost of {answer['best_plain']}, {least}."


def _explain_share(document: Document) -> str:
    shares = f"Share: of what {_first(document)} costs"
    if document["device"]["unit"] == "ms":
        return f"{shares}, measured side by side; milliseconds, at different times, compare less well."
    return f"{shares}."


def _mark(document: Document, cell: dict[str, Any]) -> str:
    answer = document["answer"]
    if answer is None:
        return " "
    return "*" if cell["name"] == answer["recommended"] else "+" if cell["name"] in answer["frontier"] else " "


def _numbers(document: Document, cell: dict[str, Any]) -> tuple[str, ...]:
    return (
        _cost(document, cell),
        f"{cell['cost_share']:.2f}",
        *([f"{cell['cycles_share']:.2f}"] if document["device"]["estimates_cycles"] else []),
        count(cell["size_bytes"]),
        percent(share_of(cell["score"])),
        f"{round(cell['score']['drop_points'], 1) + 0.0:.1f}",  # no -0.0
        _expected(cell),
    )


def _cost(document: Document, cell: dict[str, Any]) -> str:
    unit, cost = document["device"]["unit"], cell["cost"]
    if unit == "ms":
        return f"{significant(cost, 3)}{SPACE}ms"
    if unit == "bytes":
        return size(round(cost))
    return f"{cost / 1e6:,.1f}{SPACE}M" if cost >= 1e6 else f"{cost / 1e3:,.1f}{SPACE}k"


def _cycles_heading(document: Document) -> list[str]:
    return ["cycles (estimate)"] if document["device"]["estimates_cycles"] else []


def price(cell: dict[str, Any]) -> float:
    """What files are ordered and drawn by: the estimate of cycles, where there is one, as a share of the first's."""
    return float(cell["cost_share"] if cell["cycles_share"] is None else cell["cycles_share"])


def ordered(document: Document) -> list[dict[str, Any]]:
    """The cells, the cheapest first."""
    return sorted(document["cells"], key=price)


def render(document: Document) -> str:
    """The page as HTML text that needs nothing but itself."""
    device, data = document["device"], document["data"]
    title = f"{document['settings']['model']}: the file to ship {device['place']}"
    unit = data["unit"]
    judged = plural(data["judged"], f"calibration {unit}")
    scored = plural(data["evaluation"], f"evaluation {unit}")
    as_far_as = f", as far as the {_dense(document)}'s own probabilities can be believed"
    fitted = f"; {count(data['fitted'])} others were fitted to" if data["fitted"] else ""
    shapes = "Square: the file as it is; circles: made of it" if _is_of_file(document) else _SHAPES
    lead = (
        f"Measured: {device['description']}. Scores are of {scored}. Files were chosen by what they are expected to "
        f"lose (± a standard error) on {judged} that none was fitted to"
        f"{'' if data['measure'] == 'fidelity' else as_far_as}{fitted}. With 95 % probability that may be at most "
        f"{_limit(document)}."
    )
    caption = (
        f"{measure(document).capitalize()} on the evaluation {unit}s against the cost of an inference, as a share of "
        f"{_first(document)}. {shapes}; numbers: rows of the table. Ringed: recommended; the line joins files of which "
        "none is both cheaper and expected to lose less. "
        f"Whiskers: {nouns.interval(unit, _positions(document), data['measure'] == 'fidelity')}."
    )
    parts = [
        element(
            "header",
            element("h1", title),
            element("p", headline(document), class_="lead"),
            *([element("p", equal)] if (equal := _at_equal_cost(document)) else []),
            *(element("p", note) for note in document["notes"]),
            element("p", lead),
        ),
        element("section", element("h2", "Side by side"), _figure(document, caption)),
        element("section", element("h2", "In numbers"), _table(document), element("p", _explain_share(document))),
        *_left_out(document),
        element("section", element("h2", "The commands"), _commands(document)),
        element("section", element("h2", "Settings"), table(_settings(document), class_="plain")),
    ]
    return frame(title, *parts)


def _positions(document: Document) -> int:
    return document["cells"][0]["score"].get("positions", 1) if document["cells"] else 1


def _table(document: Document) -> Markup:
    scores = measure(document), "points lost", "expected"
    heading: tuple[str, ...] = ("file", "cost", "share", *_cycles_heading(document), "bytes", *scores, "time")
    if document["device"]["runtime"] == "microcontroller":
        heading = (*heading, "flash", "RAM")
    body = []
    for number, cell in enumerate(ordered(document), start=1):
        page = "" if _is_of_file(document) else "report.html"  # a finished file has only itself
        link = element("a", f"{number}. {cell['name']}", href=f"cells/{cell['folder']}/{page}")
        bounds = bounds_of(cell["score"])
        shown = list(_numbers(document, cell))
        shown[-3] += f" ({interval(bounds)})" if bounds else ""
        row: list[str] = [link, *shown, seconds(cell["seconds"])]
        if document["device"]["runtime"] == "microcontroller":
            row += [size(cell["flash_bytes"]), size(cell["ram_bytes"])]
        body.append(row)
    return table(body, heading)


def _commands(document: Document) -> Markup:
    """What makes each file again."""
    made = [
        (cell["name"], element("code", f"python -m reflow_tf.tools.{_tool(document)} {shlex.join(cell['command'])}"))
        for cell in ordered(document)
        if cell["command"]
    ]
    samples = document["settings"]["calibration_samples"]
    has_fewer = not _is_of_file(document) and document["data"]["fitted"] < samples
    return table(made, ("file", "made by" + (", here without the images that judge" if has_fewer else "")))


def _tool(document: Document) -> str:
    return "rewrite" if _is_of_file(document) else "prune"


def _left_out(document: Document) -> Iterator[Markup]:
    found = [(each["name"], each["reason"]) for each in document["dropped"]]
    found += [(name, "not tried for want of time") for name in document["not_tried"]]
    found += [(name, "not yet: the search was interrupted") for name in document["pending"]]
    found += [(c["name"], _DIFFERS) for c in document["cells"] if c["differs"]]
    needs = "made, and beyond a budget: it needs {} of flash and {} of RAM"
    found += [
        (c["name"], needs.format(size(c["flash_bytes"]), size(c["ram_bytes"])))
        for c in document["cells"]
        if not c["fits"]
    ]
    if found:
        yield element("section", element("h2", "Left out, and why"), table(found, ("file", "reason")))


def _settings(document: Document) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in document["settings"].items() if value is not None)
    yield "seconds", document["seconds"]


def _figure(document: Document, caption: str) -> Markup:
    """The same picture for a wide page and for a phone; the style sheet shows one of them."""
    label = f"{measure(document)} of {len(document['cells'])} files against their cost."
    pictures = []
    for width, class_ in ((WIDE, "wide"), (NARROW, "narrow")):
        height, children = draw(document, width)
        pictures.append(svg.picture(width, height, label, *children, class_=class_))
    return element("figure", Markup("\n").join(pictures), element("figcaption", caption))


def draw(document: Document, width: float) -> tuple[float, list[Markup]]:
    """The picture's height and parts: scores against costs, numbered as the rows of the table."""
    cells = document["cells"]
    height, left, right, top, bottom = 380.0, 48.0, width - 12, 18.0, 330.0
    most = max(map(price, cells), default=1.0)
    x = svg.linear((0.0, max(1.05, 1.05 * most)), (left, right))
    marked = [mark for cell in cells for mark in (bounds_of(cell["score"]) or [share_of(cell["score"])])] or [0.0, 1.0]
    least = max(0.0, min(marked) - 0.02)
    y = svg.linear((least, min(1.0, max(marked) + 0.02)), (bottom, top))
    parts: list[Markup] = []
    for tick in range(0, int(max(1.05, 1.05 * most) / 0.25) + 1):
        share = 0.25 * tick
        parts += [svg.line(x(share), top, x(share), bottom, "grid" if tick else "axis")]
        parts += [svg.text(x(share), bottom + 16, f"{share:g}", "tick", "middle")]
    for tick in range(0, 21):
        if least <= tick / 20 <= 1 and y(tick / 20) >= top:
            parts += [svg.line(left, y(tick / 20), right, y(tick / 20), "grid")]
            parts += [svg.text(left - 8, y(tick / 20) + 4, percent(tick / 20, 0), "tick", "end")]
    unit = "cycles, by estimate" if document["device"]["estimates_cycles"] else document["device"]["unit"]
    parts.append(svg.text((left + right) / 2, bottom + 38, f"{unit}, as a share", "label", "middle"))
    on_it = [
        cell for cell in ordered(document) if document["answer"] and cell["name"] in document["answer"]["frontier"]
    ]
    if len(on_it) > 1:
        parts.append(svg.path([(x(price(cell)), y(share_of(cell["score"]))) for cell in on_it], "curve stroke-dense"))
    labels: list[tuple[float, float]] = []
    for number, cell in enumerate(ordered(document), start=1):
        across, up = x(price(cell)), y(share_of(cell["score"]))
        free = [
            place
            for place in ((across + 8, up - 6), (across + 8, up + 14), (across - 16, up - 6), (across - 16, up + 14))
            if all(abs(place[0] - other[0]) > 14 or abs(place[1] - other[1]) > 12 for other in labels)
        ]
        labels.append(free[0] if free else (across + 8, up - 6))
        parts += _draw_cell(document, cell, (across, up), y)
        parts.append(svg.text(*labels[-1], str(number), "tick"))
    return height, parts


def _draw_cell(document: Document, cell: dict[str, Any], place: tuple[float, float], y: svg.Scale) -> Iterator[Markup]:
    score, (across, up) = cell["score"], place
    if bounds := bounds_of(score):
        low, high = bounds
        yield svg.line(across, y(low), across, y(high), "whisker")
    title = element("title", f"{cell['name']}: {_cost(document, cell)}, {percent(share_of(score))}")
    if document["answer"] and cell["name"] == document["answer"]["recommended"]:
        yield element("circle", cx=across, cy=up, r=9.0, class_="ring")
    if cell["kind"] == _PLAIN:
        yield element("rect", title, x=across - 4, y=up - 4, width=8, height=8, class_="fill-pruned")
    else:
        yield element("circle", title, cx=across, cy=up, r=4.5, class_="fill-repaired")
