"""Which kernels are pruned: those that the target rewards, or that the user names, and that the pattern fits."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.sparsity.layers import LayerSpec, Skipped
from reflow_tf.sparsity.patterns import Pattern
from reflow_tf.targets.target import HardwareTarget


@dataclasses.dataclass(frozen=True)
class Selection:
    """The kernels to prune, and for every other one the reason why not."""

    chosen: tuple[LayerSpec, ...]
    skipped: tuple[Skipped, ...]


def select_kernels(
    specs: Sequence[LayerSpec],
    *,
    prunable: str,
    target: HardwareTarget,
    pattern: Pattern,
    others: Iterable[HardwareTarget] = (),
) -> Selection:
    """Divides the kernels into those to prune and those to leave.

    Args:
        specs: every kernel of the model.
        prunable: 'target', 'all', or a regular expression that is searched for in the paths.
        target: judges when `prunable` is 'target'.
        pattern: leaves out the kinds of kernel that it cannot be applied to.
        others: targets to recommend where this one has no use for any kernel.

    Raises:
        InputError: not a regular expression, or no kernel is left.
    """
    objection = _objection(prunable, target)
    chosen, skipped = [], []
    for spec in specs:
        reason = objection(spec) or pattern.obstacle(spec)
        if reason:
            skipped.append(Skipped(spec.path, reason))
        else:
            chosen.append(spec)
    if not chosen:
        found = ", ".join(f"{spec.path} ({spec.kind.value})" for spec in specs[:5]) or "no kernels at all"
        raise InputError(
            f"There must be kernels to prune.{_advise(specs, skipped, prunable, pattern, others)} "
            f"Received: --target={target.name}, --prunable={prunable} and --pattern={pattern} on a model with {found}"
            f"{', ...' if len(specs) > 5 else ''}"
        )
    return Selection(tuple(chosen), tuple(skipped))


def leave_dense(selection: Selection, kernels: Mapping[str, np.ndarray], pattern: Pattern) -> Selection:
    """Of the chosen kernels those that have zeros in the shape of the pattern already.

    Args:
        selection: of kernels.
        kernels: path -> kernel in canonical layout.
        pattern: whose groups have to be zero as a whole.

    Raises:
        InputError: none has.
    """
    sparse = {spec.path for spec in selection.chosen if not pattern.pool(np.abs(kernels[spec.path])).all()}
    if not sparse:
        raise InputError(
            f"--sparsity=existing needs zeros in the kernels that are pruned, in the shape of --pattern={pattern}. "
            f"Received: {len(selection.chosen)} kernels without any"
        )
    dense = tuple(Skipped(spec.path, "has no zeros") for spec in selection.chosen if spec.path not in sparse)
    chosen = tuple(spec for spec in selection.chosen if spec.path in sparse)
    return Selection(chosen, selection.skipped + dense)


def _advise(
    specs: Sequence[LayerSpec],
    skipped: Sequence[Skipped],
    prunable: str,
    pattern: Pattern,
    others: Iterable[HardwareTarget],
) -> str:
    """Why nothing is left, and what would leave something."""
    if not specs:
        return ""
    reason = f" Of {skipped[0].path}: {skipped[0].reason}."
    fitting = [spec for spec in specs if not pattern.obstacle(spec)]
    if not fitting:
        return f"{reason} Take another pattern."
    if prunable == "all":
        return reason
    names = [f"--target={other.name}" for other in others if any(not other.objection(spec) for spec in fitting)]
    ways = names if prunable == "target" else ["--prunable=target"]
    return f"{reason} Take {', '.join(ways)}{' or ' if ways else ''}--prunable=all."


def _objection(prunable: str, target: HardwareTarget) -> Callable[[LayerSpec], str | None]:
    if prunable == "target":
        return target.objection
    leaves_out = read_prunable(prunable)
    return lambda spec: f"--prunable={prunable} does not match its path" if leaves_out(spec) else None


def read_prunable(prunable: str) -> Callable[[LayerSpec], bool]:
    """Which kernels the user leaves out: those whose path a regular expression is not found in; else none.

    Raises:
        InputError: not a regular expression.
    """
    if prunable in ("target", "all"):
        return lambda spec: False
    try:
        expression = re.compile(prunable)
    except re.error as error:
        raise InputError(
            f"--prunable must be target, all, or a regular expression over layer paths. "
            f"Received: {prunable} ({say_why(error)})"
        ) from error
    return lambda spec: expression.search(spec.path) is None
