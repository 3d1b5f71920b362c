"""The plan: which kernel gets which pattern and how many zeros, as JSON that a person can read and diff."""

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.sparsity import patterns
from reflow_tf.sparsity.allocation import Allocation
from reflow_tf.sparsity.layers import LayerSpec

VERSION = 1


@dataclasses.dataclass(frozen=True)
class PlannedLayer:
    """What happens to one kernel."""

    pattern: patterns.Pattern
    sparsity: float


@dataclasses.dataclass(frozen=True)
class PruningPlan:
    """Path of the kernel -> (pattern, sparsity). Kernels that are not in it are not pruned."""

    layers: Mapping[str, PlannedLayer]

    def to_json(self) -> str:
        layers = {
            path: {"pattern": str(layer.pattern), "sparsity": layer.sparsity} for path, layer in self.layers.items()
        }
        return json.dumps({"version": VERSION, "layers": layers}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PruningPlan":
        """The inverse of `to_json`.

        Raises:
            InputError: the text is not JSON, or not a plan of this version.
        """
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise InputError(f"A plan must have version {VERSION}. Received: {document['version']}")
            layers = {
                path: PlannedLayer(patterns.parse(layer["pattern"]), check_sparsity(layer["sparsity"], 1.0))
                for path, layer in document["layers"].items()
            }
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                'A plan must be JSON of the form {"version": 1, "layers": {path: {"pattern": ..., "sparsity": ...}}}. '
                f"Received: {text[:80]!r} ({say_why(error)})"
            ) from error
        return cls(layers)


def make_plan(
    specs: Sequence[LayerSpec],
    scores: Mapping[str, np.ndarray],
    chosen: Mapping[str, patterns.Pattern],
    allocation: Allocation,
    sparsity: float,
) -> PruningPlan:
    """Decides the sparsity of every layer.

    Args:
        specs: the kernels to prune.
        scores: path -> scores of the kernel in canonical layout, not pooled.
        chosen: path -> pattern of the kernel. N:M is for all of them or for none.
        allocation: how the zeros are shared out. N:M leaves it no choice: every layer has the pattern's sparsity.
        sparsity: fraction of zeros over all of them, in [0, 1).

    Raises:
        InputError: a kernel's size does not fit the pattern, or the sparsity is not the pattern's.
    """
    check_sparsity(sparsity)
    for spec in specs:
        chosen[spec.path].check(spec)
    if implied := [pattern.sparsity for pattern in chosen.values() if isinstance(pattern, patterns.NM)]:
        sparsities = {spec.path: implied[0] for spec in specs}
    else:
        sparsities = allocation(specs, {path: chosen[path].pool(s) for path, s in scores.items()}, sparsity)
    return PruningPlan({spec.path: PlannedLayer(chosen[spec.path], sparsities[spec.path]) for spec in specs})


def keep_zeros(plan: PruningPlan, kernels: Mapping[str, np.ndarray]) -> PruningPlan:
    """The plan with no kernel less sparse than it is already, so that zeros it came with are masked like any other.

    Weights that are zero score lowest, so they go first; what a repair could make of them otherwise would fill them in.
    Only groups count of which every weight is zero: a pattern cannot drop part of one. N:M has one sparsity.

    Args:
        plan: what was asked for.
        kernels: path -> kernel in canonical layout, before it is pruned.
    """

    def raised(path: str, layer: PlannedLayer) -> PlannedLayer:
        if isinstance(layer.pattern, patterns.NM):
            return layer
        pooled = layer.pattern.pool(np.abs(kernels[path]))
        return dataclasses.replace(layer, sparsity=max(layer.sparsity, 1 - np.count_nonzero(pooled) / pooled.size))

    return PruningPlan({path: raised(path, layer) for path, layer in plan.layers.items()})


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, of Python or of NumPy."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_sparsity(sparsity: float, most: float = math.nextafter(1, 0)) -> float:
    """Returns the sparsity as it is. A single layer may end up with `most` = 1; a request must leave something.

    Raises:
        InputError: not a number in [0, most].
    """
    if not is_number(sparsity) or not 0 <= sparsity <= most:
        interval = "[0, 1]" if most == 1 else "[0, 1)"
        raise InputError(f"sparsity is the fraction of zeros and must be in {interval}. Received: {sparsity}")
    return float(sparsity)
