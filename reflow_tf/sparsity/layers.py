"""What pruning needs to know of one kernel, with no framework object inside."""

import dataclasses
import enum
import math

import numpy as np


class Kind(enum.StrEnum):
    """What computation a kernel takes part in; targets and reports speak in these words."""

    CONV = "conv"
    POINTWISE_CONV = "pointwise_conv"  # 1x1, stride 1, ungrouped, two spatial axes: what XNNPACK can run sparse
    HEAD_CONV = "head_conv"  # a classifier's 1x1 convolution, which exact rewriting makes a fully connected operator
    GROUPED_CONV = "grouped_conv"
    DEPTHWISE_CONV = "depthwise_conv"
    TRANSPOSED_CONV = "transposed_conv"
    DENSE = "dense"
    MAP_DENSE = "dense_on_maps"  # of pixels or squeeze-and-excitation: exact rewriting makes 1x1 convolutions of them
    RECURRENT = "recurrent"


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One prunable kernel.

    The *canonical layout* is (output, *spatial, input), the order in which TFLite stores filters (OHWI). Patterns,
    masks and the checks of the exported file all speak in it, so that 'along the input channels' means one thing.

    Attributes:
        path: where the kernel hangs in the model, e.g. `block_1_expand/kernel`; unique within the model.
        kind: what the kernel computes.
        shape: the framework's shape of the kernel.
        output_axes: axes of `shape` that number the outputs. More than one is flattened in this order.
        input_axes: axes of `shape` that are summed over besides the spatial ones. Empty for depthwise kernels.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    output_axes: tuple[int, ...]
    input_axes: tuple[int, ...]

    def __post_init__(self) -> None:
        named = self.output_axes + self.input_axes
        if len(set(named)) != len(named) or any(axis not in range(len(self.shape)) for axis in named):
            raise ValueError(
                f"{self.path}: output_axes and input_axes must be disjoint axes of the shape {self.shape}. "
                f"Received: output_axes={self.output_axes}, input_axes={self.input_axes}"
            )

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """The axes of `shape` that are neither output nor input."""
        return tuple(a for a in range(len(self.shape)) if a not in self.output_axes + self.input_axes)

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """(output, *spatial, input)."""
        outputs = math.prod(self.shape[a] for a in self.output_axes)
        inputs = math.prod(self.shape[a] for a in self.input_axes)
        return (outputs, *(self.shape[a] for a in self.spatial_axes), inputs)

    def to_canonical(self, kernel: np.ndarray) -> np.ndarray:
        """Kernel of `shape` -> array of `canonical_shape`."""
        order = self.output_axes + self.spatial_axes + self.input_axes
        return kernel.transpose(order).reshape(self.canonical_shape)

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """Array of `canonical_shape` -> array of `shape`: the inverse of `to_canonical`."""
        order = self.output_axes + self.spatial_axes + self.input_axes
        unflattened = array.reshape([self.shape[a] for a in order])
        return unflattened.transpose(np.argsort(order))


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Something that is not pruned, and why."""

    path: str
    reason: str
