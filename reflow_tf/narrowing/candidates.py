"""Which channels stand and fall together, what they cost, and which may go; what holds the others."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.models.calls import functional_of
from reflow_tf.models.channels.groups import ChannelGroup, ChannelReading, collect_groups, read_channels
from reflow_tf.models.execution import read_steps
from reflow_tf.models.fisher import MOST_OUTPUTS
from reflow_tf.models.gram import find_patches, is_too_wide
from reflow_tf.models.graph import KernelMap, find_kernels
from reflow_tf.models.packing import as_plain
from reflow_tf.models.walking import walk
from reflow_tf.sparsity.layers import Kind, LayerSpec, Skipped
from reflow_tf.sparsity.widths import Axis, Width, Workload, check_share, count_macs
from reflow_tf.targets.selection import read_prunable


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A group that may lose channels.

    Attributes:
        position: in `find_channel_groups`.
        group: itself.
        writers: the kernels that give its channels.
        readers: those that take them, with the places where they begin along the kernel's inputs.
    """

    position: int
    group: ChannelGroup
    writers: tuple[LayerSpec, ...]
    readers: tuple[tuple[LayerSpec, tuple[int, ...]], ...]

    @property
    def writer_paths(self) -> tuple[str, ...]:
        return tuple(spec.path for spec in self.writers)

    @property
    def reader_paths(self) -> tuple[str, ...]:
        return tuple(spec.path for spec, _ in self.readers)


def find_candidates(model: keras.Model, prunable: str = "target") -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
    """The groups that may lose channels, and what the others are held by.

    Args:
        model: functional or sequential.
        prunable: a regular expression that is searched for in paths: a kernel that it leaves out keeps its shape, and
            so all channels that it gives, takes or filters stay. 'target' and 'all' leave none out: no target minds
            which channels leave.

    Raises:
        InputError: the model is subclassed, or leaves its input's size open; or no regular expression.
    """
    leaves_out = read_prunable(prunable)
    if functional_of(model) is None:
        raise InputError(
            "--max_macs needs a functional or sequential model, in which channels can be traced; of others whole "
            "channels can be masked: --pattern=channel --sparsity=0.3, without --max_macs. "
            f"Received: {model.name}, of class {type(model).__name__}"
        )
    own = {id(step.operation) for step in read_steps(as_plain(model))}
    _require_fixed_size(model)
    reading, kernels = read_channels(model), find_kernels(model)
    owners = {place.path: place.layer for place in walk(model)}
    # Of layers inside nested models nothing is measured.
    calls = Counter(id(call.operation) for call in reading.graph.calls if id(call.operation) in own)
    found, held = [], []
    for position, group in enumerate(collect_groups(reading.numberings).values()):
        candidate = _read_group(position, group, kernels)
        if not candidate.writers:
            continue  # the network's inputs, or what only batch norms number
        own_kernels = [spec for span in group.spans if (spec := kernels.by_variable.get(id(span.variable)))]
        protected = next(filter(leaves_out, own_kernels), None)
        reason = group.frozen
        if reason is None and protected is not None:
            goes_with = "" if protected is candidate.writers[0] else f"goes with {protected.path}, which "
            reason = f"{goes_with}is left out by --prunable={prunable}"
        reason = reason or _find_obstacle(candidate, owners, calls)
        if reason is None:
            found.append(candidate)
        else:
            held.append(Skipped(candidate.writers[0].path, reason))
    return tuple(found), tuple(held)


def require_candidates(
    model: keras.Model, prunable: str = "target"
) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
    """`find_candidates`.

    Raises:
        InputError: there are none; or as `find_candidates`.
    """
    candidates, held = find_candidates(model, prunable)
    if not candidates:
        raise InputError(
            "--max_macs needs channels that may go. Received: a network in which all stay: "
            + ("; ".join(f"{each.path} {each.reason}" for each in held[:3]) or "nothing is known of its channels")
        )
    return candidates, held


def require_room(model: keras.Model, candidates: Sequence[Candidate], share: float | None, multiple: int) -> None:
    """Checks, before channels are weighed, that there are widths to choose from, and that they can be narrow enough.

    Args:
        model: whose groups they are.
        candidates: them, at least one.
        share: of the multiply-adds that may be left; None: not known yet.
        multiple: of which number widths are.

    Raises:
        InputError: there are none, or they cannot.
    """
    widest = max(candidates, key=lambda candidate: candidate.group.size)
    if multiple >= widest.group.size:
        raise InputError(
            f"--channel_multiple must be less than the {widest.group.size} channels of {widest.writer_paths[0]}, the "
            f"most of those that may go: none can go otherwise. Received: {multiple}"
        )
    if share is not None:
        groups = [Width(each.group.size, np.zeros(each.group.size), multiple) for each in candidates]
        check_share(groups, find_workloads(model, candidates), share)


def _require_fixed_size(model: keras.Model) -> None:
    if None in model.input_shape[1:]:
        raise InputError(
            f"Multiply-adds are counted for one size of the input, which --image_size sets. "
            f"Received: a model that leaves it open, {tuple(model.input_shape[1:])}"
        )


