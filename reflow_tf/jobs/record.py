"""What happened, put into the words of the report's schema."""

import dataclasses
import datetime
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reflow_tf.config import JobConfig
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.export.limits import SpeedLimit
from reflow_tf.export.tflite import ExportedFile
from reflow_tf.export.verification import MaskCheck
from reflow_tf.jobs.benchmark import Benchmark
from reflow_tf.jobs.microcontroller import Footprint
from reflow_tf.models.loading import LoadedModel
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.pruning import PruneResult
from reflow_tf.repair.choice import Choice
from reflow_tf.report import page
from reflow_tf.report.document import SCHEMA_VERSION, Report, to_json
from reflow_tf.report.environment import describe_environment
from reflow_tf.report.folder import Content
from reflow_tf.report.scores import Parity, Score, score_accuracy, score_agreement
from reflow_tf.runtimes.latency import Spread
from reflow_tf.signal import VERDICT_RULE, LayerRatio, Signal, compare_signals, has_collapsed
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.masks import count_masked
from reflow_tf.targets.target import Cluster, Verdict


@dataclasses.dataclass(frozen=True)
class Run:
    """All that one run of the tool has to tell.

    Attributes:
        dense_file: what the unpruned model gives with the same quantization, not rewritten, to compare with.
        before: the target's verdict on the dense file.
        verdict: the target's verdict on the file.
        ranked_in_file: the file's best classes of each evaluation image, (images, up to 5), best first.
        footprint: flash and RAM, where the target is a microcontroller.
        benchmarks: runtime as --benchmark spells it -> dense file and file, measured side by side; or why they could
            not be.
        seconds: stage -> wall-clock seconds.
        command: the command line.
    """

    job: JobConfig
    loaded: LoadedModel
    calibration: CalibrationSet
    evaluation: EvaluationSet
    result: PruneResult
    dense_file: ExportedFile
    exported: ExportedFile
    before: Verdict
    verdict: Verdict
    mask_checks: Sequence[MaskCheck]
    ranked_in_file: np.ndarray
    parity: Parity
    benchmarks: Mapping[str, Benchmark | str]
    footprint: Footprint | None
    seconds: Mapping[str, float]
    command: Sequence[str]

    def measured(self, unit: str) -> dict[str, Benchmark]:
        """What was measured in 'ms' or counted in 'instructions'."""
        found = {name: found for name, found in self.benchmarks.items() if isinstance(found, Benchmark)}
        return {name: benchmark for name, benchmark in found.items() if benchmark.unit == unit}


def describe(run: Run) -> Report:
    """The report of the run, in the layout of report/schema.json."""
    accuracy, agreement = _scores(run)
    signals = run.result.report.signals
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(run.command),
        "config": describe_config(run),
        "environment": describe_environment(),
        "model": _model(run),
        "data": _data(run),
        "accuracy": accuracy,
        "agreement": agreement,
        "sparsity": _sparsity(run),
        "signal": _signal(signals["dense"], signals["pruned"], signals["repaired"]),
        "repair": _repair(run),
        "size_bytes": {
            "dense_file": len(run.dense_file.content),
            "file": len(run.exported.content),
            "gzip": run.exported.gzip_size_bytes,
            "gzip_dense_file": run.dense_file.gzip_size_bytes,
        },
        "file": {
            "name": "model.tflite",
            "quantize": run.job.requested_quantize,
            "batch_size": run.job.export_batch_size,
            "tensors": [_plain(tensor) for tensor in run.exported.tensors],
        },
        "masks_in_file": [_mask_in_file(check) for check in run.mask_checks],
        "parity": _plain(run.parity),
        "skipped": [_plain(skipped) for skipped in run.result.report.skipped],
        "notes": _notes(run),
        "target": _target(run),
        "latency": {name: _latency(found) for name, found in run.measured("ms").items()},
        "instructions": {name: _instructions(found) for name, found in run.measured("instructions").items()},
        "seconds": {stage: round(seconds, 3) for stage, seconds in run.seconds.items()},
        "budget": _budget(run),
        "mcu": _mcu(run),
        "gate": _gate(run.job.max_accuracy_drop, accuracy, agreement),
    }


def render(report: Report, run: Run) -> dict[str, Content]:
    """The files of the output folder: name -> text, or a function that writes it."""
    return {
        "model.keras": lambda path: run.result.model.save(path),
        "model.tflite": run.exported.content,
        "plan.json": run.result.plan.to_json(),
        "config.json": json.dumps(report["config"], indent=2) + "\n",
        "masks.npz": _masks_archive(run.result),
        "report.json": to_json(report),
        "report.html": page.render(report),
    }


