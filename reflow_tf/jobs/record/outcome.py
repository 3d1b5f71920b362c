"""What became of the model: zeros, signal, accuracy, and whether it may pass."""

from typing import Any

import numpy as np

from reflow_tf.jobs.record.run import Run, plain
from reflow_tf.repair.choice import Choice
from reflow_tf.report.scores import Score, score_accuracy, score_agreement
from reflow_tf.signal import VERDICT_RULE, LayerRatio, Signal, compare_signals, has_collapsed
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.masks import count_masked


def describe_scores(run: Run) -> tuple[dict | None, dict | None]:
    """(accuracy, None) with labels, (None, agreement with the dense model) without."""
    signals = run.result.report.signals
    ranked = {stage: signal.ranked for stage, signal in signals.items()} | {"file": run.measured.ranked}
    labels, num_classes = run.given.evaluation.labels, signals["dense"].num_classes
    if labels is not None:
        return {stage: plain(score_accuracy(r, labels, num_classes)) for stage, r in ranked.items()}, None
    dense = ranked.pop("dense")
    return None, {stage: _concordance(score_agreement(r, dense)) for stage, r in ranked.items()}


def _concordance(score: Score) -> dict[str, Any]:
    return {name: value for name, value in plain(score).items() if name != "top5"}


def describe_gate(limit: float | None, accuracy: dict | None, agreement: dict | None) -> dict[str, Any]:
    if accuracy is not None:
        drop = 100 * (accuracy["dense"]["top1"] - accuracy["file"]["top1"])
    else:
        assert agreement is not None
        drop = 100 * (1 - agreement["file"]["top1"])
    return {
        "max_accuracy_drop": limit,
        "drop_points": round(drop, 4),
        "passed": None if limit is None else bool(drop <= limit + 1e-9),
    }


def requested_sparsity(run: Run) -> float | None:
    return None if run.job.prune.budget else run.job.prune.requested_sparsity


def describe_sparsity(run: Run) -> dict[str, Any]:
    masks, plan, config = run.result.masks, run.result.plan, run.job.prune
    specs = run.result.report.specs
    num_zeros = count_masked(masks)
    return {
        "requested": requested_sparsity(run),
        "achieved": num_zeros / sum(spec.num_weights for spec in specs),
        "achieved_model": num_zeros / run.result.model.count_params(),
        "pattern": str(config.pattern),
        "criterion": config.criterion,
        "allocation": config.allocation,
        "layers": [_sparsity_of_layer(spec, masks[spec.path], plan.layers[spec.path].pattern) for spec in specs],
    }


def _sparsity_of_layer(spec: LayerSpec, mask: np.ndarray, pattern: object) -> dict[str, Any]:
    num_zeros = count_masked({spec.path: mask})
    return {
        "path": spec.path,
        "kind": spec.kind.value,
        "shape": list(spec.shape),
        "num_weights": spec.num_weights,
        "num_zeros": num_zeros,
        "sparsity": num_zeros / spec.num_weights,
        "pattern": str(pattern),
    }


def describe_signal(dense: Signal, pruned: Signal, repaired: Signal) -> dict[str, Any]:
    layers = zip(compare_signals(pruned, dense), compare_signals(repaired, dense), strict=True)
    return {
        "verdict_rule": VERDICT_RULE,
        "collapsed_before": has_collapsed(pruned, dense),
        "collapsed_after": has_collapsed(repaired, dense),
        "predictions": {
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
        "name": run.job.prune.repair,
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
