"""Budgets of the file: how large it may be, or how fast it has to be; and the least sparsity that meets one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.export.forecast import Forecast
from reflow_tf.sparsity.budget import Price
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.masks import Masks
from reflow_tf.sparsity.patterns import Pattern
from reflow_tf.targets.storage import Storage
from reflow_tf.targets.target import HardwareTarget

Candidate = TypeVar("Candidate")

# The search ends where two sparsities are so close: between them lie few bytes, and less time than can be measured.
_CLOSE = 0.0005


class Limit(Protocol):
    """A budget other than a sparsity.

    Attributes:
        flag: as the command line spells it.
        value: what was asked for.
        prices: path -> what a weight of that kernel costs, for allocations that weigh costs.
        least_zeros: so many weights of those kernels have to be zero, besides.
        unfound: kernels that are not in the file as the model has them, and count as dense.
    """

    flag: str
    value: float
    prices: Mapping[str, Price]
    least_zeros: int
    unfound: tuple[str, ...]

    def estimate(self, masks: Masks) -> float:
        """What the file will come to."""
        ...

    def admits(self, estimate: float) -> bool:
        """Whether that is within the budget."""
        ...

    def explain(self, best: float) -> str:
        """What the budget must be where nothing beyond `best` can be had; a sentence without its end."""
        ...


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """What a budget came to before anything was repaired.

    Attributes:
        flag: the budget, as the command line spells it.
        value: what was asked for.
        estimate: what the file was estimated to come to.
        unfound: kernels that were taken for dense, because the file does not hold them as the model does.
    """

    flag: str
    value: float
    estimate: float
    unfound: tuple[str, ...]

    def admits(self, measured: float) -> bool:
        """Whether what came of it is within the budget."""
        return measured >= self.value if self.flag == SpeedLimit.flag else measured <= self.value


class SizeLimit:
    """At most so many bytes; a kept weight costs what storage says."""

    least_zeros = 0

    def __init__(self, flag: str, forecast: Forecast, pricing: HardwareTarget, value: float):
        self.flag = flag
        self._forecast = forecast
        self.value = value
        prices = forecast.assign(pricing.price(forecast.graph).prices)
        self.prices: Mapping[str, Price] = {path: price for path, price in prices.items() if forecast.shrinks(path)}
        self.unfound = forecast.unfound

    def estimate(self, masks: Masks) -> float:
        return self._forecast.measure_size(masks)

    def admits(self, estimate: float) -> bool:
        return estimate <= self.value

    def explain(self, best: float) -> str:
        return f"must be at least {best:.0f}, the smallest file that these kernels allow"


class SpeedLimit:
    """At least so many times as fast as the dense file, by the target's estimate."""

    flag = "min_speedup"

    def __init__(self, forecast: Forecast, target: HardwareTarget, value: float):
        self._forecast, self._target = forecast, target
        self.value = value
        tariff = target.price(forecast.graph)
        self.prices: Mapping[str, Price] = forecast.assign(tariff.prices)
        self.least_zeros = tariff.least_zeros
        self.unfound = forecast.unfound

    def estimate(self, masks: Masks) -> float:
        """1 where the target would not run the file any faster, whatever its zeros."""
        return self._target.estimate_speedup(self._forecast.foresee(masks))

    def admits(self, estimate: float) -> bool:
        return estimate >= self.value

    def explain(self, best: float) -> str:
        if best > 1:
            return f"must be at most {best:.2f}, the estimate where these kernels are as sparse as they can be"
        verdict = self._target.judge(self._forecast.graph)
        blocker = next((f": {blocker.operator or 'the file'}: {blocker.reason}" for blocker in verdict.blockers), "")
        return f"needs a network that {self._target.name} can run sparse; nothing of this one would be{blocker}"


def open_limit(config: PruneConfig, content: bytes, kernels: Mapping[str, np.ndarray]) -> Limit:
    """The budget of a configuration that has one.

    Args:
        config: its `budget` is not None.
        content: the model as a .tflite file with dense weights, rewritten or not as the file in question will be.
        kernels: path -> kernel in canonical layout, of those that will be pruned.
    """
    assert config.budget is not None
    name, value = config.budget
    target = config.hardware
    forecast = Forecast(content, kernels, target.storage, target.ballast_for)
    if name == SpeedLimit.flag:
        return SpeedLimit(forecast, target, value)
    return SizeLimit(name, forecast, target if target.storage == "bitmap" else Storage(), value)


def require_reachable(limit: Limit, specs: Sequence[LayerSpec], most: float, pattern: Pattern) -> None:
    """Raises InputError if even with this share of every kernel zero, in this pattern, the budget would be missed."""
    # Scattered, as a criterion leaves them: rows that are full would run in other kernels.
    rng = np.random.default_rng(0)
    masks = {spec.path: pattern.select(rng.random(spec.canonical_shape), most) for spec in specs}
    _require_met(limit, limit.estimate(masks))


def find_least(
    limit: Limit, try_at: Callable[[float], tuple[Candidate, Masks]], most: float
) -> tuple[Candidate, Masks, Foreseen]:
    """The candidate of the least sparsity that meets the budget, by halving.

    Args:
        limit: the budget.
        try_at: sparsity -> a candidate and its masks; what they save must not fall with the sparsity.
        most: the highest sparsity that may be tried.

    Raises:
        InputError: even that one misses the budget.
    """

    def look(sparsity: float) -> tuple[Candidate, Masks, float]:
        candidate, masks = try_at(sparsity)
        return candidate, masks, limit.estimate(masks)

    low, high, best = 0.0, most, look(0.0)
    if not limit.admits(best[2]):
        best = look(most)
        _require_met(limit, best[2])
        while high - low > _CLOSE:
            tried = look((low + high) / 2)
            if limit.admits(tried[2]):
                high, best = (low + high) / 2, tried
            else:
                low = (low + high) / 2
    candidate, masks, estimate = best
    return candidate, masks, Foreseen(limit.flag, limit.value, estimate, limit.unfound)


def _require_met(limit: Limit, best: float) -> None:
    if not limit.admits(best):
        raise InputError(f"--{limit.flag} {limit.explain(best)}. Received: {limit.value}")
