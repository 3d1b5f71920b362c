"""Hardware-aware one-shot pruning of Keras models, with the signal restored.

    import reflow_tf

    result = reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.7), calibration)
    file = reflow_tf.export_tflite(result.model)

The names below are the whole public interface; they import TensorFlow when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from reflow_tf.errors import InputError

if TYPE_CHECKING:  # what `__getattr__` finds, for editors and type checkers
    from reflow_tf.config import PruneConfig
    from reflow_tf.export.tflite import export_tflite
    from reflow_tf.jobs.frontier.in_python import Frontier, frontier
    from reflow_tf.models.kept_zeros import keep_zeros
    from reflow_tf.pruning import PruneResult, prune
    from reflow_tf.single_steps import measure_signal, recalibrate

__version__ = "0.1.0"

_HOMES = {
    "PruneConfig": "config",
    "PruneResult": "pruning",
    "prune": "pruning",
    "recalibrate": "single_steps",
    "measure_signal": "single_steps",
    "export_tflite": "export.tflite",
    "keep_zeros": "models.kept_zeros",
    "Frontier": "jobs.frontier.in_python",
    "frontier": "jobs.frontier.in_python",
}

__all__ = [
    "Frontier",
    "InputError",
    "PruneConfig",
    "PruneResult",
    "export_tflite",
    "frontier",
    "keep_zeros",
    "measure_signal",
    "prune",
    "recalibrate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reflow_tf' has no attribute {name!r}")
    importlib.import_module("reflow_tf.keras_backend").require_tensorflow()
    return getattr(importlib.import_module(f"reflow_tf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
