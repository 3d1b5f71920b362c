"""Sharing out a budget: how sparse each layer gets when it is known what sparsity does to the network, layer by layer.

Minimizes the sum over layers of the divergence that their sparsity causes, subject to what the kept weights may cost:
dynamic programming over layers and cost, as in SPDY (Frantar & Alistarh, arXiv 2201.13096). That the divergences add up
is an assumption; that the sum is at its least, to within the steps of the grid, is not. Where zeros are to be counted
beside the cost (XNNPACK wants both), they enter the sum with a Lagrange multiplier, the least one that brings enough.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.sparsity.layers import LayerSpec

SPARSITY_STEP = 0.02
NUM_COST_STEPS = 4000
# Below the least sparsity that was measured, divergence falls like this power of it: fewer and smaller weights go.
_ONSET_POWER = 3.0
_LEAST_DIVERGENCE = 1e-7
# Powers of 2, in divergence for all weights that count: from what moves nothing to what outweighs every curve.
_MULTIPLIERS, _MULTIPLIER_HALVINGS = (-30.0, 40.0), 14
_FACTOR_HALVINGS = 50


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


@dataclasses.dataclass(frozen=True)
class Price:
    """What one weight of a kernel costs, in whatever the budget is in.

    Attributes:
        kept: a weight that is not zero; 0 where zeros save nothing.
        most: no weight costs more on average, however many are kept: the price of dense storage.
        full: a weight of a kernel without a zero, among others that have zeros; None: as `kept` and `most` say.
        dense: a weight of a kernel without a zero where no kernel has any, which is what shares of a cost are shares
            of; None: as `full`.
    """

    kept: float
    most: float = math.inf
    full: float | None = None
    dense: float | None = None

    def per_weight(self, sparsities: np.ndarray) -> np.ndarray:
        """Cost at each sparsity, averaged over all weights of the kernel."""
        costs = np.minimum((1 - sparsities) * self.kept, self.most)
        return costs if self.full is None else np.where(sparsities > 0, costs, self.full)

    @property
    def dense_weight(self) -> float:
        """Cost of a weight before anything is zero."""
        return float(self.per_weight(np.zeros(()))) if self.dense is None else self.dense


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One kernel with a price, and the levels among which its sparsity is chosen."""

    num_weights: int
    price: Price
    levels: np.ndarray
    divergences: np.ndarray

    def cost(self, sparsities: np.ndarray | float) -> np.ndarray:
        return self.num_weights * self.price.per_weight(np.asarray(sparsities))

    @property
    def dense_cost(self) -> float:
        return self.num_weights * self.price.dense_weight


def share_out(
    specs: Sequence[LayerSpec],
    curves: Mapping[str, SensitivityCurve],
    sparsity: float,
    prices: Mapping[str, Price] | None = None,
    least_zeros: int = 0,
) -> dict[str, float]:
    """The sparsities of least divergence at which the kernels cost at most (1 - sparsity) of what they cost dense.

    Args:
        specs: the kernels.
        curves: one for each path.
        sparsity: share of the cost that has to go, in [0, 1).
        prices: path -> what a weight of that kernel costs; a kernel without a price stays dense. None: 1 each, so that
            the cost is the number of weights.
        least_zeros: so many weights of the kernels with a price must be zero as well.

    Raises:
        InputError: the curves do not reach far enough for so high a sparsity, or so many zeros.
    """
    prices = {spec.path: Price(1.0) for spec in specs} if prices is None else prices
    layers = _describe_all(specs, curves, prices)
    chosen = _choose(layers, sparsity, 0.0)
    if _count_zeros(layers, chosen) < least_zeros:
        chosen = _choose_with_zeros(layers, sparsity, least_zeros)
    exact = _spend_rest(layers, chosen, sparsity, least_zeros)
    shared = iter(exact)
    return {spec.path: _round_up(next(shared), spec.num_weights) if _costs(spec, prices) else 0.0 for spec in specs}


def find_most(specs: Sequence[LayerSpec], curves: Mapping[str, SensitivityCurve], prices: Mapping[str, Price]) -> float:
    """The highest `sparsity` that `share_out` can share out: where every kernel is as sparse as its curve reaches."""
    return _find_most(_describe_all(specs, curves, prices))


def _describe_all(
    specs: Sequence[LayerSpec], curves: Mapping[str, SensitivityCurve], prices: Mapping[str, Price]
) -> list[_Layer]:
    """The kernels with a price, in order."""
    return [_describe(spec, prices[spec.path], curves[spec.path]) for spec in specs if _costs(spec, prices)]


