"""The plan: which channels leave, and which kernel gets which pattern and how many zeros, as JSON to read and diff."""

import dataclasses
import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.sparsity import patterns
from reflow_tf.sparsity.allocation import Allocation
from reflow_tf.sparsity.layers import LayerSpec

VERSION = 1
_NUMBERS = re.compile(r"\[\n[\d,\s]+\]")  # a channel a line would hide the plan; no text of JSON has line ends in it


@dataclasses.dataclass(frozen=True)
class PlannedLayer:
    """What happens to one kernel."""

    pattern: patterns.Pattern
    sparsity: float


@dataclasses.dataclass(frozen=True)
class PlannedGroup:
    """What happens to channels that stand and fall together.

    Attributes:
        writers: paths of the kernels that give them, in the network as it was.
        readers: of those that take them.
        size: how many there were.
        kept: which of them stay, ascending, at least one; of linear streams that were turned into another basis first,
            those of that basis.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    size: int
    kept: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PruningPlan:
    """What is removed first, and what is zeroed then.

    Attributes:
        layers: path of the kernel -> (pattern, sparsity). Kernels that are not in it are not pruned.
        channels: groups that lose channels. Those that are not in it lose none.
    """

    layers: Mapping[str, PlannedLayer]
    channels: tuple[PlannedGroup, ...] = ()

    def to_json(self) -> str:
        layers = {
            path: {"pattern": str(layer.pattern), "sparsity": layer.sparsity} for path, layer in self.layers.items()
        }
        channels = [
            {
                "writers": list(group.writers),
                "readers": list(group.readers),
                "size": group.size,
                "width": len(group.kept),
                "kept": list(group.kept),
            }
            for group in self.channels
        ]
        document = {"version": VERSION, "layers": layers} | ({"channels": channels} if channels else {})
        text = json.dumps(document, indent=2) + "\n"
        return _NUMBERS.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)

    @classmethod
    def from_json(cls, text: str) -> "PruningPlan":
        """The inverse of `to_json`; plans of earlier releases have no channels in them.

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
            channels = tuple(_read_group(group) for group in document.get("channels", []))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                'A plan must be JSON of the form {"version": 1, "layers": {path: {"pattern": ..., "sparsity": ...}}, '
                '"channels": [{"writers": ..., "readers": ..., "size": ..., "width": ..., "kept": ...}]}. '
                f"Received: {text[:80]!r} ({say_why(error)})"
            ) from error
        return cls(layers, channels)


def _read_group(group: Mapping[str, Any]) -> PlannedGroup:
    """A group as it was written.

    Raises:
        InputError: its channels are not as many as it says, ascending and all its own.
        KeyError: something is missing.
        TypeError: something is of another type.
    """
    writers, readers = (tuple(map(str, group[name])) for name in ("writers", "readers"))
    size, width, kept = group["size"], group["width"], tuple(group["kept"])
    if not kept or len(kept) != width or list(kept) != sorted({*kept}) or kept[0] < 0 or kept[-1] >= size:
        raise InputError(
            f"A plan's group must keep as many channels as its width says, each once, ascending, of its {size}. "
            f"Received: {', '.join(writers)} with the width {width} and {len(kept)} channels"
        )
    return PlannedGroup(writers, readers, size, kept)


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

    return dataclasses.replace(plan, layers={path: raised(path, layer) for path, layer in plan.layers.items()})


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
