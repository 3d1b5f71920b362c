"""What the file is worth on its target: the verdict, time, instructions, bytes and budgets."""

import dataclasses
from typing import Any

from reflow_tf.export.limits import SpeedLimit
from reflow_tf.export.verification import MaskCheck
from reflow_tf.jobs.benchmark import Benchmark
from reflow_tf.jobs.float16_arithmetic import Float16Check
from reflow_tf.jobs.microcontroller import keeps_to_budgets
from reflow_tf.jobs.record.run import Run, plain
from reflow_tf.runtimes.latency import Spread
from reflow_tf.targets.target import Cluster, Verdict

_NARROW = "A narrower network computes less wherever it runs; this file asks for no sparse kernels."


def describe_sizes(run: Run) -> dict[str, int]:
    return {
        "dense_file": len(run.dense.file.content),
        "file": len(run.exported.content),
        "gzip": run.exported.gzip_size_bytes,
        "gzip_dense_file": run.dense.file.gzip_size_bytes,
    }


def describe_file(run: Run) -> dict[str, Any]:
    return {
        "name": "model.tflite",
        "quantize": run.job.requested_quantize,
        "batch_size": run.job.export_batch_size,
        "tensors": [plain(tensor) for tensor in run.exported.tensors],
        "in_float16": plain(run.in_float16) if isinstance(run.in_float16, Float16Check) else None,
    }


def describe_target(run: Run) -> dict[str, Any]:
    target, verdict, exported = run.job.target, run.measured.verdict, run.exported
    if run.result.report.narrowing and not verdict.eligible:  # nobody asked for what sparse kernels want
        verdict = dataclasses.replace(verdict, statement=_NARROW, blockers=())
    return {
        "name": target.name,
        "description": target.description,
        **_verdict(verdict),
        "speedups": dict(verdict.speedups),
        "possible_speedups": dict(verdict.possible_speedups),
        # A network without a 1x1 convolution has one without operators, which only holds the reason.
        "clusters": [_cluster(cluster) for cluster in verdict.clusters if cluster.operators],
        "before": _verdict(run.dense.verdict),
        "rewrite": run.job.requested_rewrite,
        "rewrites": [plain(applied) for applied in exported.rewrites],
        "refused": [plain(refused) for refused in exported.refused],
        "version_notes": list(verdict.version_notes),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "eligible": verdict.eligible,
        "fits": verdict.fits,
        "statement": verdict.statement,
        "blockers": [plain(blocker) for blocker in verdict.blockers],
    }


def _cluster(cluster: Cluster) -> dict[str, Any]:
    return {
        "first": cluster.operators[0],
        "last": cluster.operators[-1],
        "num_operators": len(cluster.operators),
        "num_weights": cluster.num_weights,
        "num_zeros": cluster.num_zeros,
        "num_ballast": cluster.num_ballast,
        "runs_sparse": cluster.runs_sparse,
    }


def describe_mask(check: MaskCheck) -> dict[str, Any]:
    names = ("path", "tensor", "ok", "num_masked", "num_extra_zeros", "storage")
    return {name: getattr(check, name) for name in names}


def describe_latency(run: Run) -> dict[str, Any]:
    """Runtime -> milliseconds, dense and pruned."""
    return {name: _latency(found) for name, found in run.measured.benchmarks_in("ms").items()}


def describe_instructions(run: Run) -> dict[str, Any]:
    """Runtime -> instructions, dense and pruned."""
    return {name: _instructions(found) for name, found in run.measured.benchmarks_in("instructions").items()}


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


def describe_budget(run: Run) -> dict[str, Any] | None:
    """The budget with what the file came to; a file that would run dense misses a speed without being timed."""
    foreseen = run.result.report.budget
    if foreseen is None:
        return _describe_widths(run)
    measured: float | None = None
    if foreseen.flag != SpeedLimit.flag:
        measured = len(run.exported.content)
    elif found := run.measured.benchmarks_in("ms").get("web"):
        measured = _pair(found)[2].median
    passed = foreseen.admits(measured) if measured is not None else None if run.measured.verdict.eligible else False
    described = {"name": foreseen.flag, "value": foreseen.value, "estimate": foreseen.estimate}
    return described | {"measured": measured, "passed": passed}


def _describe_widths(run: Run) -> dict[str, Any] | None:
    """Of a network that was narrowed until its file was small enough: nothing was estimated, every try was exported."""
    flag, most, size = run.job.prune.max_size_flag, run.job.prune.max_size_bytes, len(run.exported.content)
    if most is None:
        return None
    return {"name": flag, "value": most, "estimate": None, "measured": size, "passed": size <= most}


def describe_mcu(run: Run) -> dict[str, Any] | None:
    """Flash and RAM on a microcontroller, and whether they keep to their budgets."""
    if run.measured.footprint is None:
        return None
    described = dataclasses.asdict(run.measured.footprint)
    described |= {name: list(described[name]) for name in ("flash_largest", "ram_largest", "layers")}
    budgets = {"flash_budget": run.job.flash_budget, "ram_budget": run.job.ram_budget}
    has_any = any(budget is not None for budget in budgets.values())
    return described | budgets | {"passed": keeps_to_budgets(run.job, run.measured.footprint) if has_any else None}
