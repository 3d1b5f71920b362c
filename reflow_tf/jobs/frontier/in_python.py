"""The search for the file to ship, of a model and arrays in memory."""

import dataclasses
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import keras
import numpy as np

from reflow_tf.choices import AUTO
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.frontier.devices import find_device
from reflow_tf.jobs.frontier.request import DEFAULT_REPAIR, Search, require_budgets
from reflow_tf.jobs.frontier.search import BEST, NAMES, run
from reflow_tf.jobs.resuming import open_folder
from reflow_tf.models.inference import inputs_of
from reflow_tf.models.packing import as_inputs, split_rows
from reflow_tf.models.surgery import read_bits
from reflow_tf.report.folder import PREFIX
from reflow_tf.report.frontier import Document, headline

MODEL, CALIBRATION, EVALUATION = "model.keras", "calibration.npz", "evaluation.npz"
_AT_A_TIME = 64


@dataclasses.dataclass(frozen=True)
class Frontier:
    """What a search found.

    Attributes:
        headline: the sentence that says what to ship.
        document: everything, as frontier.json has it; `reflow_tf/report/frontier.schema.json` describes it.
        best: the folder of the recommended file, model.tflite; None where nothing may be recommended.
    """

    headline: str
    document: Document
    best: pathlib.Path | None


def frontier(
    model: keras.Model,
    device: str,
    calibration: Any,
    evaluation: Any,
    *,
    output_dir: str | os.PathLike[str],
    max_accuracy_drop: float = 1.0,
    repair: str = DEFAULT_REPAIR,
    minutes: float | None = None,
    flash_budget: int | None = None,
    ram_budget: int | None = None,
    batch_size: int = 64,
    overwrite: bool = False,
    task: str = AUTO,
) -> Frontier:
    """Makes every honest candidate for one device, measures each there, and says which to ship.

    The command line's search, `python -m reflow_tf.tools.frontier`; the same call goes on where it was interrupted.
    The model and the arrays are written into `<output_dir>-given`, which the commands of the candidates name.

    Args:
        model: a Keras model, of any inputs and outputs.
        device: where the file is to run, as `--device` spells it: 'phone', 'cortex_m4', ….
        calibration: inputs as the network takes them, at least 16: an array (n, *shape) or batches of it, of several
            inputs a dict of arrays by their names; one in four judges, the others are fitted to.
        evaluation: inputs to score on, or a pair of them and their classes, whole numbers (n,). Without classes,
            agreement with the dense network replaces accuracy.
        output_dir: where the results go: frontier.json, frontier.html, a folder of each candidate, and `best`.
        max_accuracy_drop: percentage points that the recommended file may be expected to lose.
        repair: what restores pruned candidates, as `--repair` spells it.
        minutes: after so many, nothing more is begun; None: all is tried.
        flash_budget: for microcontrollers: bytes that the file may take.
        ram_budget: for microcontrollers: bytes that it may need.
        batch_size: of everything that runs the model.
        overwrite: start anew in a folder that holds an earlier search.
        task: what its outputs are taken for, as `--task` spells it.

    Raises:
        InputError: something given cannot be used; the device's runtime is not set up; the folder holds another search.
    """
    found = find_device(device)
    require_budgets([found], flash_budget, ram_budget)
    if not isinstance(model, keras.Model):
        raise InputError(f"The model must be a keras.Model. Received: {type(model).__name__}")
    if not isinstance(output_dir, str | os.PathLike):
        raise InputError(f"output_dir must be a path. Received: {output_dir!r}")
    out = pathlib.Path(os.path.abspath(os.path.expanduser(output_dir)))
    if not out.name:
        raise InputError(f"output_dir must be a folder inside another. Received: {output_dir}")
    fitted, scored = read_inputs(model, calibration), read_scored(model, evaluation)
    sets = {CALIBRATION: fitted, EVALUATION: scored}
    given = out.with_name(f"{out.name}-given") / digest(model, sets)
    job = JobConfig(
        str(given / MODEL),
        str(out),
        PruneConfig(target=found.dense_target, sparsity=0.0, repair="none", task=task),
        data=str(given / CALIBRATION),
        eval_data=str(given / EVALUATION),
        calibration_samples=count_samples(fitted),
        batch_size=batch_size,
        flash_budget=flash_budget,
        ram_budget=ram_budget,
        overwrite=overwrite,
    )
    search = Search(job, (found,), max_accuracy_drop, repair, minutes, metadata.version("reflow_tf"))
    open_folder(job, NAMES)
    if not given.is_dir():
        write(given, model, sets)
    outcome = run(search, ["reflow_tf.frontier"])
    if outcome.failures:
        raise outcome.failures[0]
    document = outcome.documents[device]
    answer = document["answer"]
    best = out / BEST if answer and answer["recommended"] else None
    return Frontier(headline(document), document, best)


