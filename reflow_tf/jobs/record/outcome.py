"""What became of the model: zeros, signal, accuracy, and whether it may pass."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from reflow_tf.jobs.record.run import Run, plain
from reflow_tf.jobs.scoring import Ranked, measure_distances, sum_by_output
from reflow_tf.models.graph import find_kernels
from reflow_tf.repair.choice import Choice
from reflow_tf.report.measures import MEASURES, STAGES
from reflow_tf.report.scores import MetricScore, score_accuracy, score_agreement, score_fidelity, score_iou
from reflow_tf.signal import VERDICT_RULE, LayerRatio, Signal, compare_signals, has_collapsed
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.masks import count_zeros
from reflow_tf.task import Task


def describe_scores(run: Run) -> dict[str, Any]:
    """What each stage scores, and what it lost against dense: under one of the three names, None under the others.

    'accuracy' with labels, 'agreement' with the dense model without, 'fidelity' to it where outputs are no classes.
    """
    found = _describe_fidelity(run) if run.given.task is Task.FIDELITY else _describe_classes(run)
    return {name: found if name == run.given.measure else None for name in MEASURES}


def _describe_fidelity(run: Run) -> dict[str, Any]:
    """How far each stage is from the dense model, in Keras on the first of the inputs looked into, else the file."""
    assert run.measured.distance is not None
    signals, sizes = run.result.report.signals, run.measured.distance.sizes
    dense = signals["dense"].outputs
    sums = {stage: measure_distances(signals[stage].outputs, dense, sizes) for stage in ("pruned", "repaired")}
    sums |= {"file": run.measured.distance.sums}
    if run.job.requested_quantize == "none":  # the repaired model, to which the parity holds it
        sums["repaired"] = sums["file"]
    powers, variances = (sum_by_output(of, sizes) for of in (np.square(dense).mean(axis=0), dense.var(axis=0)))
    names = run.given.loaded.output_names
    described = {stage: describe_distance(found, names) for stage, found in sums.items()}
    for stage in described.values():
        stage["share_of_variation"] = _share_of_variation(stage["outputs"], powers, variances)
    return described


def describe_distance(sums: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """How far outputs of these names are from others, of which `sums` are as `Distances` has them."""
    score = score_fidelity(sums)
    each = [score_fidelity(sums[:, [place]]) for place in range(sums.shape[1])]
    outputs = [
        {"name": name, "relative_error": one.relative_error, "worst": one.worst, "cosine": one.cosine}
        for name, one in zip(names, each, strict=True)
    ]
    return plain(score) | {"drop_points": _points(score.relative_error), "outputs": outputs}


def _share_of_variation(outputs: Sequence[dict[str, Any]], powers: np.ndarray, variances: np.ndarray) -> float | None:
    """Of one stage; `powers` and `variances` of each dense output say how much of it varies from input to input."""
    if not variances.all():
        return None
    errors = np.array([output["relative_error"] for output in outputs])
    return float(np.sqrt(np.mean(np.square(errors) * powers / variances)))


def _describe_classes(run: Run) -> dict[str, Any]:
    """Accuracy where there are labels, else agreement with the dense model; each with the drop from dense."""
    ranked = _stages(run)
    dense = ranked["dense"]
    labels, num_classes = run.given.evaluation.labels, run.result.report.signals["dense"].num_classes
    if labels is None:
        del ranked["dense"]
    return {stage: score_classes(labels, num_classes, dense, found) for stage, found in ranked.items()}


def score_classes(labels: np.ndarray | None, num_classes: int, dense: Ranked, found: Ranked) -> dict[str, Any]:
    """How often a network is right or, without labels, names the class that the dense one names; and what it lost.

    Args:
        labels: of all evaluation images, if they have any.
        num_classes: of the network.
        dense: what the dense network names, of these images at least.
        found: what the other one names.
    """
    dense = dense.at(found.positions)
    if labels is None:
        return _score_agreement(dense, found)
    right = [score_accuracy(each.classes, labels[each.positions], num_classes) for each in (found, dense)]
    return plain(right[0]) | {"drop_points": _points(right[1].top1 - right[0].top1)}


def _score_agreement(dense: Ranked, found: Ranked) -> dict[str, Any]:
    score = score_agreement(found.classes, dense.classes)
    described = plain(score) | {"drop_points": _points(1 - score.top1)}
    del described["top5"]
    return described


def _points(share: float) -> float:
    return round(100 * share, 4)


def _stages(run: Run) -> dict[str, Ranked]:
    """What each stage predicts, in their order: as files where there are any, else in Keras on the images looked into.

    A float32 file is the repaired model, which the parity and `notes` hold it to.
    """
    looked = {
        stage: Ranked(run.given.looked_into, signal.ranked) for stage, signal in run.result.report.signals.items()
    }
    files = dict(run.measured.ranked)
    if run.job.requested_quantize == "none":
        files["repaired"] = files["file"]
    return looked | files


def describe_gate(limit: float | None, score: dict[str, Any]) -> dict[str, Any]:
    """Whether the file, of this score, may lie so far below the dense model."""
    drop = score["drop_points"]
    return {
        "max_accuracy_drop": limit,
        "drop_points": drop,
        "n": score["n"],
        "passed": _passes(drop, limit),
    }


def _passes(drop: float, limit: float | None) -> bool | None:
    """Whether a drop is within a limit, but for rounding; None without one."""
    return None if limit is None else bool(drop <= limit + 1e-9)


def describe_metric(run: Run) -> dict[str, Any] | None:
    """What --metric makes of each stage; without one the mean IoU of labelled maps, and None of anything else."""
    if run.job.metric is not None:
        name, scores = run.job.metric, dict(run.measured.metrics)
        dense = scores["dense"]
    elif run.given.has_label_maps:
        name, stages = "mean IoU", _stages(run)
        scores = {stage: _score_iou(run, found) for stage, found in stages.items()}
        dense = _score_iou(run, stages["dense"].at(stages["file"].positions))
    else:
        return None
    limit, drop = run.job.max_metric_drop, dense.value - scores["file"].value
    return {
        "name": name,
        "stages": {stage: plain(scores[stage]) if stage in scores else None for stage in STAGES},
        "drop": drop,
        "max_metric_drop": limit,
        "passed": _passes(drop, limit),
    }


def _score_iou(run: Run, found: Ranked) -> MetricScore:
    labels, num_classes = run.given.evaluation.labels, run.result.report.signals["dense"].num_classes
    assert labels is not None
    return score_iou(found.classes, labels[found.positions], num_classes, run.given.task)


def requested_sparsity(run: Run) -> float | None:
    has_other = run.job.prune.budget is not None or not run.job.prune.sets_zeros
    return None if has_other else run.job.prune.requested_sparsity


def describe_narrowing(run: Run) -> dict[str, Any] | None:
    """Which channels were removed; None where none were asked to be."""
    narrowing = run.result.report.narrowing
    if narrowing is None:
        return None
    return {
        "max_macs": run.job.prune.max_macs,
        "macs_before": narrowing.macs_before,
        "macs_after": narrowing.macs_after,
        "num_parameters_before": run.given.loaded.model.count_params(),
        "groups": [plain(group) for group in narrowing.groups],
        "held": [plain(skipped) for skipped in narrowing.held],
    }


def describe_sparsity(run: Run) -> dict[str, Any]:
    """Zeros of the weights as they are now, whoever made them."""
    model, plan, config = run.result.model, run.result.plan, run.job.prune
    report, weights = run.result.report, find_kernels(model).read()
    layers = [
        _sparsity_of_layer(spec, weights[spec.path], report.zeros_before[spec.path], plan.layers[spec.path].pattern)
        for spec in report.specs
    ]
    num_weights = sum(spec.num_weights for spec in report.specs) or 1
    zeros_before = sum(report.zeros_before.values())
    # Kernels that are not prunable for the target may have come with zeros as well.
    matrices = (keras.ops.convert_to_numpy(weight) for weight in model.weights if len(weight.shape) > 1)
    return {
        "requested": requested_sparsity(run),
        "before": zeros_before / num_weights,
        "achieved": sum(layer["num_zeros"] for layer in layers) / num_weights,
        "achieved_model": sum(map(count_zeros, matrices)) / model.count_params(),
        "pattern": str(config.requested_pattern),
        "criterion": config.requested_criterion,
        "allocation": config.allocation,
        "layers": layers,
    }


def _sparsity_of_layer(spec: LayerSpec, kernel: np.ndarray, zeros_before: int, pattern: object) -> dict[str, Any]:
    num_zeros = count_zeros(kernel)
    return {
        "path": spec.path,
        "kind": spec.kind.value,
        "shape": list(spec.shape),
        "num_weights": spec.num_weights,
        "num_zeros": num_zeros,
        "num_zeros_before": zeros_before,
        "sparsity": num_zeros / spec.num_weights,
        "pattern": str(pattern),
    }


def describe_signal(run: Run) -> dict[str, Any]:
    dense, pruned, repaired = (run.result.report.signals[stage] for stage in ("dense", "pruned", "repaired"))
    layers = zip(compare_signals(pruned, dense), compare_signals(repaired, dense), strict=True)
    return {
        "verdict_rule": VERDICT_RULE,
        "n": len(run.given.looked_into),
        "collapsed_before": has_collapsed(pruned, dense),
        "collapsed_after": has_collapsed(repaired, dense),
        "predictions": None
        if run.given.task is Task.FIDELITY
        else {
            stage: _predictions(signal)
            for stage, signal in (("dense", dense), ("pruned", pruned), ("repaired", repaired))
        },
        "layers": [
            {"path": before.path, "depth": depth, "pruned": _layer_signal(before), "repaired": _layer_signal(after)}
            for depth, (before, after) in enumerate(layers)
        ],
    }


def _predictions(signal: Signal) -> dict[str, Any]:
    return {
        "histogram": signal.predicted.tolist(),
        "entropy_bits": signal.entropy_bits,
        "effective_classes": signal.effective_classes,
        "largest_share": float(signal.predicted.max() / signal.predicted.sum()),
    }


def _layer_signal(layer: LayerRatio) -> dict[str, Any]:
    return {"ratio": layer.ratio, "dead_channels": layer.num_dead, "num_channels": len(layer.channel_ratios)}


def describe_repair(run: Run) -> dict[str, Any]:
    outcomes = run.result.report.repair
    return {
        "name": run.job.prune.requested_repair,
        "steps": [
            {
                "name": outcome.name,
                "num_layers": len(outcome.repaired),
                "statement": outcome.statement,
                "moved": list(outcome.moved),
            }
            for outcome in outcomes
        ],
        "tried": [plain(each) for outcome in outcomes if isinstance(outcome, Choice) for each in outcome.tried],
    }
