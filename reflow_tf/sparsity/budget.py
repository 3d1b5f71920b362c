"""Sharing out a budget: how sparse each layer gets when it is known what sparsity does to the network, layer by layer.

Minimizes the sum over layers of the divergence that their sparsity causes, subject to what the kept weights may cost:
dynamic programming over layers and cost, as in SPDY (Frantar & Alistarh, arXiv 2201.13096). That the divergences add up
is an assumption; that the sum is at its least, to within the steps of the grid, is not.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.sparsity.layers import LayerSpec

SPARSITY_STEP = 0.02
NUM_COST_STEPS = 4000
# Below the least sparsity that was measured, divergence falls like this power of it: fewer and smaller weights go.
_ONSET_POWER = 3.0
_LEAST_DIVERGENCE = 1e-7


@dataclasses.dataclass(frozen=True)
class SensitivityCurve:
    """What the sparsity of one kernel does to the whole network.

    Attributes:
        sparsities: ascending, in (0, 1).
        divergences: the network's from the dense one at each, 0 or more.
    """

    sparsities: tuple[float, ...]
    divergences: tuple[float, ...]

    def at(self, sparsities: np.ndarray) -> np.ndarray:
        """Divergence at any sparsity up to the highest measured: never falling, logarithms interpolated."""
        rising = np.maximum.accumulate(np.maximum(self.divergences, _LEAST_DIVERGENCE))
        between = np.exp(np.interp(sparsities, self.sparsities, np.log(rising)))
        onset = rising[0] * (sparsities / self.sparsities[0]) ** _ONSET_POWER
        return np.where(sparsities < self.sparsities[0], onset, between)


def share_out(
    specs: Sequence[LayerSpec],
    curves: Mapping[str, SensitivityCurve],
    sparsity: float,
    unit_costs: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The sparsities of least total divergence at which the kernels cost (1 - sparsity) of what they cost dense.

    Args:
        specs: the kernels.
        curves: one for each path.
        sparsity: share of the cost that has to go, in [0, 1).
        unit_costs: what one kept weight of a kernel costs the target, e.g. multiply-accumulates; None: 1 each.

    Raises:
        InputError: the curves do not reach far enough for so high a sparsity.
    """
    costs = np.array([spec.num_weights * (unit_costs[spec.path] if unit_costs else 1.0) for spec in specs])
    unit = costs.sum() / NUM_COST_STEPS
    budget = int((1 - sparsity) * NUM_COST_STEPS)
    levels = [_levels(curves[spec.path]) for spec in specs]
    best, choices = np.zeros(budget + 1), []
    for cost, sparsities, spec in zip(costs, levels, specs, strict=True):
        # Rounded up: the budget holds whatever the rounding does.
        steps = np.ceil((1 - sparsities) * cost / unit - 1e-9).astype(int)
        totals = np.full((len(sparsities), budget + 1), np.inf)
        for row, divergence, taken in zip(totals, curves[spec.path].at(sparsities), steps, strict=True):
            if taken <= budget:
                row[taken:] = best[: budget + 1 - taken] + divergence
        choices.append((totals.argmin(axis=0), steps))
        best = totals.min(axis=0)
    if not np.isfinite(best[budget]):
        most = 1 - sum(c * (1 - s[-1]) for c, s in zip(costs, levels, strict=True)) / costs.sum()
        raise InputError(
            f"The budget must leave at least what the kernels keep at {most:.1%}. Received: {sparsity:.1%}"
        )
    chosen, left = np.zeros(len(specs), int), budget
    for index in reversed(range(len(specs))):
        picks, steps = choices[index]
        chosen[index] = picks[left]
        left -= steps[chosen[index]]
    found = np.array([sparsities[pick] for sparsities, pick in zip(levels, chosen, strict=True)])
    exact = _spend_rest(costs, found, sparsity)
    return {spec.path: round(s * spec.num_weights) / spec.num_weights for spec, s in zip(specs, exact, strict=True)}


def _levels(curve: SensitivityCurve) -> np.ndarray:
    most = curve.sparsities[-1]
    return np.append(np.arange(0, most - SPARSITY_STEP / 2, SPARSITY_STEP), most)


def _spend_rest(costs: np.ndarray, sparsities: np.ndarray, sparsity: float) -> np.ndarray:
    """Scales all densities by one factor, none beyond 1, so that what rounding left of the budget is used."""
    densities, budget = 1 - sparsities, (1 - sparsity) * costs.sum()
    for _ in range(20):
        free = densities < 1
        used = float(costs @ densities)
        if not free.any() or used <= 0 or abs(used - budget) < 1e-9 * costs.sum():
            break
        factor = 1 + (budget - used) / float(costs[free] @ densities[free])
        densities = np.where(free, np.minimum(densities * factor, 1), densities)
    return 1 - densities
