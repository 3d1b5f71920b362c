"""What happened, put into the words of the report's schema, and the files that it is written to."""

import dataclasses
import datetime
import io
import json
from typing import Any

import numpy as np

from reflow_tf.choices import EXISTING
from reflow_tf.data.as_stored import Preparation
from reflow_tf.jobs.record.device import (
    describe_budget,
    describe_file,
    describe_instructions,
    describe_latency,
    describe_mask,
    describe_mcu,
    describe_sizes,
    describe_target,
)
from reflow_tf.jobs.record.notes import write_notes
from reflow_tf.jobs.record.outcome import (
    describe_gate,
    describe_metric,
    describe_narrowing,
    describe_repair,
    describe_scores,
    describe_signal,
    describe_sparsity,
    requested_sparsity,
)
from reflow_tf.jobs.record.run import Run, plain
from reflow_tf.models.inference import inputs_of
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.pruning import PruneResult
from reflow_tf.report import page
from reflow_tf.report.document import SCHEMA_VERSION, Report, to_json
from reflow_tf.report.environment import describe_environment
from reflow_tf.report.folder import Content


def describe(run: Run) -> Report:
    """The report of the run, in the layout of report/schema.json."""
    scores = describe_scores(run)
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(run.command),
        "config": describe_config(run),
        "environment": describe_environment(),
        "model": describe_model(run),
        "data": describe_data(run),
        **scores,
        "metric": describe_metric(run),
        "sparsity": describe_sparsity(run),
        "narrowing": describe_narrowing(run),
        "signal": describe_signal(run),
        "repair": describe_repair(run),
        "size_bytes": describe_sizes(run),
        "file": describe_file(run),
        "masks_in_file": [describe_mask(check) for check in run.measured.mask_checks],
        "parity": plain(run.measured.parity),
        "skipped": [plain(skipped) for skipped in run.result.report.skipped],
        "notes": write_notes(run),
        "target": describe_target(run),
        "latency": describe_latency(run),
        "instructions": describe_instructions(run),
        "seconds": {stage: round(seconds, 3) for stage, seconds in run.seconds.items()},
        "budget": describe_budget(run),
        "mcu": describe_mcu(run),
        "gate": describe_gate(run.job.max_accuracy_drop, scores[run.given.measure]["file"]),
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
    """The flags as they were resolved; how images are prepared and what outputs are called, which is read back."""
    config = dataclasses.asdict(run.job) | dataclasses.asdict(run.job.prune)
    del config["prune"]
    config["pattern"] = str(run.job.prune.requested_pattern)
    config["sparsity"] = EXISTING if run.job.prune.keeps_existing else requested_sparsity(run)
    config["criterion"] = run.job.prune.requested_criterion
    config["channel_multiple"] = run.job.prune.requested_channel_multiple
    config["repair"] = run.job.prune.requested_repair
    config["task"] = str(run.given.task)
    if config.pop("max_size_flag") == "flash_budget":
        config["max_size_bytes"] = None  # it is the flash_budget, which is there
    config["quantize"] = run.job.requested_quantize
    config["io"] = run.job.requested_io if run.job.requested_quantize == "int8" else None
    config["rewrite"] = run.job.requested_rewrite
    config["benchmark"] = list(run.job.benchmark)
    config["threads_per_worker"] = run.num_threads
    config["boards"] = list(run.job.boards)
    config["outputs"] = list(run.given.loaded.output_names)
    config["preprocessing"] = describe_preparation(run.given.loaded.preprocessing)
    return config


def describe_preparation(preparation: Preparation) -> dict[str, Any]:
    """How inputs are prepared, as `jobs.finished` reads it back."""
    described = plain(preparation)
    parts = described.pop("parts", [])
    if parts:  # of a network with several inputs
        described["parts"] = [part._asdict() | {"shape": list(part.shape)} for part in parts]
    return described


def describe_model(run: Run) -> dict[str, Any]:
    model = run.result.model
    shape = getattr(model, "input_shape", None) or ()
    if len(inputs_of(model)) > 1:  # they are in config.preprocessing
        shape = (None, *run.given.loaded.sample_shape)
    return {
        "name": run.given.loaded.name,
        "num_parameters": model.count_params(),
        "num_batch_norms": len(find_batch_norms(model)),
        "input_shape": list(shape),
        "num_classes": run.given.loaded.num_classes,
        "weights": run.given.loaded.weights,
    }


def describe_data(run: Run) -> dict[str, Any]:
    calibration = run.job.data or run.given.loaded.default_data
    return {
        "unit": run.given.evaluation.unit,
        "calibration": {"description": calibration, "num_images": len(run.given.calibration)},
        "evaluation": {
            "description": run.job.eval_data or f"{calibration}, held out",
            "num_images": len(run.given.evaluation),
            "labelled": run.given.evaluation.labels is not None,
        },
    }


def _masks_archive(result: PruneResult) -> bytes:
    """masks.npz: path -> boolean array of the Keras kernel's own shape, True = kept.

    Where channels were removed, those of the kernels as they were before are under 'channels/' and the path.
    """
    buffer = io.BytesIO()
    masks = {spec.path: spec.from_canonical(result.masks[spec.path]) for spec in result.report.specs}
    masks |= {f"channels/{path}": mask for path, mask in result.removed.items()}
    np.savez_compressed(buffer, **masks)  # type: ignore[arg-type]  # no path is called allow_pickle
    return buffer.getvalue()
