"""What a target judges: operators and the values between them, as a file spells them, without the weights."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

ABSENT = -1  # in `Operator.inputs`: an optional input that is not given


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the non-zeros of a 1x1 kernel lie over neighbouring output channels, as XNNPACK's packing counts them.

    Attributes:
        rows: output channels in a block: from channel 0 on, each input channel by itself.
        num_blocks: that hold a non-zero; what is left of the output channels at the end fills none.
        num_nonzeros: in these blocks.
    """

    rows: int
    num_blocks: int
    num_nonzeros: int


def find_blocks(nonzero: np.ndarray) -> tuple[Blocks, ...]:
    """The blocks of 2 and of 4 output channels of a kernel (output, ...), True where it is not zero."""
    matrix = nonzero.reshape(len(nonzero), -1)
    found = []
    for rows in (2, 4):
        whole = matrix[: len(matrix) // rows * rows]
        filled = whole.reshape(-1, rows, matrix.shape[1]).any(axis=1)
        found.append(Blocks(rows, int(np.count_nonzero(filled)), int(np.count_nonzero(whole))))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor: something that an operator computes, an input, or a constant.

    Attributes:
        index: position in `OperatorGraph.values`.
        name: as the file has it.
        shape: fixed sizes; () for a scalar.
        dtype: as NumPy spells it: 'float32', 'float16', 'int8', 'int32', ...
        constant: known before the first inference. What DENSIFY, DEQUANTIZE or TFLM's DECODE make of a constant is one,
            too, with that constant's zeros: those operators are not in the graph.
        storage: how the file holds a constant: 'dense'; 'sparse': as TFLite's sparse tensor, for DENSIFY; 'bitmap': for
            TFLM's DECODE; '' otherwise.
        num_zeros: zeros of a constant; 0 otherwise.
        num_negative_zeros: those of them that are -0.0.
        stored_dtype: type of a constant in the file: 'float16' where DEQUANTIZE makes it 'float32'; '' otherwise.
        blocks: of the weights of a 1x1 convolution or a Dense layer: how their non-zeros lie over 2 and 4 output
            channels; () of anything else.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    storage: str = ""
    num_zeros: int = 0
    num_negative_zeros: int = 0
    stored_dtype: str = ""
    blocks: tuple[Blocks, ...] = ()

    @property
    def has_blocks(self) -> bool:
        """Whether it can be the weights of a matrix product, by its shape and its type."""
        middle = self.shape[1:-1]
        return len(self.shape) in (2, 4) and self.dtype.startswith("float") and set(middle) <= {1}

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclasses.dataclass(frozen=True)
class Operator:
    """One step of a network.

    Attributes:
        index: position in `OperatorGraph.operators`, in the order of execution.
        kind: TFLite's name: 'CONV_2D', 'DEPTHWISE_CONV_2D', 'MEAN', ...
        name: the layer as a person knows it.
        inputs: indices into `OperatorGraph.values`, in TFLite's order (data, weights, bias); `ABSENT` where not given.
        outputs: indices into `OperatorGraph.values`.
        attributes: what the file says besides, under these names where the kind has them: padding ('SAME', 'VALID'),
            strides, dilations (height, width), window (height, width), depth_multiplier, activation ('NONE', 'RELU',
            'RELU6', ...), axes, keep_dims, paddings (((before, after), ...) of PAD), perm, axis, keep_num_dims,
            weights_format, new_shape, align_corners, half_pixel_centers, block_size.
    """

    index: int
    kind: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class OperatorGraph:
    """A network as operators in the order of execution.

    Attributes:
        operators: all of them but those that only unpack constants (DENSIFY, DECODE, DEQUANTIZE of a constant).
        values: every tensor that an operator, the input or the output names.
        inputs: indices of the values that are fed.
        outputs: indices of the values that are read.
        allows_float16: the file says that it may be computed in float16.
    """

    operators: tuple[Operator, ...]
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    allows_float16: bool = False

    @property
    def stores_sparse_floats(self) -> bool:
        """Whether the file holds weights as TFLite's sparse tensors that are computed with in floats."""
        return any(value.storage == "sparse" and value.dtype.startswith("float") for value in self.values)


def output_dtype(operator: Operator, graph: OperatorGraph) -> str:
    """What an operator computes in; '' where it gives nothing."""
    return graph.values[operator.outputs[0]].dtype if operator.outputs else ""


def name_first(operators: Sequence[Operator]) -> str:
    """The name of the first, and how many more there are: 'conv1 and 2 more'."""
    first, *others = operators
    return f"{first.name} and {len(others)} more" if others else first.name


def group_by_kind(operators: Iterable[Operator]) -> dict[str, list[Operator]]:
    """Kind -> operators of it, kinds in the order in which they first come."""
    groups: dict[str, list[Operator]] = {}
    for operator in operators:
        groups.setdefault(operator.kind, []).append(operator)
    return groups
