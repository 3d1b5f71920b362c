"""Whether the limits that the user set were kept, in sentences."""

from reflow_tf.report.document import Report
from reflow_tf.report.measures import STAGES
from reflow_tf.report.wording import count, points, significant, size

# So many of the largest tensors are named where a file is too large.
_MOST_NAMED = 3


def gate_sentence(report: Report) -> str | None:
    """Whether the accuracy gate was passed; None without a gate."""
    gate = report["gate"]
    if gate["passed"] is None:
        return None
    allowed, drop = gate["max_accuracy_drop"], gate["drop_points"]
    outcome = "passed" if gate["passed"] else "missed"
    at = points(-drop, _find_digits(drop, allowed))
    return f"The accuracy gate was {outcome}: the file is at {at} against dense, a drop of {allowed:g} is allowed."


def metric_sentence(report: Report) -> str | None:
    """What --metric, or the mean IoU, makes of the stages, and whether its gate was passed; None without either."""
    metric = report["metric"]
    if metric is None:
        return None
    stages = " → ".join(
        f"{stage} {significant(metric['stages'][stage]['value'], 4)}" for stage in STAGES if metric["stages"][stage]
    )
    bounds = metric["stages"]["file"]["interval"]
    within = f" (95 % interval {significant(bounds[0], 3)} to {significant(bounds[1], 3)})" if bounds else ""
    gate = ""
    if metric["passed"] is not None:
        outcome = "passed" if metric["passed"] else "missed"
        change = f"{'lost' if metric['drop'] >= 0 else 'gained'} {abs(metric['drop']):.4g}"
        gate = f" --max_metric_drop={metric['max_metric_drop']:g} was {outcome}: the file {change}."
    return f"By {metric['name']}: {stages}{within}.{gate}"


def _find_digits(drop: float, limit: float) -> int:
    """Behind the point: so many that a drop on one side of the limit is not shown on the other, or at it."""
    for digits in (1, 2, 3):
        shown = round(drop, digits)
        if (shown > limit) == (drop > limit) and (shown == limit) == (drop == limit):
            return digits
    return 4


def budget_sentence(report: Report) -> str | None:
    """What the budget came to, estimated and measured; None where a sparsity was asked for."""
    budget = report["budget"]
    if budget is None:
        return None
    outcome = {True: "was kept", False: "was missed", None: "is estimated, not measured"}[budget["passed"]]
    if budget["name"] != "min_speedup":
        estimate = "" if budget["estimate"] is None else f"; {count(budget['estimate'])} were estimated"
        facts = f"the file has {count(budget['measured'])} bytes{estimate}"
        return f"--{budget['name']}={budget['value']:.0f} {outcome}: {facts}{_largest_parts(report)}."
    estimate = f"{significant(budget['estimate'], 3)} times as fast as dense"
    if budget["measured"] is not None:
        web = report["latency"]["web"]["runtime"]
        facts = f"in {web} the file is {significant(budget['measured'], 3)} times as fast as dense; {estimate}"
        facts = f"{facts} was estimated"
    elif budget["passed"] is False:
        facts = f"{estimate} was estimated, but {report['target']['statement'].rstrip('.')}"
    else:
        facts = f"{estimate}, by what other networks at 224x224 gained in LiteRT.js; smaller images gain less"
    return f"--min_speedup={budget['value']:g} {outcome}: {facts}."


def _largest_parts(report: Report) -> str:
    if report["budget"]["passed"]:
        return ""
    tensors = sorted(report["file"]["tensors"], key=lambda tensor: -tensor["size_bytes"])[:_MOST_NAMED]
    named = ", ".join(f"{tensor['name']} ({size(tensor['size_bytes'])}, {tensor['storage']})" for tensor in tensors)
    return f". The largest parts are {named}" if named else ""
