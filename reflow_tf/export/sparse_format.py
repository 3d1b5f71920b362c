"""TFLite's sparse tensor format: a tree of levels, one axis each, that is either walked whole or lists where it goes.

The format is `SparsityParameters` in tensorflow/lite/schema/schema.fbs: `traversal_order` says which axis each level
of the tree stands for. A DENSE level has every index of its axis below every node; a SPARSE_CSR level has, below node
n, the indices `array_indices[array_segments[n]:array_segments[n + 1]]`. The leaves, left to right, are the stored
values. LiteRT expands it in kernels/internal/utils/sparsity_format_converter.cc (`Populate`), which takes any order of
the axes and any mix of levels, and core/tools/verifier.cc (`VerifyAndCountElements`) says what a valid file must
satisfy.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from reflow_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Level:
    """One level of the tree.

    Attributes:
        axis: the axis of the dense tensor that this level walks.
        size: length of that axis.
        segments: None for a dense level; else (nodes above + 1,) unsigned or int32, where each node's indices begin
            and end.
        indices: None for a dense level; else one index into the axis for each node of this level.
    """

    axis: int
    size: int
    segments: np.ndarray | None = None
    indices: np.ndarray | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the two index arrays."""
        return sum(array.nbytes for array in (self.segments, self.indices) if array is not None)


