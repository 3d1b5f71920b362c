"""What benchmarks of whole networks begin with: images, and int8 files that are calibrated by them."""

from collections.abc import Iterable

import keras
import numpy as np

from reflow_tf.data.batches import EvaluationSet
from reflow_tf.data.loading import load_sets
from reflow_tf.export.tflite import ExportedFile, export_tflite
from reflow_tf.models.loading import LoadedModel


def open_images(
    loaded: LoadedModel, data: str | None, *, calibration_samples: int, num_noise: int
) -> tuple[Iterable[np.ndarray], EvaluationSet | None]:
    """Calibration batches, and an evaluation set; for a network without images so much noise, and None."""
    data = data or loaded.default_data
    if data is None:
        shape = loaded.model.input_shape[1:]
        return [np.random.default_rng(0).standard_normal((num_noise, *shape)).astype(np.float32)], None
    return load_sets(
        data,
        None,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names_path=None,
        calibration_samples=calibration_samples,
        batch_size=128,
        seed=0,
    )


def export_int8(model: keras.Model, calibration: Iterable[np.ndarray], storage: str = "dense") -> ExportedFile:
    return export_tflite(model, quantize="int8", calibration=calibration, storage=storage)
