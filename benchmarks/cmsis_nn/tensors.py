"""What an int8 .tflite file says in numbers: tensors, and padding as a number of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reflow_tf.export import flatbuffer
from reflow_tf.targets.operators import Operator


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        shape: as the file has it.
        data: of a constant, else None.
        scales: float64, one or one per channel.
        zero_point: stored value of 0.
    """

    shape: tuple[int, ...]
    data: np.ndarray | None
    scales: np.ndarray
    zero_point: int


def read_tensors(content: bytes) -> list[Tensor]:
    """The tensors of the main graph."""
    model = flatbuffer.parse(content)
    tensors = []
    for tensor in model.subgraphs[0].tensors:
        data, quantization = model.buffers[tensor.buffer].data, tensor.quantization
        known = quantization is not None and quantization.scale is not None and len(quantization.scale)
        scales = np.asarray(quantization.scale, np.float64) if known else np.ones(1)
        zero_point = int(quantization.zeroPoint[0]) if known else 0
        shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
        constant = data is not None and len(data) > 0
        values = np.frombuffer(bytes(data), flatbuffer.NUMPY_TYPES[tensor.type]).reshape(shape) if constant else None
        tensors.append(Tensor(shape, values, scales, zero_point))
    return tensors


def padding_before(
    operator: Operator, source: Sequence[int], target: Sequence[int], window: Sequence[int]
) -> tuple[int, int]:
    """Rows above and columns to the left; those below and to the right follow from the size of the output."""
    if operator.attributes["padding"] == "VALID":
        return 0, 0
    strides, dilations = operator.attributes["strides"], operator.attributes.get("dilations", (1, 1))
    totals = [
        max((target[axis + 1] - 1) * strides[axis] + (window[axis] - 1) * dilations[axis] + 1 - source[axis + 1], 0)
        for axis in (0, 1)
    ]
    return totals[0] // 2, totals[1] // 2
