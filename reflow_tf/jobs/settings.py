"""What a job that goes on where it was interrupted depends on: found again, it is the same job."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from reflow_tf.config import JobConfig
from reflow_tf.data.batches import ImageStream
from reflow_tf.errors import InputError
from reflow_tf.models.loading import LoadedModel
from reflow_tf.models.surgery import read_bits


def describe_settings(job: JobConfig, loaded: LoadedModel, version: str) -> dict[str, Any]:
    """All that a cell depends on beside its method and its sparsity."""
    names = ("model", "data", "eval_data", "class_names", "preprocess", "image_size")
    numbers = ("calibration_samples", "batch_size", "seed")
    return {
        **{name: getattr(job, name) for name in (*names, *numbers)},
        "weights": loaded.weights,
        "data": job.data or loaded.default_data,
        **{name: getattr(job.prune, name) for name in ("allocation", "target", "prunable")},
        "pattern": str(job.prune.requested_pattern),
        "reflow_tf": version,
    }


def digest_all(model: keras.Model, *sets: ImageStream) -> str:
    """SHA-256 of the weights, the images and their labels: a file may change behind its name."""
    found = hashlib.sha256()
    for bits in read_bits(model.weights):
        found.update(bits)
    for images in sets:
        for index in images.indices:
            found.update(images.source.digest(int(index)))
        labels = images.source.labels
        found.update(b"" if labels is None else np.asarray(labels)[images.indices].tobytes())
    return found.hexdigest()


def require_same(settings: Mapping[str, Any], before: Mapping[str, Any], what: str, folder: pathlib.Path) -> None:
    """Checks that an earlier run had these settings; raises InputError, which names one that it had not.

    Args:
        settings: of this run.
        before: of the earlier one.
        what: is in the folder.
        folder: its place.
    """
    for name in {**settings, **before}:
        if settings.get(name) != before.get(name):
            shown = "other weights or images" if name == "sha256" else f"{name}={before.get(name)}"
            raise InputError(
                f"--output_dir holds {what} with other settings, {shown}: name another folder, or --overwrite to "
                f"start anew. Received: {folder}"
            )