def describe_config(run: Run) -> dict[str, Any]:
    """The flags as they were resolved, and how images are prepared, which evaluation reads back."""
    config = dataclasses.asdict(run.job) | dataclasses.asdict(run.job.prune)
    del config["prune"]
    config["pattern"] = str(run.job.prune.pattern)
    config["sparsity"] = _requested_sparsity(run)
    if config.pop("max_size_flag") == "flash_budget":
        config["max_size_bytes"] = None  # it is the flash_budget, which is there
    config["quantize"] = run.job.requested_quantize
    config["rewrite"] = run.job.requested_rewrite
    config["benchmark"] = list(run.job.benchmark)
    config["boards"] = list(run.job.boards)
    config["preprocessing"] = _plain(run.loaded.preprocessing)
    return config


def _scores(run: Run) -> tuple[dict | None, dict | None]:
    """(accuracy, None) with labels, (None, agreement with the dense model) without."""
    signals = run.result.report.signals
    ranked = {stage: signal.ranked for stage, signal in signals.items()} | {"file": run.ranked_in_file}
    labels, num_classes = run.evaluation.labels, signals["dense"].num_classes
    if labels is not None:
        return {stage: _plain(score_accuracy(r, labels, num_classes)) for stage, r in ranked.items()}, None
    dense = ranked.pop("dense")
    return None, {stage: _concordance(score_agreement(r, dense)) for stage, r in ranked.items()}


def _concordance(score: Score) -> dict[str, Any]:
    return {name: value for name, value in _plain(score).items() if name != "top5"}


def _gate(limit: float | None, accuracy: dict | None, agreement: dict | None) -> dict[str, Any]:
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


def _requested_sparsity(run: Run) -> float | None:
    return None if run.job.prune.budget else run.job.prune.requested_sparsity


def _budget(run: Run) -> dict[str, Any] | None:
    """The budget with what the file came to; a file that would run dense misses a speed without being timed."""
    foreseen = run.result.report.budget
    if foreseen is None:
        return None
    measured: float | None = None
    if foreseen.flag != SpeedLimit.flag:
        measured = len(run.exported.content)
    elif found := run.measured("ms").get("web"):
        measured = _pair(found)[2].median
    passed = foreseen.admits(measured) if measured is not None else None if run.verdict.eligible else False
    described = {"name": foreseen.flag, "value": foreseen.value, "estimate": foreseen.estimate}
    return described | {"measured": measured, "passed": passed}


def _mcu(run: Run) -> dict[str, Any] | None:
    """Flash and RAM on a microcontroller, and whether they keep to their budgets."""
    if run.footprint is None:
        return None
    described = dataclasses.asdict(run.footprint)
    described |= {name: list(described[name]) for name in ("flash_largest", "ram_largest", "layers")}
    budgets = {"flash": run.job.flash_budget, "ram": run.job.ram_budget}
    taken = {"flash": run.footprint.flash_bytes, "ram": run.footprint.arena_bytes}
    passed = [taken[name] <= budget for name, budget in budgets.items() if budget is not None]
    return described | {
        "flash_budget": budgets["flash"],
        "ram_budget": budgets["ram"],
        "passed": all(passed) if passed else None,
    }


def _sparsity(run: Run) -> dict[str, Any]:
    masks, plan, config = run.result.masks, run.result.plan, run.job.prune
    specs = run.result.report.specs
    num_zeros = count_masked(masks)
    return {
        "requested": _requested_sparsity(run),
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


def _signal(dense: Signal, pruned: Signal, repaired: Signal) -> dict[str, Any]:
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
        "largest_share": float(signal.predicted.max() / len(signal.ranked)),
    }


def _layer_signal(layer: LayerRatio) -> dict[str, Any]:
    return {"ratio": layer.ratio, "dead_channels": layer.num_dead, "num_channels": len(layer.channel_ratios)}


def _mask_in_file(check: MaskCheck) -> dict[str, Any]:
    names = ("path", "tensor", "ok", "num_masked", "num_extra_zeros", "storage")
    return {name: getattr(check, name) for name in names}


def _target(run: Run) -> dict[str, Any]:
    target, verdict, exported = run.job.target, run.verdict, run.exported
    return {
        "name": target.name,
        "description": target.description,
        **_verdict(verdict),
        "expected_speedup": verdict.expected_speedup,
        # A network without a 1x1 convolution has one without operators, which only holds the reason.
        "clusters": [_cluster(cluster) for cluster in verdict.clusters if cluster.operators],
        "before": _verdict(run.before),
        "rewrite": run.job.requested_rewrite,
        "rewrites": [_plain(applied) for applied in exported.rewrites],
        "refused": [_plain(refused) for refused in exported.refused],
        "version_notes": list(verdict.version_notes),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "eligible": verdict.eligible,
        "fits": verdict.fits,
        "statement": verdict.statement,
        "blockers": [_plain(blocker) for blocker in verdict.blockers],
    }


