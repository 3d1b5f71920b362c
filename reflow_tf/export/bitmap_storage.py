"""Weights that are mostly zeros, stored as TFLM's bitmaps with a DECODE operator wherever that makes the file smaller.

TFLM expands a bitmap at every inference, right before the operator that reads it, into a buffer that lives until that
operator has run: one DECODE for each reader, as compression/decode_insert.py of tflite-micro places them. Flash
shrinks; RAM grows by the largest expanded tensor, in the arena or in memory of its own.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import bitmap_format, flatbuffer
from reflow_tf.export.bitmap_format import Bitmap
from reflow_tf.export.constants import read_tensor
from reflow_tf.export.operators import read_operators
from reflow_tf.export.weight_tensors import group_weights

_OPERATOR = schema.BuiltinOperator
# Operators of TFLM whose filter may be computed at run time. Measured in tflite-micro 0.dev20261023: outputs bit-equal.
_READERS = {
    schema.TensorType.INT8: frozenset({_OPERATOR.CONV_2D, _OPERATOR.DEPTHWISE_CONV_2D, _OPERATOR.FULLY_CONNECTED})
}
# A file pads each buffer to 16 bytes: two buffers can shift by this much between the measurement and the file.
_PADDING_BYTES = 32
_ALIGNMENT_BYTES = 16  # of what TFLM allocates


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """Tensors of one buffer, whatever their shapes, and that buffer as a bitmap."""

    group: tuple[int, ...]
    encoded: Bitmap
    saved_bytes: int


def store_bitmaps(content: bytes) -> bytes:
    """Stores each int8 filter of a .tflite file as a bitmap if that makes the file smaller; the result is never larger.

    Args:
        content: a .tflite file with dense weights.

    Returns:
        The new file, which only TFLM can run, or the very same bytes where nothing is gained.

    Raises:
        InputError: `content` is not a .tflite file.
    """
    candidates = [candidate for candidate in _find_candidates(content) if candidate.saved_bytes > 0]
    if not candidates:
        return content
    # What tables cost is seen where all of them are there; a tensor that saves less stays dense.
    changed_size = len(flatbuffer.serialize(flatbuffer.parse(content), size_hint=len(content)))
    saved = sum(candidate.saved_bytes for candidate in candidates)
    num_tensors = sum(len(candidate.group) for candidate in candidates)
    overhead = (len(_write(content, candidates)) - changed_size + saved) / num_tensors
    worthwhile = [each for each in candidates if each.saved_bytes > len(each.group) * overhead + _PADDING_BYTES]
    smaller = _write(content, worthwhile)
    return smaller if len(smaller) < len(content) else content


def count_decoded_bytes(content: bytes) -> int:
    """Bytes of memory that the DECODEs of one operator need, the largest such: what they may have beside the arena.

    Raises:
        InputError: `content` is not a .tflite file.
    """
    graph = read_operators(content)
    values = ([graph.values[index] for index in operator.inputs if index >= 0] for operator in graph.operators)
    bitmaps = ((_align(value.num_elements) for value in of_one if value.storage == "bitmap") for of_one in values)
    return max(map(sum, bitmaps), default=0)


def _align(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _find_candidates(content: bytes) -> list[_Candidate]:
    model = flatbuffer.parse(content)
    found = []
    for forms in group_weights(model, _READERS):
        group = tuple(index for form in forms for index in form)
        tensors = [model.subgraphs[0].tensors[index] for index in group]
        if all(map(_has_zero_at_zero, tensors)):
            dense = read_tensor(model, tensors[0])
            encoded = bitmap_format.encode(dense)
            found.append(_Candidate(group, encoded, dense.nbytes - encoded.size_bytes))
    return found


def _has_zero_at_zero(tensor: schema.TensorT) -> bool:
    """DECODE fills up with the zero point, per channel: it must be what the bitmap leaves out."""
    points = None if tensor.quantization is None else tensor.quantization.zeroPoint
    return points is None or not np.any(points)


def _write(content: bytes, chosen: Sequence[_Candidate]) -> bytes:
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    parts: dict[int, tuple[int, int]] = {}
    for candidate in chosen:
        parts |= _store(model, candidate)
    left = Counter(int(index) for operator in graph.operators for index in operator.inputs if int(index) in parts)
    operators, code = [], _decode_code(model) if chosen else -1
    for operator in graph.operators:
        for slot, index in enumerate(map(int, operator.inputs)):
            if index in parts:
                left[index] -= 1
                target = _expanded(graph, index, is_last=not left[index])
                operator.inputs[slot] = target
                operators.append(_decode(code, parts[index], target))
        operators.append(operator)
    graph.operators = operators
    return flatbuffer.serialize(model, size_hint=len(content))


def _store(model: schema.ModelT, candidate: _Candidate) -> dict[int, tuple[int, int]]:
    """Puts the bitmap in the place of the dense buffer; returns dense tensor -> its bitmap's two tensors.

    Each has two of its own, though on the same buffers: they tell which DECODEs expand the same tensor.
    """
    graph = model.subgraphs[0]
    encoded = candidate.encoded
    buffers = graph.tensors[candidate.group[0]].buffer, len(model.buffers)
    model.buffers[buffers[0]].data = encoded.bits  # nothing else reads that buffer
    model.buffers.append(schema.BufferT(data=encoded.ancillary))
    parts = {}
    for index in candidate.group:
        for buffer, data in zip(buffers, (encoded.bits, encoded.ancillary), strict=True):
            shape = np.array([data.size], np.int32)
            graph.tensors.append(schema.TensorT(shape=shape, type=schema.TensorType.UINT8, buffer=buffer))
        parts[index] = (len(graph.tensors) - 2, len(graph.tensors) - 1)
    return parts


def _expanded(graph: schema.SubGraphT, index: int, is_last: bool) -> int:
    """A tensor for what DECODE computes: the dense one itself for its last reader, and copies for those before."""
    if not is_last:
        graph.tensors.append(copy.copy(graph.tensors[index]))
        index = len(graph.tensors) - 1
    graph.tensors[index].buffer = 0
    return index


def _decode(code: int, parts: tuple[int, int], target: int) -> schema.OperatorT:
    return schema.OperatorT(
        opcodeIndex=code, inputs=np.array(parts, np.int32), outputs=np.array([target], np.int32), customOptions=None
    )


def _decode_code(model: schema.ModelT) -> int:
    model.operatorCodes.append(
        schema.OperatorCodeT(
            deprecatedBuiltinCode=_OPERATOR.CUSTOM,
            builtinCode=_OPERATOR.CUSTOM,
            customCode=bitmap_format.OPERATOR.encode(),
            version=1,
        )
    )
    return len(model.operatorCodes) - 1