@dataclasses.dataclass(frozen=True)
class SparseTensor:
    """A tensor in sparse form.

    Attributes:
        shape: shape of the dense tensor.
        levels: one for each axis, outermost first.
        values: the stored values, in the order of the leaves.
        block_map: the blocked axes, for files that store dense blocks (we read them, but never write them).
        block_sizes: length of each block, aligned with `block_map`; the levels then walk the axes in whole blocks.
    """

    shape: tuple[int, ...]
    levels: tuple[Level, ...]
    values: np.ndarray
    block_map: tuple[int, ...] = ()
    block_sizes: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of values and indices, without the tables that hold them."""
        return self.values.nbytes + sum(level.size_bytes for level in self.levels)


@dataclasses.dataclass(frozen=True)
class Layout:
    """An order of the axes, outermost first, and which of the levels list their indices."""

    order: tuple[int, ...]
    compressed: tuple[int, ...]


def encode(dense: np.ndarray) -> SparseTensor:
    """Encodes an array in the layout that takes the fewest bytes.

    Both 0.0 and -0.0 count as zero. One value is stored even if all are zero: LiteRT takes a tensor with an empty
    buffer for a variable one, and DENSIFY then refuses it (core/interpreter_builder.cc, kernels/densify.cc).

    Args:
        dense: rank 1 or higher, at least one element.
    """
    nonzero = dense != 0
    if not nonzero.any():
        nonzero[(0,) * dense.ndim] = True
    census = _count(nonzero)
    layout = min(_layouts(dense.ndim), key=lambda candidate: _measure(candidate, census, dense.itemsize))
    return encode_as(dense, layout, nonzero)


def encode_as(dense: np.ndarray, layout: Layout, nonzero: np.ndarray | None = None) -> SparseTensor:
    """Encodes an array in a given layout; `nonzero` marks what must be stored (default: everything that is not 0)."""
    nonzero = (dense != 0) if nonzero is None else nonzero
    # Nodes are numbered by the row-major index of their path from the root, so that parents and children are a
    # division apart.
    leaves = np.flatnonzero(np.ascontiguousarray(nonzero.transpose(layout.order)))
    nodes = np.zeros(1, np.int64)
    below = dense.size
    levels = []
    for depth, axis in enumerate(layout.order):
        size = dense.shape[axis]
        below //= size
        if depth not in layout.compressed:
            nodes = (nodes[:, np.newaxis] * size + np.arange(size)).ravel()
            levels.append(Level(axis, size))
            continue
        children = leaves if below == 1 else _drop_repeats(leaves // below)
        parents = children // size
        ends = np.searchsorted(parents, nodes, side="right")
        levels.append(Level(axis, size, _narrow(np.append(0, ends)), _narrow(children - parents * size)))
        nodes = children
    values = dense.transpose(layout.order).reshape(-1)[nodes]
    return SparseTensor(dense.shape, tuple(levels), values)


def decode(tensor: SparseTensor) -> np.ndarray:
    """Expands a sparse tensor.

    Written from the description of the format and not as the inverse of `encode`, so that one can check the other: it
    walks the tree downwards and carries the coordinates of every node along.

    Raises:
        InputError: segments, indices or values contradict each other.
    """
    coordinates = np.zeros((len(tensor.levels), 1), np.int64)
    for level in tensor.levels:
        num_nodes = coordinates.shape[1]
        if level.segments is None or level.indices is None:
            parents = np.repeat(np.arange(num_nodes), level.size)
            indices = np.tile(np.arange(level.size), num_nodes)
        else:
            segments = level.segments.astype(np.int64)
            counts = segments[1:] - segments[:-1]
            if len(counts) != num_nodes or counts.min(initial=0) < 0 or counts.sum() != len(level.indices):
                raise InputError(
                    f"The segments of a sparse level must cut its indices into one run for each of {num_nodes} nodes. "
                    f"Received: {len(counts)} runs over {len(level.indices)} indices"
                )
            parents = np.repeat(np.arange(num_nodes), counts)
            indices = level.indices.astype(np.int64)
        coordinates = coordinates[:, parents]
        coordinates[level.axis] = indices
    return _place(tensor, coordinates)


def _place(tensor: SparseTensor, coordinates: np.ndarray) -> np.ndarray:
    rank = len(tensor.shape)
    position = coordinates[:rank]
    for block, (axis, size) in enumerate(zip(tensor.block_map, tensor.block_sizes, strict=True)):
        position[axis] = position[axis] * size + coordinates[rank + block]
    inside = all(
        row.min(initial=0) >= 0 and row.max(initial=0) < n for row, n in zip(position, tensor.shape, strict=True)
    )
    if position.shape[1] != len(tensor.values) or not inside:
        raise InputError(
            f"A sparse tensor of shape {tensor.shape} must have one value for each leaf, at an index within the shape. "
            f"Received: {len(tensor.values)} values for {position.shape[1]} leaves"
        )
    dense = np.zeros(tensor.shape, tensor.values.dtype)
    dense[tuple(position)] = tensor.values
    return dense


@dataclasses.dataclass(frozen=True)
class _Census:
    """Shape, number of non-zero elements, and for each axis the indices at which anything is non-zero."""

    shape: tuple[int, ...]
    num_nonzero: int
    used: tuple[np.ndarray, ...]


def _count(nonzero: np.ndarray) -> _Census:
    axes = range(nonzero.ndim)
    used = tuple(np.flatnonzero(nonzero.any(axis=tuple(other for other in axes if other != axis))) for axis in axes)
    return _Census(nonzero.shape, int(np.count_nonzero(nonzero)), used)


def _measure(layout: Layout, census: _Census, itemsize: int) -> int:
    """Bytes of values and indices in a layout whose first level, last level or both are compressed."""
    outer, inner = layout.order[0], layout.order[-1]
    num_nodes = math.prod(census.shape[axis] for axis in layout.order[1:-1])
    size_bytes = 0
    if 0 in layout.compressed:
        kept = census.used[outer]
        num_nodes *= len(kept)
        size_bytes += len(kept) * _width(kept[-1]) + 2 * _width(len(kept))
    else:
        num_nodes *= census.shape[outer]
    last = len(layout.order) - 1
    if last > 0 and last in layout.compressed:
        num_values = census.num_nonzero
        size_bytes += num_values * _width(census.used[inner][-1]) + (num_nodes + 1) * _width(num_values)
    else:
        num_values = num_nodes * (census.shape[inner] if last > 0 else 1)
    return size_bytes + num_values * itemsize


def _layouts(rank: int) -> Iterator[Layout]:
    """Natural order, but for one axis moved innermost or outermost, where it is compressed; or one of each."""
    axes = tuple(range(rank))
    for axis in reversed(axes):  # the natural order comes first, so it wins a tie
        others = tuple(other for other in axes if other != axis)
        yield Layout((*others, axis), (rank - 1,))
        yield Layout((axis, *others), (0,))
        for first in others:
            between = tuple(other for other in others if other != first)
            yield Layout((first, *between, axis), (0, rank - 1))


def _drop_repeats(ordered: np.ndarray) -> np.ndarray:
    return ordered[np.append(True, ordered[1:] != ordered[:-1])]


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """The narrowest type that schema.fbs's SparseIndexVector has: uint8, uint16 or int32."""
    return numbers.astype({1: np.uint8, 2: np.uint16, 4: np.int32}[_width(int(numbers.max()))])


def _width(largest: int) -> int:
    if largest < 1 << 8:
        return 1
    return 2 if largest < 1 << 16 else 4
