"""Which activations share memory, and where in the arena each lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reflow_tf.export.c_kernels.arena import ArenaPlan, Buffer, Overlaps, plan_arena
from reflow_tf.export.c_kernels.calls import Call
from reflow_tf.export.c_kernels.network import Network, Reshape, Tensor


@dataclass(frozen=True)
class MemoryPlan:
    """Where everything lies.

    Attributes:
        places: of each activation by its index: a pointer to the caller's memory, in C, or an offset in the arena.
        scratches: offset of the scratch of each call that has one, by its position.
        size_bytes: of the arena.
    """

    places: Mapping[int, str | int]
    scratches: Mapping[int, int]
    size_bytes: int


def plan_memory(network: Network, calls: Sequence[Call]) -> MemoryPlan:
    """Plans the arena. The inputs and the outputs of the network are the caller's memory.

    A call writes over one of its inputs, or over what it is done with of it, where it may and nobody needs that input
    later. A reshape is the same memory under another name.
    """
    owners = find_owners(network)
    uses: dict[int, list[int]] = {}
    for step, call in enumerate(calls):
        for tensor in (*call.inputs, call.output):
            uses.setdefault(owners[tensor.index], []).append(step)
    ends = {
        owners[tensor.index]: _point_to(kind, place, len(tensors))
        for kind, tensors in (("input", network.inputs), ("output", network.outputs))
        for place, tensor in enumerate(tensors)
    }
    _share(calls, owners, uses, ends)
    sizes: dict[int, int] = {}
    for tensor in _tensors(network):
        sizes[owners[tensor.index]] = max(tensor.size, sizes.get(owners[tensor.index], 0))
    buffers = {
        f"activation {owner}": Buffer(sizes[owner], min(steps), max(steps))
        for owner, steps in uses.items()
        if owner not in ends
    }
    for step, call in enumerate(calls):
        if call.scratch_bytes:
            buffers[f"scratch {step}"] = Buffer(call.scratch_bytes, step, step)
    return _resolve(plan_arena(buffers, _find_overlaps(calls, owners, buffers)), owners, ends)


def _find_overlaps(calls: Sequence[Call], owners: Mapping[int, int], buffers: Mapping[str, Buffer]) -> Overlaps:
    """Of what a step reads for the last time, and what it is the first to write."""
    leads, same = {}, []
    for step, call in enumerate(calls):
        written = f"activation {owners[call.output.index]}"
        for source in call.inputs:
            read = f"activation {owners[source.index]}"
            if not {written, read} <= buffers.keys() or not buffers[written].first == step == buffers[read].last:
                continue
            if call.lead_bytes is not None:
                leads[written, read] = call.lead_bytes
            if source in call.in_place:
                same.append((written, read))
    return Overlaps(leads, same)


def _point_to(kind: str, place: int, count: int) -> str:
    """What the caller gives, in C: of several inputs, or outputs, a part of it."""
    return kind if count == 1 else f"{kind} + REFLOW_{kind.upper()}_{place}_OFFSET"


def _resolve(plan: ArenaPlan, owners: Mapping[int, int], ends: Mapping[int, str]) -> MemoryPlan:
    places = {}
    for index, owner in owners.items():
        if owner in ends or f"activation {owner}" in plan.offsets:
            places[index] = ends.get(owner) or plan.offsets[f"activation {owner}"]
    scratches = {
        int(name.removeprefix("scratch ")): offset
        for name, offset in plan.offsets.items()
        if name.startswith("scratch ")
    }
    return MemoryPlan(places, scratches, plan.size_bytes)


def _tensors(network: Network) -> list[Tensor]:
    return [*network.inputs, *(tensor for layer in network.layers for tensor in (*layer.inputs, layer.output))]


def find_owners(network: Network) -> dict[int, int]:
    """Each activation -> the one whose memory it is."""
    owners = {tensor.index: tensor.index for tensor in _tensors(network)}
    for layer in network.layers:
        if isinstance(layer.operation, Reshape):
            owners[layer.output.index] = owners[layer.inputs[0].index]
    return owners


def _share(calls: Sequence[Call], owners: dict[int, int], uses: dict[int, list[int]], ends: Mapping[int, str]) -> None:
    """Gives outputs the memory of inputs, in `owners` and `uses`."""
    for step, call in enumerate(calls):
        target = owners[call.output.index]
        for tensor in call.in_place:
            source = owners[tensor.index]
            if target in ends or source in ends or max(uses[source]) > step or call.output.size < tensor.size:
                continue  # a smaller output may lie there, too, and the rest is free (`_find_overlaps`)
            for index, owner in owners.items():
                if owner == target:
                    owners[index] = source
            uses[source] += uses.pop(target)
            break
