"""A metric of the user's own: MODULE:FUNCTION, called with outputs and labels, which gives one number.

The function sees all evaluation inputs at once, as a mean average precision needs them: outputs (n, *output), or a dict
of the names of several outputs; labels as they are in the data, or a dict of `y_NAME`, or None where there are none. It
is called with the dense model's outputs before the long work, so that what is wrong with it is told at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reflow_tf.crew import ALONE, Crew
from reflow_tf.data.batches import EvaluationSet
from reflow_tf.errors import InputError
from reflow_tf.jobs.scoring import Runner, collect_outputs, spread
from reflow_tf.models.packing import split_rows
from reflow_tf.repair.contract import Progress
from reflow_tf.report.scores import MetricScore
from reflow_tf.user_code import blamed, find_function

MOST_BYTES = 1 << 31
"""Of the outputs of one file: of larger ones, evenly spread inputs are scored."""


def choose_inputs(images: EvaluationSet, sizes: Sequence[int], most: int | None = None) -> EvaluationSet:
    """Those whose outputs, of these numbers each, fit into MOST_BYTES, and at most so many."""
    fitting = max(1, MOST_BYTES // (4 * sum(sizes)))
    return images.select(spread(len(images), min(fitting, most or len(images))))


def measure_metric(
    text: str,
    runners: Mapping[str, Runner],
    images: EvaluationSet,
    shapes: Mapping[str, tuple[int, ...]],
    progress: Progress,
    *,
    crew: Crew = ALONE,
) -> dict[str, MetricScore]:
    """What the function makes of each file.

    Args:
        text: 'MODULE:FUNCTION'.
        runners: name -> the file in what runs it.
        images: to score on, few enough for all outputs to be held, see `choose_inputs`.
        shapes: name of each output of the network -> its shape, without the batch.
        progress: wraps the pass.
        crew: who runs them.

    Raises:
        InputError: there is no such function, it fails, or gives no finite number.
    """
    function = find_function(text, "--metric")
    labels = images.targets
    found = collect_outputs(runners, images, progress, crew=crew, description=f"Scoring by {text}")
    return {
        name: MetricScore(_call(text, function, _split_outputs(rows, shapes), labels), None, len(images))
        for name, rows in found.items()
    }


def _call(text: str, function: Callable[..., Any], outputs: object, labels: object) -> float:
    with blamed("--metric must give one number for (outputs, labels)", text):
        value = float(function(outputs, labels))
    if not math.isfinite(value):
        raise InputError(f"--metric must give a finite number. Received: {value} from {text}")
    return value


def _split_outputs(rows: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray | dict[str, np.ndarray]:
    """Of several outputs, each in its own shape under its name."""
    found = split_rows(rows, shapes)
    return found if len(found) > 1 else next(iter(found.values()))
