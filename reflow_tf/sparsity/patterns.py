"""Patterns: what shape zeros may take.

A pattern cuts a kernel in canonical layout (output, *spatial, input) into *groups* of weights that live and die
together, and keeps the groups of the highest mean score. The number of zeros is exact, and equal scores are broken by
position: of two groups of one score the later one is kept, so one input gives one mask on every machine.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.sparsity.layers import Kind, LayerSpec


class Pattern(Protocol):
    """What shape zeros may take. All arrays are in canonical layout (output, *spatial, input)."""

    def pool(self, scores: np.ndarray) -> np.ndarray:
        """Gives every weight its group's mean score, so that an allocation ranks whole groups. Same shape and dtype."""
        ...

    def select(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Boolean mask, True = kept, whose share of zeros is the one nearest to `sparsity` that the pattern admits."""
        ...

    def admits(self, mask: np.ndarray) -> bool:
        """Whether the zeros of `mask` have this shape."""
        ...

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Why no kernel of this kind can take the pattern (it is then skipped), or None."""
        ...

    def check(self, spec: LayerSpec) -> None:
        """Raises InputError where the kernel's size, not its kind, is what stands against the pattern."""
        ...


def drop_lowest(scores: np.ndarray, num_dropped: int) -> np.ndarray:
    """Boolean array of the shape of `scores`, False at exactly `num_dropped` of the lowest. O(n); ties go in order."""
    flat = scores.ravel()
    keep = np.ones(flat.size, bool)
    if num_dropped >= flat.size:
        return np.zeros_like(scores, bool)
    if num_dropped > 0:
        threshold = np.partition(flat, num_dropped - 1)[num_dropped - 1]
        keep = flat > threshold
        num_rescued = int(keep.size - np.count_nonzero(keep)) - num_dropped
        if num_rescued:
            keep[np.flatnonzero(flat == threshold)[-num_rescued:]] = True
    return keep.reshape(scores.shape)


def count_zeros(sparsity: float, num_weights: int) -> int:
    """The whole number of zeros that a sparsity stands for: nearest, halves to even."""
    return round(sparsity * num_weights)


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Zeros anywhere: every weight is its own group."""

    def pool(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def select(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        return drop_lowest(scores, count_zeros(sparsity, scores.size))

    def admits(self, mask: np.ndarray) -> bool:
        return True

    def obstacle(self, spec: LayerSpec) -> str | None:
        return None

    def check(self, spec: LayerSpec) -> None:
        pass

    def __str__(self) -> str:
        return "unstructured"


@dataclasses.dataclass(frozen=True)
class NM:
    """At most `n` weights KEPT of every `m` neighbours along the input channels (NVIDIA's meaning of N:M).

    TFMOT's `sparsity_m_by_n=(m, n)` counts zeros instead; the two agree only at half density.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise InputError(f"--pattern=nm:N,M needs 0 < N < M (N weights kept of M). Received: {self}")

    @property
    def sparsity(self) -> float:
        """The only sparsity that the pattern has: 1 - n/m."""
        return 1 - self.n / self.m

    def pool(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def select(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        if not math.isclose(sparsity, self.sparsity, abs_tol=1e-9):
            raise InputError(f"The pattern {self} has sparsity {self.sparsity:g} and no other. Received: {sparsity:g}")
        groups = self._groups(scores)
        # A stable sort drops the earlier of two equal scores, as `drop_lowest` does.
        lowest = np.argsort(groups, axis=-1, kind="stable")[..., : self.m - self.n]
        keep = np.ones_like(groups, bool)
        np.put_along_axis(keep, lowest, False, axis=-1)
        return keep.reshape(scores.shape)

    def admits(self, mask: np.ndarray) -> bool:
        return mask.shape[-1] % self.m == 0 and bool(np.all(self._groups(mask).sum(axis=-1) <= self.n))

    def obstacle(self, spec: LayerSpec) -> str | None:
        if spec.kind is Kind.DEPTHWISE_CONV:
            return f"{self} groups input channels, and a depthwise filter has one"
        return None

    def check(self, spec: LayerSpec) -> None:
        num_inputs = spec.canonical_shape[-1]
        if num_inputs % self.m:
            raise InputError(
                f"The pattern {self} needs a number of input channels that {self.m} divides; leave the layer out with "
                f"--prunable=REGEX. Received: {num_inputs} input channels at {spec.path}, shape {spec.shape}"
            )

    def _groups(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(*array.shape[:-1], -1, self.m)

    def __str__(self) -> str:
        return f"nm:{self.n},{self.m}"


@dataclasses.dataclass(frozen=True)
class Block:
    """Rectangles of `outputs` x `inputs` weights at one spatial position; those at the edge may be smaller."""

    outputs: int
    inputs: int

    def __post_init__(self) -> None:
        if self.outputs < 1 or self.inputs < 1:
            raise InputError(f"--pattern=block:OxI needs two whole numbers of at least 1. Received: {self}")

    def pool(self, scores: np.ndarray) -> np.ndarray:
        return self._spread(self._sums(scores) / self._sizes(scores.shape), scores.shape).astype(scores.dtype)

    def select(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        sizes = self._sizes(scores.shape)
        means = self._sums(scores) / sizes
        keep = drop_groups(means, np.broadcast_to(sizes, means.shape), count_zeros(sparsity, scores.size))
        return self._spread(keep, scores.shape)

    def admits(self, mask: np.ndarray) -> bool:
        kept = self._sums(mask.astype(np.int64))
        return bool(np.all((kept == 0) | (kept == self._sizes(mask.shape))))

    def obstacle(self, spec: LayerSpec) -> str | None:
        return None

    def check(self, spec: LayerSpec) -> None:
        pass

    def _starts(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(0, shape[0], self.outputs), np.arange(0, shape[-1], self.inputs)

    def _sums(self, array: np.ndarray) -> np.ndarray:
        rows, columns = self._starts(array.shape)
        wide = np.int64 if array.dtype.kind in "iub" else np.float64
        return np.add.reduceat(np.add.reduceat(array, rows, axis=0, dtype=wide), columns, axis=-1)

    def _sizes(self, shape: tuple[int, ...]) -> np.ndarray:
        rows, columns = self._starts(shape)
        heights, widths = np.diff(rows, append=shape[0]), np.diff(columns, append=shape[-1])
        return heights.reshape(-1, *[1] * (len(shape) - 1)) * widths

    def _spread(self, blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        tall = np.repeat(blocks, self.outputs, axis=0)[: shape[0]]
        return np.repeat(tall, self.inputs, axis=-1)[..., : shape[-1]]

    def __str__(self) -> str:
        return f"block:{self.outputs}x{self.inputs}"


@dataclasses.dataclass(frozen=True)
class Channel:
    """Whole output channels."""

    def pool(self, scores: np.ndarray) -> np.ndarray:
        means = self._rows(scores).mean(axis=1, dtype=np.float64).astype(scores.dtype)
        return np.broadcast_to(means.reshape(-1, *[1] * (scores.ndim - 1)), scores.shape)

    def select(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        means = self._rows(scores).mean(axis=1, dtype=np.float64)
        keep = drop_lowest(means, count_zeros(sparsity, means.size))
        return np.broadcast_to(keep.reshape(-1, *[1] * (scores.ndim - 1)), scores.shape).copy()

    def admits(self, mask: np.ndarray) -> bool:
        rows = self._rows(mask)
        return bool(np.all(rows == rows[:, :1]))

    def obstacle(self, spec: LayerSpec) -> str | None:
        return None

    def check(self, spec: LayerSpec) -> None:
        pass

    def _rows(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[0], -1)

    def __str__(self) -> str:
        return "channel"


def drop_groups(scores: np.ndarray, sizes: np.ndarray, num_dropped: int) -> np.ndarray:
    """`drop_lowest` for groups of different sizes: drops the lowest groups until the dropped weights come nearest.

    Args:
        scores: one score a group, any shape.
        sizes: weights in each group, same shape.
        num_dropped: the number of *weights* to drop.
    """
    if sizes.min() == sizes.max():
        return drop_lowest(scores, round(num_dropped / int(sizes.flat[0])))
    order = np.argsort(scores, axis=None, kind="stable")
    dropped_after = np.concatenate([[0], np.cumsum(sizes.ravel()[order])])
    num_groups = int(np.argmin(np.abs(dropped_after - num_dropped)))
    keep = np.ones(scores.size, bool)
    keep[order[:num_groups]] = False
    return keep.reshape(scores.shape)


_SPELLINGS: tuple[tuple[str, Callable[..., Pattern]], ...] = (
    (r"unstructured", Unstructured),
    (r"nm:(\d+),(\d+)", NM),
    (r"block:(\d+)x(\d+)", Block),
    (r"channel", Channel),
)


def parse(text: str) -> Pattern:
    """The pattern that a flag or a plan names; the inverse of `str(pattern)`.

    Raises:
        InputError: the text names no pattern.
    """
    for spelling, pattern in _SPELLINGS:
        if match := re.fullmatch(spelling, text):
            return pattern(*map(int, match.groups()))
    raise InputError(
        "--pattern must be unstructured, nm:N,M (N kept of M, e.g. nm:2,4), block:OxI (output x input, e.g. block:4x1) "
        f"or channel; reflow_tf.tools.prune takes auto as well. Received: {text}"
    )
