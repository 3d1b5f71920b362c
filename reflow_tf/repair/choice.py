"""The repair 'auto': of the gradient-free chains, the one that does best on calibration images that none was fitted to.

A refit of the weights can lose to recalibration alone, so it has to earn its place on each model anew. No labels: what
counts is how far the outputs are from the dense network's. One calibration image in `HELD_OUT_EVERY` is held out; the
winner stays as it was fitted, on the others, because that is what was judged.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np

from reflow_tf.crew import ALONE, Crew
from reflow_tf.data.portions import spooled
from reflow_tf.errors import InputError
from reflow_tf.models.outputs import are_probabilities
from reflow_tf.models.predictions import run_predictions
from reflow_tf.repair.batchnorm import observe_dense
from reflow_tf.repair.chain import run_chain
from reflow_tf.repair.contract import Progress, PrunedModel, RepairOutcome, resolve_memory_budget
from reflow_tf.repair.divergence import Divergence
from reflow_tf.repair.holdout import HELD_OUT_EVERY, part_of
from reflow_tf.sparsity.plan import PruningPlan
from reflow_tf.task import Task

# The simplest first: it wins ties. A chain that begins with the one before it goes on from there.
CANDIDATES = ("reflow", "least_squares", "least_squares,reflow", "obs,reflow")
_JUDGED_BY = 256  # outputs that tell probabilities from logits


@dataclasses.dataclass(frozen=True)
class Tried:
    """How one chain did.

    Attributes:
        chain: as --repair spells it.
        divergence: from the dense outputs on the held-out images, see `repair.divergence`; None if there is none.
        reason: why there is none.
    """

    chain: str
    divergence: float | None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Choice(RepairOutcome):
    """Which chain was chosen, and why; what its repairs did, they say themselves.

    Attributes:
        tried: every candidate, in the order of trying.
    """

    tried: tuple[Tried, ...]


@dataclasses.dataclass(frozen=True)
class _State:
    """Where the repairs `names` have led."""

    pruned: PrunedModel
    weights: tuple[np.ndarray, ...]
    names: tuple[str, ...] = ()
    outcomes: tuple[RepairOutcome, ...] = ()


def choose(
    pruned: PrunedModel,
    batches: Iterable[np.ndarray],
    progress: Progress,
    *,
    plan: PruningPlan,
    memory_budget: int | None = None,
    crew: Crew = ALONE,
) -> tuple[PrunedModel, tuple[RepairOutcome, ...]]:
    """Repairs the model in place by each of CANDIDATES, always from the same pruned weights, and keeps the best.

    Args:
        pruned: on any error, and on Ctrl-C, the model is what it was before.
        batches: float arrays (n, ...), re-iterable, of at least HELD_OUT_EVERY images in all.
        progress: wraps each pass.
        plan: as for `run_chain`.
        memory_budget: as for `run_chain`.
        crew: as for `run_chain`.

    Returns:
        The same model with the masks that hold now; a `Choice`, then the outcomes of the chain that won. A chain that
        cannot be used on this model (its repairs raise InputError, its outputs are not finite) is told of there.

    Raises:
        InputError: too few images, batches that do not fit, or no chain that can be used.
    """
    fitting, judging = part_of(batches, held_out=False), part_of(batches, held_out=True)
    budget = resolve_memory_budget(memory_budget, crew.memory) / 2
    with contextlib.ExitStack() as stack:
        with pruned.as_dense() as model:
            watched = progress(judging, "Evaluating the dense model on held-out calibration inputs")
            dense = stack.enter_context(spooled(_predict(model, watched, pruned.task), len(judging), budget))
            references = observe_dense(model, fitting, progress=progress, crew=crew)
        run = functools.partial(run_chain, plan=plan, references=references, memory_budget=memory_budget, crew=crew)
        return _choose(pruned, run, fitting, functools.partial(_diverge, pruned, judging, dense), len(dense), progress)


def _choose(
    pruned: PrunedModel,
    run: Callable[..., tuple[PrunedModel, tuple[RepairOutcome, ...]]],
    fitting: Iterable[np.ndarray],
    diverge: Callable[[], float],
    num_judged: int,
    progress: Progress,
) -> tuple[PrunedModel, tuple[RepairOutcome, ...]]:
    """Runs each chain over `fitting`, and keeps the one after which `diverge` is least."""
    start = now = _State(pruned, pruned.read_weights())
    best, least = start, math.inf
    tried: list[Tried] = []
    with pruned.restored_on_error():
        for chain in CANDIDATES:
            names = tuple(chain.split(","))
            if names[: len(now.names)] != now.names:
                now = start
                pruned.write_weights(start.weights)
            try:
                rest = names[len(now.names) :]
                repaired, outcomes = run(rest, now.pruned, fitting, progress)
            except InputError as error:
                tried.append(Tried(chain, None, str(error)))
                continue
            now = _State(repaired, pruned.read_weights(), names, now.outcomes + outcomes)
            divergence = diverge()
            if not math.isfinite(divergence):
                tried.append(Tried(chain, None, "outputs that are not finite"))
                continue
            tried.append(Tried(chain, divergence))
            if divergence < least:
                best, least = now, divergence
        choice = _describe(tried, num_judged)
        pruned.write_weights(best.weights)
    return best.pruned, (choice, *best.outcomes)


def _predict(model: keras.Model, batches: Iterable[np.ndarray], task: Task) -> Iterator[np.ndarray]:
    outputs = None
    for outputs in run_predictions(model, batches, task):
        yield outputs
    if outputs is None:
        raise InputError(
            f"--repair=auto holds out every {HELD_OUT_EVERY}th calibration image, so it needs at least as many. "
            "Received: fewer"
        )


def _diverge(pruned: PrunedModel, judging: Iterable[np.ndarray], dense: np.ndarray) -> float:
    """How far the model is from the dense one on inputs that nothing is fitted to, `dense` being what that gives."""
    found, start = Divergence(are_probabilities(dense[:_JUDGED_BY]), pruned.task), 0
    for outputs in _predict(pruned.model, judging, pruned.task):
        found.add(outputs, dense[start : start + len(outputs)])
        start += len(outputs)
    return found.value


def _describe(tried: list[Tried], num_images: int) -> Choice:
    usable = [(each.divergence, each.chain) for each in tried if each.divergence is not None]
    failures = [f"{each.chain} cannot be used ({each.reason})" for each in tried if each.divergence is None]
    if not usable:
        raise InputError(f"--repair=auto needs a chain of repairs that can be used. Received: {'; '.join(failures)}")
    best = min(divergence for divergence, _ in usable)
    winner = next(chain for divergence, chain in usable if divergence == best)
    others = [f"{chain} {divergence:.3g}" for divergence, chain in usable if chain != winner]
    statement = (
        f"auto chose {winner}: on {num_images} calibration inputs held out from the fitting its outputs diverge least "
        f"from the dense model's: {winner} {best:.3g}; {'; '.join(others + failures)}."
    )
    return Choice("auto", (), (), (), statement, tuple(tried))