@dataclasses.dataclass(frozen=True)
class GroupCost:
    """What the channels of a group cost together.

    Attributes:
        writers: paths of the kernels that give them.
        readers: of those that take them.
        size: how many they are.
        macs: multiply-adds of the network that they take part in.
        num_weights: that number them.
        num_values: of the largest tensor that they are in, of one input: what one byte, or four, each cost in RAM.
        held: why they must stay; None: they may go.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    size: int
    macs: int
    num_weights: int
    num_values: int
    held: str | None


def measure_groups(model: keras.Model, prunable: str = "target") -> tuple[GroupCost, ...]:
    """Every group that a kernel gives, in the order in which they are met.

    Args:
        model: a functional or sequential model.
        prunable: as in `find_candidates`.

    Raises:
        InputError: as `find_candidates`.
    """
    found, held = find_candidates(model, prunable)
    reading, kernels = read_channels(model), find_kernels(model)
    groups = collect_groups(reading.numberings)
    every = [_read_group(position, group, kernels) for position, group in enumerate(groups.values())]
    reasons = {each.path: each.reason for each in held}
    movable = {candidate.position for candidate in found}
    workloads = find_workloads(model, every)
    full = [candidate.group.size for candidate in every]
    costs = []
    for root, candidate in zip(groups, every, strict=True):
        if not candidate.writers:
            continue
        without = [*full[: candidate.position], 0, *full[candidate.position + 1 :]]
        tensors = [tensor for tensor in reading.layouts if root in (reading.roots(tensor) or ())]
        positions = [math.prod(size or 1 for size in reading.graph.shapes[tensor][1:-1]) for tensor in tensors]
        costs.append(
            GroupCost(
                candidate.writer_paths,
                candidate.reader_paths,
                candidate.group.size,
                count_macs(workloads, full) - count_macs(workloads, without),
                _count_weights(candidate.group),
                candidate.group.size * max(positions, default=0),
                None if candidate.position in movable else reasons[candidate.writers[0].path],
            )
        )
    return tuple(costs)


def _count_weights(group: ChannelGroup) -> int:
    per_channel = (math.prod(span.variable.shape) // span.variable.shape[span.axis] for span in group.spans)
    return group.size * sum(per_channel)


def _read_group(position: int, group: ChannelGroup, kernels: KernelMap) -> Candidate:
    writers: dict[str, LayerSpec] = {}
    readers: dict[str, tuple[LayerSpec, list[int]]] = {}
    for span in group.spans:
        spec = kernels.by_variable.get(id(span.variable))
        if spec is None or spec.kind is Kind.DEPTHWISE_CONV:
            continue
        if span.axis in spec.input_axes:
            readers.setdefault(spec.path, (spec, []))[1].append(span.start)
        else:
            writers[spec.path] = spec
    return Candidate(
        position, group, tuple(writers.values()), tuple((spec, tuple(starts)) for spec, starts in readers.values())
    )


def _find_obstacle(candidate: Candidate, owners: Mapping[str, keras.Layer], calls: Counter[int]) -> str | None:
    if candidate.group.size == 1:
        return "is one channel"
    if not candidate.readers:
        return "is read by no kernel"
    for spec, _ in candidate.readers:
        layer, name = owners[spec.path.rpartition("/")[0]], spec.path.rpartition("/")[2]
        if find_patches(layer, name) is None:
            return f"is read by {spec.path} ({type(layer).__name__}), for which there is no rule of least squares"
        if calls[id(layer)] != 1:
            how = "used several times" if calls[id(layer)] else "inside another model or layer"
            return f"is read by {spec.path}, which is {how}"
        if is_too_wide(spec) or spec.canonical_shape[0] > MOST_OUTPUTS:
            return f"is read by {spec.path}, whose shape {spec.shape} is too large for least squares"
    return None


def find_workloads(model: keras.Model, candidates: Sequence[Candidate]) -> list[Workload]:
    """Multiply-adds of every kernel, by the candidates' widths."""
    reading, kernels = read_channels(model), find_kernels(model)
    owners = {place.path: place.layer for place in walk(model)}
    spans: dict[int, list[tuple[int, int]]] = {}
    for number, candidate in enumerate(candidates):
        for span in candidate.group.spans:
            spans.setdefault(id(span.variable), []).append((span.axis, number))
    workloads = []
    for spec in kernels.specs:
        numbered = spans.get(id(kernels.variables[spec.path]), [])
        axes = []
        for axis, size in enumerate(spec.shape):
            groups = tuple(number for on, number in numbered if on == axis)
            axes.append(Axis(size - sum(candidates[number].group.size for number in groups), groups))
        workloads.append(Workload(_count_positions(owners[spec.path.rpartition("/")[0]], reading), tuple(axes)))
    return workloads


def find_sizes(model: keras.Model, candidates: Sequence[Candidate]) -> list[Workload]:
    """Numbers in every tensor between layers, of one input, by the candidates' widths."""
    reading = read_channels(model)
    roots = list(collect_groups(reading.numberings))
    numbers = {roots[candidate.position]: number for number, candidate in enumerate(candidates)}
    sizes = []
    for tensor in reading.layouts:
        shape = reading.graph.shapes[tensor]
        groups = tuple(numbers[root] for root in reading.roots(tensor) or () if root in numbers)
        fixed = ((shape or (1,))[-1] or 1) - sum(candidates[number].group.size for number in groups)
        sizes.append(Workload(math.prod(size or 1 for size in shape[1:-1]), (Axis(fixed, groups),)))
    return sizes


def _count_positions(layer: keras.Layer, reading: ChannelReading) -> int:
    """At how many positions the layer's kernel is used, in all its calls; an open size counts as 1."""
    is_transposed = type(layer).__name__.endswith("Transpose")
    total = 0
    for call in reading.graph.calls:
        if call.operation is layer:
            shape = reading.graph.shapes[(call.inputs if is_transposed else call.outputs)[0]]
            total += math.prod(size or 1 for size in shape[1:-1])
    return total or 1
