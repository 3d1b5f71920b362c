"""Impact-based repairs: the kept weights make up for the masked ones, by a quadratic of what masking costs.

Each starts from the dense kernels, takes its statistics on the dense model, and minimizes its quadratic kernel by
kernel (`sparsity.updates`): what an earlier repair made of the kernels is lost, what it made of anything else stays.
No moment of a batch norm moves; `reflow` after it is what re-estimates those.

The statistics do not depend on the masks. Whoever repairs one model many times gathers them once and gives them along;
what is not given, a repair gathers.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.statistics import Gathered, gather
from reflow_tf.models.surgery import write_values
from reflow_tf.repair.contract import MovedMasks, Progress, PrunedModel, RepairOutcome
from reflow_tf.sparsity import thresholding, updates
from reflow_tf.sparsity.plan import PruningPlan
from reflow_tf.sparsity.updates import Statistics, Update

READS: Mapping[str, str] = {"woodfisher": "fisher_blocks", "obs": "input_gram", "chita": "fisher_blocks"}
"""Name of a repair -> name of the statistic that it reads."""

Known = Mapping[str, Gathered]
"""Name of a statistic -> what `models.statistics.gather` returned for it, on the dense model and the same batches."""

UpdateOne = Callable[[str, np.ndarray, np.ndarray, Statistics], np.ndarray]
"""(path, dense kernel, mask, statistics) -> kernel, canonical."""


def woodfisher(
    pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress, *, statistics: Known | None = None
) -> RepairOutcome:
    """The joint OBS update of each block of the Fisher; see `updates.woodfisher`.

    Raises:
        InputError: the batches do not fit, or give statistics that cannot be used.
    """
    return _refit("woodfisher", _ignore_path(updates.woodfisher), pruned, batches, progress, statistics)


def obs(
    pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress, *, statistics: Known | None = None
) -> RepairOutcome:
    """Least squares of each layer's own output; see `updates.obs`.

    Raises:
        InputError: the batches do not fit, or a masked kernel has no Gram, such as a recurrent one.
    """
    return _refit("obs", _ignore_path(updates.obs), pruned, batches, progress, statistics)


def chita(
    pruned: PrunedModel,
    batches: Iterable[np.ndarray],
    progress: Progress,
    *,
    plan: PruningPlan,
    statistics: Known | None = None,
) -> MovedMasks:
    """CHITA: the best mask of the plan's pattern and sparsity, and the best weights on it; see `thresholding.chita`.

    The only repair that turns masked weights back on, and others off in their place: any repair after it has to be
    given the masks that this one returns.

    Args:
        pruned: as for every repair; the search starts from its masks.
        batches: as for every repair.
        progress: as for every repair.
        plan: which pattern and sparsity each masked kernel has.
        statistics: those of READS that are known.

    Raises:
        InputError: the batches do not fit, or give statistics that cannot be used.
    """
    masks = dict(pruned.masks)

    def update(path: str, kernel: np.ndarray, mask: np.ndarray, found: Statistics) -> np.ndarray:
        layer = plan.layers[path]
        select = functools.partial(layer.pattern.select, sparsity=layer.sparsity)
        masks[path] = thresholding.chita(kernel, mask, found, select)
        return updates.woodfisher(kernel, masks[path], found)

    outcome = _refit("chita", update, pruned, batches, progress, statistics)
    swapped = sum(int(np.count_nonzero(mask & ~pruned.masks[path])) for path, mask in masks.items())
    kept = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    statement = f"{outcome.statement} Of {kept} kept weights, {swapped} took the places of others."
    return MovedMasks(outcome.name, outcome.repaired, outcome.unreached, outcome.moved, statement, masks)


def _ignore_path(update: Update) -> UpdateOne:
    return lambda path, kernel, mask, statistics: update(kernel, mask, statistics)


def _refit(
    name: str,
    update: UpdateOne,
    pruned: PrunedModel,
    batches: Iterable[np.ndarray],
    progress: Progress,
    statistics: Known | None,
) -> RepairOutcome:
    """Writes what `update` makes of each masked kernel of the dense model."""
    kernels = find_kernels(pruned.model)
    specs = [spec for spec in kernels.specs if spec.path in pruned.masks]
    with pruned.as_dense() as model:
        dense = kernels.read()
        if (found := (statistics or {}).get(READS[name])) is None:
            watched = progress(batches, f"Gathering statistics for {name}")
            found = gather(model, specs, {READS[name]}, watched, task=pruned.task)
    reached = [spec for spec in specs if found[spec.path]]
    moves = {}
    with pruned.restored_on_error():
        for spec in reached:
            mask = pruned.masks[spec.path]
            kernel = update(spec.path, dense[spec.path], mask, found[spec.path])
            if not np.isfinite(kernel).all():
                raise InputError(f"Statistics must let weights be solved for. Received: {spec.path}, not finite")
            write_values(kernels.variables[spec.path], spec.from_canonical(kernel))
            moves[spec.path] = _relative_move(kernel, np.where(mask, dense[spec.path], 0))
    unreached = tuple(spec.path for spec in specs if spec not in reached)
    return RepairOutcome(name, tuple(moves), unreached, ("kernel",), _describe(name, moves))


def _relative_move(kernel: np.ndarray, masked: np.ndarray) -> float:
    norm = float(np.linalg.norm(masked))
    return float(np.linalg.norm(kernel - masked)) / norm if norm else 0.0


def _describe(name: str, moves: Mapping[str, float]) -> str:
    if not moves:
        return f"{name} had nothing to update: no calibration input ran through a masked kernel."
    most = max(moves, key=moves.__getitem__)
    plural = "" if len(moves) == 1 else "s"
    return (
        f"{name} moved the weights of {len(moves)} kernel{plural}, in the median by "
        f"{np.median(list(moves.values())):.1%} of the masked kernel's norm, at most by {moves[most]:.1%} ({most})."
    )
