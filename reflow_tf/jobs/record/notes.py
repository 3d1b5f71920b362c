"""Sentences for the person who reads the report."""

import numpy as np

from reflow_tf.data.classes import VOID
from reflow_tf.jobs.float16_arithmetic import Float16Check
from reflow_tf.jobs.record.run import Run
from reflow_tf.pruning import PruneReport, PruneResult
from reflow_tf.report.preparation import describe_unmerged
from reflow_tf.report.wording import SPACE, plural
from reflow_tf.task import Task

# A network that is right so much less often than it believes sees other inputs, or is asked for other classes.
_MOST_OVERCONFIDENT, _FEWEST_INPUTS = 0.3, 30
# Below this agreement a float32 file is not the Keras model that it was made of: rounding alone leaves more.
_LEAST_AGREEMENT = 0.99


def write_notes(run: Run) -> list[str]:
    notes = [note] if (note := doubt_inputs(run)) else []
    notes += list(run.exported.notes) + _disagreement(run)
    if (foreseen := run.result.report.budget) and foreseen.unfound:
        unfound = ", ".join(foreseen.unfound)
        notes.append(f"Not found in the dense file, and dense in the estimate of the budget therefore: {unfound}.")
    if caution := run.job.target.caution(run.job.prune.requested_pattern):
        notes.append(caution)
    notes += run.measured.verdict.warnings
    notes += describe_float16(run.in_float16)
    notes += _changes(run.result.report)
    for name, found in run.measured.benchmarks.items():
        if isinstance(found, str):
            notes.append(f"Not measured with --benchmark={name}: {found}")
        elif found.files[0].differs:
            notes.append(
                f"Do not ship this file: in {found.runtime} its outputs differ by {found.files[0].difference:.2g} of "
                f"the largest one from those of LiteRT on this machine."
            )
    for outcome in run.result.report.repair:
        if outcome.unreached:
            unreached = ", ".join(outcome.unreached)
            notes.append(
                f"{outcome.name} left these layers alone, since no calibration input reached them or it has no rule "
                f"for how they are used or for their size: {unreached}."
            )
    if (emptied := describe_emptied(run.result)) is not None:
        notes.append(emptied)
    if missing := [check for check in run.measured.mask_checks if not check.ok]:
        masks = plural(len(missing), "mask").replace(SPACE, " ")
        notes.append(f"Not found again in the file: {masks}; the first: {missing[0].closest}.")
    if dropped := run.given.calibration.num_dropped:
        inputs = plural(dropped, "calibration input").replace(SPACE, " ")
        notes.append(f"Left out, because also evaluated on: {inputs}.")
    return notes


def doubt_inputs(run: Run) -> str | None:
    """What speaks against how inputs are prepared, or how classes are ordered; None where nothing does."""
    if run.given.doubt is not None:
        return run.given.doubt
    labels, dense = run.given.evaluation.labels, run.result.report.signals["dense"]
    if labels is None or len(dense.ranked) < _FEWEST_INPUTS:
        return None
    best = dense.ranked[..., 0]
    looked_for = labels[run.given.looked_into].reshape(best.shape)  # labels may have axes of 1
    right = float(np.mean((best == looked_for)[looked_for != VOID]))
    if dense.confidence - right < _MOST_OVERCONFIDENT:
        return None
    return (
        f"The dense model believes to be right with {dense.confidence:.0%} and is with {right:.0%}: check whether "
        "--preprocess is what it was trained with, and the order of the classes (--class_names)."
    )


def describe_float16(found: Float16Check | str | None) -> list[str]:
    """What CPUs with float16 arithmetic make of the file: its accuracy here is that of float32."""
    if found is None:
        return []
    if isinstance(found, str):
        return [f"This file lets CPUs compute in float16; its outputs there were not checked: {found}."]
    inputs = plural(found.num_inputs, "calibration input").replace(SPACE, " ")
    if found.difference is None:
        return [
            f"Computed in float16 ({found.runtime}), outputs for {inputs} are not finite: the file does not allow "
            "float16 arithmetic, and only its weights are in float16."
        ]
    same = "" if found.agreement is None else f"it names the same class for {found.agreement:.0%} of {inputs}; "
    where = f" for {inputs}" if found.agreement is None else ""
    return [
        f"This file lets CPUs compute in float16. So computed ({found.runtime}), {same}outputs{where} move by at most "
        f"{found.difference:.2g} of the largest one. Accuracy and parity here are those in float32."
    ]


def _changes(report: PruneReport) -> list[str]:
    """What was done to the dense network, exactly, before anything was pruned."""
    notes = []
    if report.unmerged:
        notes.append(describe_unmerged(len(report.unmerged)))
    if report.num_turned:
        streams = plural(report.num_turned, "linear stream").replace(SPACE, " ")
        notes.append(
            f"The basis of {streams} of channels was changed before pruning, so that zeros "
            "cost less; the dense network computes what it did with other kernels. --basis=kept leaves them alone."
        )
    if report.paired:
        kernels = plural(len(report.paired), "kernel").replace(SPACE, " ")
        notes.append(
            f"The outputs of {kernels} are in another order, so that blocks of them keep more; the "
            "dense network computes what it did."
        )
    return notes


def _disagreement(run: Run) -> list[str]:
    """Accuracy is that of float32 files: whether Keras predicts the same was seen on some images."""
    if run.given.task is Task.FIDELITY:  # which is measured in Keras as well, stage by stage
        return []
    pairs = {"dense": "dense"} | ({"repaired": "file"} if run.job.requested_quantize == "none" else {})
    found = []
    for stage, file in pairs.items():
        in_keras = run.result.report.signals[stage].ranked[..., 0]
        in_file = run.measured.ranked[file].at(run.given.looked_into).classes[..., 0]
        if (agreement := np.mean(in_keras == in_file)) < _LEAST_AGREEMENT:
            found.append(
                f"The {stage} model's file names the same class as Keras for only {agreement:.1%} of the inputs."
            )
    return found


def describe_emptied(result: PruneResult) -> str | None:
    """Which kernels have lost their last weight, in a sentence; None where none has."""
    sizes = {spec.path: spec.num_weights for spec in result.report.specs}
    had_weights = {path for path, zeros in result.report.zeros_before.items() if zeros < sizes[path]}
    emptied = [path for path, mask in result.masks.items() if not mask.any() and path in had_weights]
    if not emptied:
        return None
    return f"Every weight of these kernels is zero; another allocation would share better: {', '.join(emptied)}."
