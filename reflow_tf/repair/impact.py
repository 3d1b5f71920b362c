"""Impact-based repairs: the kept weights make up for the masked ones, by a quadratic of what masking costs.

Each starts from the dense kernels, takes its statistics on the dense model, and minimizes its quadratic kernel by
kernel (`sparsity.updates`): what an earlier repair made of the kernels is lost, what it made of anything else stays.
No moment of a batch norm moves; `reflow` after it is what re-estimates those.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.statistics import gather
from reflow_tf.repair.contract import MovedMasks, Progress, PrunedModel, RepairOutcome
from reflow_tf.sparsity import thresholding, updates
from reflow_tf.sparsity.plan import PruningPlan
from reflow_tf.sparsity.updates import Statistics, Update

UpdateOne = Callable[[str, np.ndarray, np.ndarray, Statistics], np.ndarray]
"""(path, dense kernel, mask, statistics) -> kernel, canonical."""


def woodfisher(pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress) -> RepairOutcome:
    """The joint OBS update of each block of the Fisher; see `updates.woodfisher`.

    Raises:
        InputError: the batches do not fit, or give statistics that cannot be used.
    """
    return _refit("woodfisher", "fisher_blocks", _ignore_path(updates.woodfisher), pruned, batches, progress)


def obs(pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress) -> RepairOutcome:
    """Least squares of each layer's own output; see `updates.obs`.

    Raises:
        InputError: the batches do not fit, or a masked kernel has no Gram, such as a recurrent one.
    """
    return _refit("obs", "input_gram", _ignore_path(updates.obs), pruned, batches, progress)


def chita(pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress, *, plan: PruningPlan) -> MovedMasks:
    """CHITA: the best mask of the plan's pattern and sparsity, and the best weights on it; see `thresholding.chita`.

    The only repair that turns masked weights back on, and others off in their place: any repair after it has to be
    given the masks that this one returns.

    Args:
        pruned: as for every repair; the search starts from its masks.
        batches: as for every repair.
        progress: as for every repair.
        plan: which pattern and sparsity each masked kernel has.

    Raises:
        InputError: the batches do not fit, or give statistics that cannot be used.
    """
    masks = dict(pruned.masks)

    def update(path: str, kernel: np.ndarray, mask: np.ndarray, statistics: Statistics) -> np.ndarray:
        layer = plan.layers[path]
        select = functools.partial(layer.pattern.select, sparsity=layer.sparsity)
        masks[path] = thresholding.chita(kernel, mask, statistics, select)
        return updates.woodfisher(kernel, masks[path], statistics)

    outcome = _refit("chita", "fisher_blocks", update, pruned, batches, progress)
    swapped = sum(int(np.count_nonzero(mask & ~pruned.masks[path])) for path, mask in masks.items())
    kept = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    statement = f"{outcome.statement} Of {kept} kept weights, {swapped} took the places of others."
    return MovedMasks(outcome.name, outcome.repaired, outcome.unreached, outcome.moved, statement, masks)


def _ignore_path(update: Update) -> UpdateOne:
    return lambda path, kernel, mask, statistics: update(kernel, mask, statistics)


def _refit(
    name: str, statistic: str, update: UpdateOne, pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress
) -> RepairOutcome:
    """Gathers the statistic on the dense model and writes what `update` makes of each masked kernel."""
    kernels = find_kernels(pruned.model)
    specs = [spec for spec in kernels.specs if spec.path in pruned.masks]
    with pruned.as_dense() as model:
        dense = kernels.read()
        found = gather(model, specs, {statistic}, progress(batches, f"Gathering statistics for {name}"))
    reached = [spec for spec in specs if found[spec.path]]
    moves = {}
    with pruned.restored_on_error():
        for spec in reached:
            mask = pruned.masks[spec.path]
            kernel = update(spec.path, dense[spec.path], mask, found.pop(spec.path))
            if not np.isfinite(kernel).all():
                raise InputError(f"Statistics must let weights be solved for. Received: {spec.path}, not finite")
            kernels.variables[spec.path].assign(spec.from_canonical(kernel))
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
