"""A network turned by 180 degrees computes the same, and its padding lies where XNNPACK's sparse kernels want it.

XNNPACK runs 1x1 convolutions sparse only behind stride-2 convolutions that are padded by (k - 1)/2 on every side
(XNNPACK src/subgraph.c, `xnn_check_nchw_compatibility`); TensorFlow's SAME pads even sizes by one more at the end. In
the mirror it is one more at the beginning, and there symmetric padding reads the very same pixels (see `windows`). So
the image is mirrored once, where it comes in, and every spatial kernel with it; an average over height and width does
not see the mirror, and what lies behind it stays as it is. Height and width are decided each on their own.
"""

import dataclasses
import functools

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.convolutions import (
    CONVOLUTIONS,
    HEIGHT,
    POOLINGS,
    WIDTH,
    Convolution,
    is_grouped,
    read_convolution,
    read_paddings,
    write_windows,
)
from reflow_tf.export.rewriting.flip import insert_flip
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.outcome import Applied, Refused
from reflow_tf.export.rewriting.region import (
    ELEMENTWISE,
    ORDERED,
    Region,
    find_pixel_constants,
    find_region,
    reverse_pixels,
)

CHANNELS = 3
_AXIS_NAMES = {HEIGHT: "height", WIDTH: "width"}
_MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Which axes are mirrored, or the reason why there is no choice."""

    mirrored: tuple[int, ...] = ()
    refused: Refused | None = None


def rotate(graph: EditableGraph) -> list[Applied | Refused]:
    """Mirrors height, width or both where that makes every stride-2 convolution's padding symmetric; writes it so."""
    region = find_region(graph)
    if region is None:
        return []
    convolutions = [
        read_convolution(graph, operator)
        for operator in region.members
        if graph.kind(operator) in CONVOLUTIONS | POOLINGS
    ]
    choice = _choose(graph, region, convolutions)
    if choice.refused:
        return [choice.refused]
    channels = _can_reverse_channels(graph, region) and len(choice.mirrored) == 2
    if choice.mirrored:
        _mirror_constants(graph, region, choice.mirrored, channels)
    changed = _write_all(graph, convolutions, choice.mirrored)
    if not choice.mirrored:
        return [_padding_statement(changed)] if changed else []
    _mirror_pads(graph, region, choice.mirrored)
    for entry in region.entries:
        readers = [operator for operator in graph.readers(entry) if graph.kind(operator) not in ORDERED]
        insert_flip(graph, entry, choice.mirrored, readers, channels)
    _turn_back(graph, region, choice.mirrored)
    return [_rotation_statement(graph, region, convolutions, choice.mirrored)]


def _choose(graph: EditableGraph, region: Region, convolutions: list[Convolution]) -> _Choice:
    mirrored = []
    for axis in (HEIGHT, WIDTH):
        upright = [found for each in convolutions if (found := _misfit(graph, each, axis, False))]
        if not upright:
            continue
        turned = [found for each in convolutions if (found := _misfit(graph, each, axis, True))]
        if turned:
            reason = (
                f"No orientation of the {_AXIS_NAMES[axis]} suits every layer. As it is: {_join(upright)}. "
                f"Mirrored: {_join(turned)}."
            )
            return _Choice(refused=Refused("rotation", turned[0][0], reason))
        mirrored.append(axis)
    if mirrored and region.obstacles:
        layer, obstacle = region.obstacles[0]
        return _Choice(refused=Refused("rotation", layer, f"The network cannot be mirrored at {layer}: {obstacle}."))
    return _Choice(tuple(mirrored))


def _misfit(graph: EditableGraph, convolution: Convolution, axis: int, mirrored: bool) -> tuple[str, str] | None:
    """(layer, what is wrong) where an orientation does not suit a convolution along an axis."""
    upright = convolution.along(axis)
    along = upright.mirror() if mirrored else upright
    if convolution.wants_symmetric and not along.is_symmetric():
        return convolution.name, (
            f"{convolution.name} (kernel {along.kernel}, stride {along.stride}, {along.size} -> {along.count} pixels) "
            f"reads {along.before} and {along.after} zeros before and after, symmetric padding is "
            f"{along.symmetric_padding}"
        )
    if mirrored and graph.kind(convolution.operator) in POOLINGS:
        if along.before != upright.before:
            return convolution.name, (
                f"the windows of pooling {convolution.name} lie {upright.before} before and {upright.after} after the "
                f"image, and poolings have no explicit padding"
            )
    elif mirrored and along.before < 0:
        return convolution.name, f"{convolution.name} leaves out its last {-along.before} pixels"
    return None


def _join(misfits: list[tuple[str, str]]) -> str:
    more = f" (and {len(misfits) - _MOST_NAMED} more)" if len(misfits) > _MOST_NAMED else ""
    return "; ".join(text for _, text in misfits[:_MOST_NAMED]) + more


