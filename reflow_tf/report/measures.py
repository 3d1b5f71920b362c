"""What a report scores by: right classes, the dense model's classes, or how near outputs are to the dense model's."""

from typing import Any, NamedTuple


class Measure(NamedTuple):
    """One way to score, in words.

    Attributes:
        name: in a sentence.
        title: of a section.
        column: of a table.
        score: names a figure: 'top-1'.
    """

    name: str
    title: str
    column: str
    score: str


STAGES = ("dense", "pruned", "repaired", "file")
"""What is scored, in their order."""

MEASURES = {
    "accuracy": Measure("top-1 accuracy", "Accuracy", "top-1", "top-1"),
    "agreement": Measure("agreement with the dense model", "Agreement with the dense model", "agreement", "agreement"),
    "fidelity": Measure("fidelity to the dense model", "Fidelity to the dense model", "fidelity", "fidelity"),
}
"""Name in a report -> the measure; a report has scores under one of the names, and null under the others."""


def find_measure(report: dict[str, Any]) -> str:
    """The name under which a report has its scores."""
    return next(name for name in MEASURES if report[name])


def share_of(score: dict[str, Any]) -> float:
    """What is drawn and tabulated, a fraction in [0, 1]: a share of right predictions, or 1 less a relative error."""
    if "top1" in score:
        return float(score["top1"])
    return max(0.0, 1 - float(score["relative_error"]))


def bounds_of(score: dict[str, Any]) -> list[float] | None:
    """The 95 % interval of that; None where there is none."""
    if "top1" in score:
        bounds: list[float] | None = score["top1_interval"]
        return bounds
    if score["error_interval"] is None:
        return None
    low, high = score["error_interval"]
    return [max(0.0, 1 - high), max(0.0, 1 - low)]
