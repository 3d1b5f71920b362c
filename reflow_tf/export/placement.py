"""Where the kernels of a model lie in its .tflite file: told by their values, since the converter renames tensors.

A batch norm that was folded in leaves each output of a kernel times a factor; exact rewriting mirrors spatial kernels.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.constants import read_tensor

_TYPES = frozenset({schema.TensorType.FLOAT32, schema.TensorType.FLOAT16, schema.TensorType.INT8})
# Of the largest weight of an output: int8 has steps of 1/127.
_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Place:
    """A constant of a file that holds a kernel.

    Attributes:
        tensor: its index, in the main graph and in `OperatorGraph.values`.
        values: that index, and those of what DEQUANTIZE makes of it, which are constants as well.
        buffer: index of the buffer with its numbers.
        shape: in the file.
        dtype: in the file.
        scale_size_bytes: of the factors of int8, which sparse storage writes twice: before and behind DENSIFY.
    """

    tensor: int
    values: tuple[int, ...]
    buffer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    scale_size_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of its numbers, stored dense."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


def find_places(content: bytes, kernels: Mapping[str, np.ndarray]) -> dict[str, tuple[Place, ...]]:
    """Path -> where the kernel lies: nowhere, or at several places where one kernel serves before several batch norms.

    Args:
        content: a .tflite file with dense weights.
        kernels: path -> kernel in canonical layout (output, *spatial, input).

    Raises:
        InputError: `content` is not a .tflite file.
    """
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    unpacked = defaultdict(list)
    for operator in graph.operators:
        if flatbuffer.operator_kind(model, operator) == "DEQUANTIZE":
            unpacked[int(operator.inputs[0])].append(int(operator.outputs[0]))
    found: dict[str, tuple[Place, ...]] = dict.fromkeys(kernels, ())
    for index, tensor in enumerate(graph.tensors):
        if tensor.type not in _TYPES or tensor.shape is None or len(tensor.shape) < 2 or tensor.sparsity is not None:
            continue
        if model.buffers[tensor.buffer].data is None:
            continue
        stored = read_tensor(model, tensor)
        name = (tensor.name or b"").decode(errors="replace")
        # Kernels of equal values are told apart by the name, and if that says nothing, each gets one place.
        for path in sorted(kernels, key=lambda path: (path.rpartition("/")[0] not in name, bool(found[path]))):
            if holds(stored, kernels[path]):
                values, scales = (index, *unpacked[index]), _measure_scales(tensor)
                found[path] += (Place(index, values, tensor.buffer, stored.shape, stored.dtype, scales),)
                break
    return found


def holds(stored: np.ndarray, kernel: np.ndarray) -> bool:
    """Whether a constant of a file is this kernel (output, *spatial, input), each output times some factor."""
    if stored.size != kernel.size:
        return False
    return any(_is_scaled(rows, other) for rows in _rows(stored, len(kernel)) for other in _orientations(kernel))


def _measure_scales(tensor: schema.TensorT) -> int:
    quantization = tensor.quantization
    vectors = () if quantization is None else (quantization.scale, quantization.zeroPoint)
    return sum(np.asarray(vector).nbytes for vector in vectors if vector is not None)


def _rows(stored: np.ndarray, num_outputs: int) -> Iterator[np.ndarray]:
    """A constant as one row an output, (output, everything else): outputs come first, or last in depthwise kernels."""
    if stored.shape[0] == num_outputs:
        yield stored.reshape(num_outputs, -1)
    if stored.shape[-1] == num_outputs:
        yield np.moveaxis(stored, -1, 0).reshape(num_outputs, -1)


def _orientations(kernel: np.ndarray) -> Iterator[np.ndarray]:
    """One row an output, upright and in all ways that `export.rewriting` turns a kernel."""
    views = [kernel]
    if kernel.ndim == 4 and kernel.shape[1:3] != (1, 1):
        views += [kernel[:, ::-1], kernel[:, :, ::-1], kernel[:, ::-1, ::-1], kernel[:, ::-1, ::-1, ::-1]]
    for view in views:
        yield view.reshape(len(kernel), -1)


def _is_scaled(rows: np.ndarray, kernel: np.ndarray) -> bool:
    rows, kernel = rows.astype(np.float32), kernel.astype(np.float32)
    strongest = np.abs(kernel).argmax(axis=1)[:, np.newaxis]
    anchors = np.take_along_axis(kernel, strongest, axis=1)
    factors = np.divide(np.take_along_axis(rows, strongest, axis=1), anchors, out=anchors * 0, where=anchors != 0)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    return bool(factors.any() and (np.abs(rows - factors * kernel) <= _TOLERANCE * largest).all())
