"""Pictures as SVG text: elements with escaped contents, and the two ways a number becomes a position."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

Scale = Callable[[float], float]


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. `class_` becomes class, other underscores hyphens; None leaves an attribute out.

    Plain strings are escaped, wherever they stand, so the name of a layer can never become markup.
    """
    text = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _value(value))
        for name, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), text, inside)


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def picture(width: float, height: float, label: str, *children: str, class_: str = "") -> Markup:
    """The <svg> element; `label` is what a screen reader says in its place."""
    view_box = f"0 0 {width:g} {height:g}"
    return element("svg", *children, class_=class_ or None, viewBox=view_box, role="img", aria_label=label)


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text with its baseline at y; `anchor` is start, middle or end."""
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor if anchor != "start" else None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def bar(x: float, y: float, width: float, height: float, class_: str, title: str | None = None) -> Markup:
    """A rectangle; `title` appears when a pointer rests on it."""
    children = [element("title", title)] if title else []
    return element("rect", *children, x=x, y=y, width=max(width, 0), height=max(height, 0), class_=class_)


def path(points: list[tuple[float, float] | None], class_: str) -> Markup:
    """A line through the points; None leaves a gap."""
    commands, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        commands.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    return element("path", d="".join(commands), class_=class_)


def push_apart(places: Sequence[float], gap: float, limit: float | None = None) -> list[float]:
    """Rising places, each moved down until it is at least `gap` below the one before it.

    Where they would pass the limit, they are moved upwards again, all as far apart.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    if limit is not None:
        for index in reversed(range(len(moved))):
            moved[index] = min(moved[index], limit)
            limit = moved[index] - gap
    return moved


def linear(domain: tuple[float, float], span: tuple[float, float]) -> Scale:
    """Maps `domain` onto `span`, evenly; an empty domain goes to the middle."""
    (low, high), (start, end) = domain, span
    if low == high:
        return lambda _: (start + end) / 2
    return lambda value: start + (end - start) * (value - low) / (high - low)


def logarithmic(domain: tuple[float, float], span: tuple[float, float]) -> Scale:
    """Maps a positive `domain` onto `span` by its logarithm; smaller values land on the lower end."""
    inner = linear((math.log10(domain[0]), math.log10(domain[1])), span)
    return lambda value: inner(math.log10(max(value, domain[0])))