def read_inputs(model: keras.Model, data: Any) -> dict[str, np.ndarray]:
    """All inputs of what a caller has, as 'x', (n, *shape), or of a model with several inputs each as 'x_<name>'.

    Raises:
        InputError: as `as_inputs`; or batches are of different shapes.
    """
    batches = [np.asarray(batch) for batch in as_inputs(model, data, batch_size=_AT_A_TIME)]
    shapes = sorted({batch.shape[1:] for batch in batches})
    if len(shapes) > 1:
        raise InputError(f"data must be batches of one shape. Received: {', '.join(map(str, shapes))}")
    joined, tensors = np.concatenate(batches), inputs_of(model)
    if len(tensors) < 2:
        return {"x": joined}
    parts = split_rows(joined, {tensor.name: tensor.shape[1:] for tensor in tensors})
    return {f"x_{tensor.name}": parts[tensor.name].astype(tensor.dtype) for tensor in tensors}


def read_scored(model: keras.Model, data: Any) -> dict[str, np.ndarray]:
    """Inputs as `read_inputs` has them and, of a pair, classes as 'y'.

    Raises:
        InputError: the inputs are no numbers, or there is not one whole number for each.
    """
    if not isinstance(data, tuple):
        return read_inputs(model, data)
    wanted = "evaluation must be inputs, or a pair of them and one whole number for each"
    if len(data) != 2:
        raise InputError(f"{wanted}. Received: a tuple of {len(data)}")
    inputs = read_inputs(model, data[0])
    try:
        classes = np.asarray(data[1])
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{wanted}. Received: {say_why(error)}") from error
    number = count_samples(inputs)
    if classes.dtype.kind not in "iu" or classes.shape != (number,):
        raise InputError(f"{wanted}. Received: {number} inputs, and {classes.dtype} of shape {classes.shape}")
    return inputs | {"y": classes}


def count_samples(inputs: Mapping[str, np.ndarray]) -> int:
    """How many there are of `read_inputs`."""
    return len(next(iter(inputs.values())))


def digest(model: keras.Model, sets: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of the folder for them: other ones never lie where the commands of an earlier search look.

    Raises:
        InputError: the model cannot be written.
    """
    try:
        found = hashlib.sha256(model.to_json().encode())
    except Exception as error:  # whatever a layer's get_config raises
        raise InputError(f"The model must be one that Keras can write. Received: {say_why(error)}") from error
    for bits in read_bits(model.weights):
        found.update(bits)
    for arrays in sets.values():
        for array in arrays.values():
            found.update(str((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:12]


def write(folder: pathlib.Path, model: keras.Model, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes what the commands of the candidates name: all of it, or nothing; raises InputError where it cannot be."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder.parent) as name:
            part = pathlib.Path(name) / folder.name
            part.mkdir()
            model.save(part / MODEL)
            for file, arrays in sets.items():
                np.savez(part / file, **arrays)
            part.rename(folder)
    except Exception as error:  # Keras has its own for what it cannot write, and the file system its own
        raise InputError(f"The model and the inputs must be written. Received: {folder}, {say_why(error)}") from error