def _costs(spec: LayerSpec, prices: Mapping[str, Price]) -> bool:
    return spec.path in prices and prices[spec.path].kept > 0


def _find_most(layers: Sequence[_Layer]) -> float:
    dense = sum(layer.dense_cost for layer in layers)
    least = sum(float(layer.cost(layer.levels[-1])) for layer in layers)
    return 1 - least / dense if dense else 0.0


def _describe(spec: LayerSpec, price: Price, curve: SensitivityCurve) -> _Layer:
    most = curve.sparsities[-1]
    levels = np.append(np.arange(0, most - SPARSITY_STEP / 2, SPARSITY_STEP), most)
    return _Layer(spec.num_weights, price, levels, curve.at(levels))


def _count_zeros(layers: Sequence[_Layer], sparsities: Sequence[float] | np.ndarray) -> float:
    return sum(layer.num_weights * s for layer, s in zip(layers, sparsities, strict=True))


def _choose(layers: Sequence[_Layer], sparsity: float, multiplier: float) -> np.ndarray:
    """The levels of least total divergence within the budget; `multiplier` is what keeping all weights adds to it."""
    dense = sum(layer.dense_cost for layer in layers)
    unit, budget = dense / NUM_COST_STEPS, int((1 - sparsity) * NUM_COST_STEPS)
    num_weights = sum(layer.num_weights for layer in layers)
    best, choices = np.zeros(budget + 1), []
    for layer in layers:
        # Rounded up: the budget holds whatever the rounding does.
        steps = np.ceil(layer.cost(layer.levels) / unit - 1e-9).astype(int)
        losses = layer.divergences + multiplier * layer.num_weights / num_weights * (1 - layer.levels)
        totals = np.full((len(steps), budget + 1), np.inf)
        for row, loss, taken in zip(totals, losses, steps, strict=True):
            if taken <= budget:
                row[taken:] = best[: budget + 1 - taken] + loss
        choices.append((totals.argmin(axis=0), steps))
        best = totals.min(axis=0)
    if not np.isfinite(best[budget]):
        if sparsity <= (most := _find_most(layers)):  # it was the rounding
            return np.array([layer.levels[-1] for layer in layers])
        raise InputError(
            f"The budget must leave at least what the kernels keep at {most:.1%}. Received: {sparsity:.1%}"
        )
    chosen, left = np.zeros(len(layers)), budget
    for index in reversed(range(len(layers))):
        picks, steps = choices[index]
        chosen[index] = layers[index].levels[picks[left]]
        left -= steps[picks[left]]
    return chosen


def _choose_with_zeros(layers: Sequence[_Layer], sparsity: float, least_zeros: int) -> np.ndarray:
    """`_choose` with the least multiplier that gives so many zeros."""
    low, high = _MULTIPLIERS
    enough = _choose(layers, sparsity, 2**high)
    if (most := _count_zeros(layers, enough)) < least_zeros:
        raise InputError(
            f"At most {int(most):,} weights can be zero here. Received: at least {least_zeros:,} asked for"
        )
    for _ in range(_MULTIPLIER_HALVINGS):
        middle = (low + high) / 2
        chosen = _choose(layers, sparsity, 2**middle)
        if _count_zeros(layers, chosen) < least_zeros:
            low = middle
        else:
            high, enough = middle, chosen
    return enough


def _spend_rest(layers: Sequence[_Layer], sparsities: np.ndarray, sparsity: float, least_zeros: int) -> np.ndarray:
    """Scales all densities by one factor, none beyond 1, so that what rounding left of the budget is used."""
    densities = 1 - sparsities
    budget = (1 - sparsity) * sum(layer.dense_cost for layer in layers)

    def scale(factor: float) -> np.ndarray:
        return 1 - np.minimum(densities * factor, 1)

    low, high = 1.0, 1 / densities.min(initial=1.0)
    for _ in range(_FACTOR_HALVINGS):
        middle = (low + high) / 2
        scaled = scale(middle)
        cost = sum(float(layer.cost(s)) for layer, s in zip(layers, scaled, strict=True))
        fits = cost <= budget and _count_zeros(layers, scaled) >= least_zeros
        low, high = (middle, high) if fits else (low, middle)
    return scale(low)


def _round_up(sparsity: float, num_weights: int) -> float:
    """To whole weights, so that neither cost nor zeros miss what was asked for."""
    return math.ceil(sparsity * num_weights - 1e-6) / num_weights
