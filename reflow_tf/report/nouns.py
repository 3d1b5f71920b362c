"""What a report counts: images or other samples, and of them the positions of a map or the labels."""

from typing import Any

from reflow_tf.task import Task

Report = dict[str, Any]


def sample(report: Report) -> str:
    """What one input of the network is: 'image', or 'sample' where it is no image."""
    return report["data"]["unit"]


def positions(report: Report) -> int:
    """Predictions an input: 1, or as many as a map has positions, or there are labels."""
    scores = report["accuracy"] or report["agreement"]
    return scores["file"]["positions"] if scores else 1


def prediction(report: Report) -> str:
    """What has one predicted class: the input as a whole, or `part` of it."""
    return sample(report) if positions(report) == 1 else part(report)


def part(report: Report) -> str:
    """What there are several of in an input that has several predictions: a 'position', or a 'label'."""
    return "label" if report["config"].get("task") == Task.MULTI_LABEL else "position"


def interval(unit: str, positions: int, is_ratio: bool = False) -> str:
    """How intervals were computed; see `reflow_tf.report.interval`."""
    if is_ratio:
        return f"95 % interval over {unit}s, of a ratio of means"
    return "95 % Wilson interval" if positions == 1 else f"95 % interval of the mean over {unit}s, by Student's t"