def _cluster(cluster: Cluster) -> dict[str, Any]:
    return {
        "first": cluster.operators[0],
        "last": cluster.operators[-1],
        "num_operators": len(cluster.operators),
        "num_weights": cluster.num_weights,
        "num_zeros": cluster.num_zeros,
        "runs_sparse": cluster.runs_sparse,
    }


def _latency(found: Benchmark) -> dict[str, Any]:
    dense, file, speedup = _pair(found)
    return {
        "runtime": found.runtime,
        "rounds": found.rounds,
        "dense_ms": dense.median,
        "dense_quartiles_ms": [dense.low, dense.high],
        "file_ms": file.median,
        "file_quartiles_ms": [file.low, file.high],
        "speedup": speedup.median,
        "speedup_quartiles": [speedup.low, speedup.high],
        **found.files[0].describe_difference(),
    }


def _instructions(found: Benchmark) -> dict[str, Any]:
    dense, file, speedup = _pair(found)
    return {
        "runtime": found.runtime,
        "dense": dense.median,
        "file": file.median,
        "ratio": speedup.median,
        **found.files[0].describe_difference(),
    }


def _pair(found: Benchmark) -> tuple[Spread, Spread, Spread]:
    """Costs of the dense file and of the file, and their ratio."""
    (file,) = found.files
    assert found.baseline is not None and file.speedup is not None
    return found.baseline.cost, file.cost, file.speedup


def _notes(run: Run) -> list[str]:
    notes = list(run.exported.notes)
    if (foreseen := run.result.report.budget) and foreseen.unfound:
        unfound = ", ".join(foreseen.unfound)
        notes.append(f"Not found in the dense file, and dense in the estimate of the budget therefore: {unfound}.")
    if caution := run.job.target.caution(run.job.prune.pattern):
        notes.append(caution)
    for name, found in run.benchmarks.items():
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
            notes.append(f"No calibration image reached these layers, which {outcome.name} left alone: {unreached}.")
    if (emptied := describe_emptied(run.result.masks)) is not None:
        notes.append(emptied)
    if missing := [check for check in run.mask_checks if not check.ok]:
        notes.append(f"{len(missing)} masks were not found again in the file; the first: {missing[0].closest}.")
    if run.calibration.num_dropped:
        notes.append(f"{run.calibration.num_dropped} calibration images are also evaluation images and were left out.")
    return notes


def describe_emptied(masks: Mapping[str, np.ndarray]) -> str | None:
    """Which kernels have no weight left, in a sentence; None where all have."""
    emptied = [path for path, mask in masks.items() if not mask.any()]
    if not emptied:
        return None
    return f"Every weight of these kernels is zero; another allocation would share better: {', '.join(emptied)}."


def _model(run: Run) -> dict[str, Any]:
    model = run.result.model
    shape = getattr(model, "input_shape", None) or ()
    return {
        "name": run.loaded.name,
        "num_parameters": model.count_params(),
        "num_batch_norms": len(find_batch_norms(model)),
        "input_shape": list(shape),
        "num_classes": run.loaded.num_classes,
        "weights": run.loaded.weights,
    }


def _data(run: Run) -> dict[str, Any]:
    calibration = run.job.data or run.loaded.default_data
    return {
        "calibration": {"description": calibration, "num_images": len(run.calibration)},
        "evaluation": {
            "description": run.job.eval_data or f"{calibration}, held out",
            "num_images": len(run.evaluation),
            "labelled": run.evaluation.labels is not None,
        },
    }


def _masks_archive(result: PruneResult) -> bytes:
    """masks.npz: path -> boolean array of the Keras kernel's own shape, True = kept."""
    buffer = io.BytesIO()
    masks = {spec.path: spec.from_canonical(result.masks[spec.path]) for spec in result.report.specs}
    np.savez_compressed(buffer, **masks)  # type: ignore[arg-type]  # no path is called allow_pickle
    return buffer.getvalue()


def _repair(run: Run) -> dict[str, Any]:
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
        "tried": [_plain(each) for outcome in outcomes if isinstance(outcome, Choice) for each in outcome.tried],
    }


def _plain(noun: Any) -> dict[str, Any]:
    """A dataclass as a dict of JSON types."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(noun).items()}
