"""Numbers as a person reads them. A no-break space stands between a number and its unit."""

import math
from collections import Counter
from typing import Any

SPACE, EN_DASH, MINUS, TIMES = "\u00a0", "\u2013", "\u2212", "\u00d7"
# Under this share of difference two sizes are called equal.
SAME_SIZE = 0.02
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.9256 -> '92.6 %'; None -> an en dash, as in every function here.

    What is not all is never shown as 100 %, and what is not nothing never as 0 %: digits are added instead, up to four.
    """
    if fraction is None:
        return EN_DASH
    shown = f"{100 * fraction:.{digits}f}"
    while digits < 4 and float(shown) in (0.0, 100.0) and fraction not in (0, 1):
        digits += 1
        shown = f"{100 * fraction:.{digits}f}"
    return f"{shown}{SPACE}%"


def interval(bounds: list[float] | None) -> str:
    """[0.914, 0.937] -> '91.4–93.7 %'."""
    if bounds is None:
        return EN_DASH
    return f"{100 * bounds[0]:.1f}{EN_DASH}{100 * bounds[1]:.1f}{SPACE}%"


def points(difference: float, digits: int = 1) -> str:
    """A signed difference of two percentages: -1.6 -> '−1.6 points'."""
    shown = f"{abs(difference):.{digits}f}"
    sign = "±" if float(shown) == 0 else MINUS if difference < 0 else "+"
    return f"{sign}{shown}{SPACE}points"


def size(size_bytes: int) -> str:
    """Bytes in steps of a thousand: 8868352 -> '8.87 MB'."""
    if size_bytes < 1000:
        return f"{size_bytes}{SPACE}B"
    value, unit = (size_bytes / 1e3, "kB") if size_bytes < 999_500 else (size_bytes / 1e6, "MB")  # 1.00 MB
    return f"{significant(value, 3)}{SPACE}{unit}"


def count(number: int | None) -> str:
    """12345 -> '12,345'."""
    return EN_DASH if number is None else f"{number:,}"


def large_count(number: int) -> str:
    """Weights of a network: 2191234 -> '2.19 million'."""
    if number < 1e6:
        return count(number)
    value, unit = (number / 1e6, "million") if number < 1e9 else (number / 1e9, "billion")
    return f"{significant(value, 3)}{SPACE}{unit}"


def significant(value: float | None, digits: int = 2) -> str:
    """0.00317 -> '0.0032', 0.8 -> '0.80', 3.1e-06 -> '3.1×10⁻⁶', 184.2 -> '184'."""
    if value is None:
        return EN_DASH
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}{TIMES}10{str(int(power)).translate(_SUPERSCRIPTS)}"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits}g}"))))
    # The digits before the point are always shown: 184.2 with two digits is 184 and not 180.
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def seconds(duration: float) -> str:
    """75.2 -> '1 min 15 s', 9.31 -> '9.3 s'."""
    if duration < 60:
        return f"{duration:.1f}{SPACE}s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes}{SPACE}min {rest}{SPACE}s"


def plural(number: int, noun: str) -> str:
    """(1, 'layer') -> '1 layer'; (52, 'layer') -> '52 layers'."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{count(number)}{SPACE}{noun}{ending}"


def grouped_skips(skipped: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The skipped kernels by reason, the most frequent first: [(reason, paths)]."""
    reasons = Counter(skip["reason"] for skip in skipped)
    return [
        (reason, [skip["path"] for skip in skipped if skip["reason"] == reason]) for reason, _ in reasons.most_common()
    ]