def _can_reverse_channels(graph: EditableGraph, region: Region) -> bool:
    """Whether everything up to the first convolutions treats channels one by one, so that their kernels can undo it."""
    reversed_channels = set(region.entries)
    for operator in region.members:
        if not reversed_channels & set(graph.data_inputs(operator)):
            continue
        kind = graph.kind(operator)
        if kind == "CONV_2D":
            if graph.constant(operator.inputs[1]) is None or is_grouped(graph, operator):
                return False
        elif _pads_pixels(graph, operator) or (kind in ELEMENTWISE and len(graph.data_inputs(operator)) == 1):
            reversed_channels |= set(operator.outputs)
        else:
            return False
    return not reversed_channels & {index for _, index in region.turned_back}


def _pads_pixels(graph: EditableGraph, operator: schema.OperatorT) -> bool:
    """Whether an operator is a PAD that adds no channels: those it adds behind would belong in front."""
    paddings = read_paddings(graph, operator) if graph.kind(operator) == "PAD" else None
    return paddings is not None and not paddings[CHANNELS].any()


def _mirror_constants(graph: EditableGraph, region: Region, axes: tuple[int, ...], channels: bool) -> None:
    """Reverses kernels and per-pixel constants; with `channels`, also what sees the reversed channels of the input."""
    reversed_channels = set(region.entries) if channels else set()
    for operator in region.members:
        kind = graph.kind(operator)
        sees_channels = bool(reversed_channels & set(operator.inputs))
        if sees_channels and kind != "CONV_2D":
            reversed_channels |= set(operator.outputs)
        along = (*axes, CHANNELS) if sees_channels else axes
        slots = set(find_pixel_constants(graph, operator))
        if sees_channels:
            slots |= _find_channel_constants(graph, operator)
        for slot in sorted(slots):
            graph.change_constant(operator, slot, functools.partial(reverse_pixels, axes=along), f"mirror {along}")


def _find_channel_constants(graph: EditableGraph, operator: schema.OperatorT) -> set[int]:
    """The slots of a convolution or an elementwise operator that has something for each channel of its input."""
    constants = {slot: index for slot, index in enumerate(operator.inputs) if index >= 0 and graph.is_constant(index)}
    if graph.kind(operator) == "CONV_2D":
        constants = {1: operator.inputs[1]}
    elif graph.kind(operator) not in ELEMENTWISE:
        return set()
    return {slot for slot, index in constants.items() if max(graph.shape(index)[-1:], default=1) > 1}


def _write_all(graph: EditableGraph, convolutions: list[Convolution], mirrored: tuple[int, ...]) -> list[Convolution]:
    changed = []
    for convolution in convolutions:
        rows, columns = (
            along.mirror() if axis in mirrored else along
            for axis, along in ((HEIGHT, convolution.rows), (WIDTH, convolution.columns))
        )
        is_pooling = graph.kind(convolution.operator) in POOLINGS
        if not is_pooling and write_windows(graph, convolution, rows, columns, bool(mirrored)):
            changed.append(convolution)
    return changed


def _mirror_pads(graph: EditableGraph, region: Region, axes: tuple[int, ...]) -> None:
    for operator in region.members:
        if graph.kind(operator) != "PAD":
            continue
        paddings = read_paddings(graph, operator)
        if paddings is not None and any(paddings[axis][0] != paddings[axis][1] for axis in axes):
            graph.change_constant(operator, 1, lambda old: _swap(old, axes), f"swap {axes}")


def _swap(paddings: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    swapped = paddings.copy()
    for axis in axes:
        swapped[axis] = paddings[axis][::-1]
    return swapped


def _turn_back(graph: EditableGraph, region: Region, axes: tuple[int, ...]) -> None:
    for index in dict.fromkeys(index for _, index in region.turned_back):
        readers = [reader for reader, read in region.turned_back if read == index and reader is not None]
        if readers:
            insert_flip(graph, index, axes, readers)
        if (None, index) not in region.turned_back:
            continue
        # An output keeps its tensor: the network writes another one, of which the output is the mirror image.
        mirrored = graph.copy_value(index)
        producer = graph.producer(index)
        assert producer is not None, "an input is no mirrored output"
        producer.outputs = [mirrored if output == index else output for output in producer.outputs]
        graph.redirect(index, mirrored, graph.readers(index))
        insert_flip(graph, mirrored, axes, [], output=index)


def _padding_statement(changed: list[Convolution]) -> Applied:
    names = tuple(convolution.name for convolution in changed)
    return Applied(
        "padding", names, f"The padding of {len(names)} stride-2 convolutions is written out: (k - 1)/2 a side."
    )


def _rotation_statement(
    graph: EditableGraph, region: Region, convolutions: list[Convolution], axes: tuple[int, ...]
) -> Applied:
    strided = tuple(convolution.name for convolution in convolutions if convolution.wants_symmetric)
    kernels = sum(graph.kind(each.operator) in CONVOLUTIONS and each.rows.kernel > 1 for each in convolutions)
    turn = "turned by 180 degrees" if len(axes) == 2 else f"mirrored along its {_AXIS_NAMES[axes[0]]}"
    back = f" It is turned back in front of {len(region.turned_back)} operators." if region.turned_back else ""
    statement = (
        f"The image is {turn} inside the file, and {kernels} spatial kernels with it, so that the padding of "
        f"{len(strided)} stride-2 convolutions becomes (k - 1)/2 on every side.{back}"
    )
    return Applied("rotation", strided, statement)
