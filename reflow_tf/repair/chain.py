"""Repairs by name, and several of them one after another."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reflow_tf.crew import ALONE, Crew
from reflow_tf.models.consumers import find_norm_cover
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.repair import batchnorm, impact
from reflow_tf.repair.batchnorm import References
from reflow_tf.repair.contract import MovedMasks, Progress, PrunedModel, RepairOutcome
from reflow_tf.repair.distillation import distill
from reflow_tf.repair.holdout import part_of
from reflow_tf.repair.least_squares import Worths, least_squares
from reflow_tf.repair.moment_matching import match_moments
from reflow_tf.sparsity.plan import PruningPlan


def reflow(
    pruned: PrunedModel,
    batches: Iterable[np.ndarray],
    progress: Progress,
    *,
    crew: Crew = ALONE,
    references: References | None = None,
) -> RepairOutcome:
    """`batchnorm.recalibrate` beside the dense network, as a step of a chain; it says what it cannot reach.

    Args:
        pruned: as for every repair.
        batches: as for every repair.
        progress: as for every repair.
        crew: who leads the images through both networks.
        references: of the dense network on these batches, for whoever repairs one model many times; None: observed.

    Raises:
        InputError: as `batchnorm.recalibrate` does.
    """
    if references is None:
        with pruned.as_dense() as model:
            references = batchnorm.observe_dense(model, batches, progress=progress, crew=crew)
    outcome = batchnorm.recalibrate(pruned.model, batches, references=references, progress=progress, crew=crew)
    bare = find_norm_cover(pruned.model, pruned.masks).bare
    if not bare:
        return outcome
    if not find_batch_norms(pruned.model):
        beyond = " What the pruned kernels lost it cannot bring back; the repair 'moments' may."
        return dataclasses.replace(outcome, statement=outcome.statement + beyond)
    beyond = (
        f" Behind {len(bare)} of {len(pruned.masks)} pruned kernels stands no batch norm ({bare[0]}"
        f"{', ...' if len(bare) > 1 else ''}): what these lost it cannot restore, and the repair 'moments' may."
    )
    return dataclasses.replace(outcome, statement=outcome.statement + beyond)


REPAIRS: Mapping[str, Callable[..., RepairOutcome]] = {
    "reflow": reflow,
    "woodfisher": impact.woodfisher,
    "obs": impact.obs,
    "chita": impact.chita,
    "least_squares": least_squares,
    "moments": match_moments,
    "distill": distill,
}
"""Name -> `Repair`; those of TAKES take keywords besides."""

TAKES: Mapping[str, Sequence[str]] = {
    "reflow": ("crew", "references"),
    "woodfisher": ("statistics",),
    "obs": ("statistics",),
    "chita": ("plan", "statistics"),
    "least_squares": ("plan", "memory_budget", "crew", "worths"),
    "distill": ("memory_budget",),
}
"""Name of a repair -> the keywords of `run_chain` that are passed on to it."""


def run_chain(
    names: Sequence[str],
    pruned: PrunedModel,
    batches: Iterable[np.ndarray],
    progress: Progress,
    *,
    plan: PruningPlan,
    statistics: impact.Known | None = None,
    references: References | None = None,
    memory_budget: int | None = None,
    crew: Crew = ALONE,
    worths: Worths | None = None,
) -> tuple[PrunedModel, tuple[RepairOutcome, ...]]:
    """Runs repairs in this order, each on what the one before it left.

    Those before a distillation do not see the inputs that it holds out, which would look better than they are.

    Args:
        names: keys of REPAIRS; none: nothing is done.
        pruned: repaired in place; on any error, and on Ctrl-C, the model is what it was before the first repair.
        batches: float arrays (n, ...), re-iterable.
        progress: wraps each pass.
        plan: which pattern and sparsity each masked kernel has.
        statistics: what is known of the dense model on these batches; repairs gather what they miss.
        references: what its batch norms take on them, as for `reflow`.
        memory_budget: bytes, as for `least_squares` and `distill`.
        crew: who leads images through the network, in `reflow` and `least_squares`.
        worths: as for `least_squares`.

    Returns:
        The same model with the masks that hold now (a repair may choose them anew), and what each repair did.

    Raises:
        InputError: as the repairs do.
    """
    keywords: dict[str, Any] = {"plan": plan, "statistics": statistics, "memory_budget": memory_budget, "crew": crew}
    for keyword, value in (("references", references), ("worths", worths)):
        if value is not None:
            keywords[keyword] = value
    outcomes = []
    with pruned.restored_on_error():
        for position, name in enumerate(names):
            taken = {keyword: keywords[keyword] for keyword in TAKES.get(name, ()) if keyword in keywords}
            seen = batches
            if "distill" in names[position + 1 :]:
                seen = part_of(batches, held_out=False)
                taken.pop("worths", None)  # which are of all inputs
            outcome = REPAIRS[name](pruned, seen, progress, **taken)
            if isinstance(outcome, MovedMasks):
                pruned = dataclasses.replace(pruned, masks=outcome.masks)
            _check_zeros(name, pruned)
            outcomes.append(outcome)
    return pruned, tuple(outcomes)


def _check_zeros(name: str, pruned: PrunedModel) -> None:
    kernels = find_kernels(pruned.model).read()
    for path, mask in pruned.masks.items():
        if kernels[path][~mask].any():
            raise AssertionError(f"the repair {name} moved a masked weight of {path}")
