"""How the zeros of a converted file are stored, and whether it still computes the same when they are."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.bitmap_storage import store_bitmaps
from reflow_tf.export.constants import read_constants
from reflow_tf.export.equivalence import compute_same
from reflow_tf.export.half_precision import is_allowed
from reflow_tf.export.operators import read_operators
from reflow_tf.export.slimming import slim
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflm_operators import settle_operators
from reflow_tf.targets.xnnpack import XNNPack

_OPERATOR = schema.BuiltinOperator
_NOT_EQUAL_NOTE = (
    "Stored dense: with sparse storage, the outputs in LiteRT were not bit-equal to those of the dense file."
)
_INT8_NOTE = (
    "Sparse int8 filters need the DENSIFY operator, which microcontrollers (TFLM) and NPU compilers lack: prune "
    "for them with --target=tflm or --target=ethos_u."
)
_INT8_DENSE_NOTE = (
    "The int8 weights of FULLY_CONNECTED are stored dense, because LiteRT's XNNPACK delegate refuses to prepare "
    "sparse ones."
)
_CORRUPTED_NOTE = (
    "Stored dense: with its zeros stored sparse, {runtimes} would compute wrong outputs or refuse the file. "
    "reflow_tf.tools.explain on a sparse file tells where."
)
_FLOAT16_NOTE = (
    "Stored dense: the file allows float16 arithmetic, with which XNNPACK computes NaN from sparse weights, or crashes."
)
_BITMAP_NOTE = (
    "Filters are stored as bitmaps, which only TensorFlow Lite for Microcontrollers reads (operator TFLM_DECODE)."
)
_LOOP_NOTE = "Weights used inside loops or branches (recurrent layers) are stored dense."


@dataclasses.dataclass(frozen=True)
class Stored:
    """A file with its zeros stored.

    Attributes:
        content: the file.
        dense_content: the same with every tensor dense.
        notes: sentences for the person who reads the report.
    """

    content: bytes
    dense_content: bytes
    notes: Sequence[str]


def _store_sparse(dense: bytes) -> Stored:
    """The sparse file, provided that LiteRT computes the same with it as with the dense one; and what to say."""
    model = flatbuffer.parse(dense)
    if is_allowed(model):
        return Stored(dense, dense, [_FLOAT16_NOTE])
    notes = [_LOOP_NOTE] if len(model.subgraphs) > 1 else []
    graph = model.subgraphs[0]
    int8 = graph.tensors[graph.inputs[0]].type == schema.TensorType.INT8
    codes = {flatbuffer.operator_code(model, operator) for operator in graph.operators}
    if int8 and _OPERATOR.FULLY_CONNECTED in codes:
        notes.append(_INT8_DENSE_NOTE)
    content = store_sparse(dense)
    if content is dense:
        return Stored(dense, dense, notes)
    if not compute_same(dense, content):
        return Stored(dense, dense, [*notes, _NOT_EQUAL_NOTE])
    # This machine cannot see it: XNNPACK's sparse kernels are off on x86.
    if corrupted := XNNPack().judge(read_operators(content)).corrupted_by:
        return Stored(dense, dense, [*notes, _CORRUPTED_NOTE.format(runtimes=", ".join(corrupted))])
    return Stored(content, dense, [*notes, _INT8_NOTE] if int8 else notes)


def _store_bitmaps(converted: bytes) -> Stored:
    """The file with bitmaps, provided that all its constants can be read back; and what to say."""
    dense = slim(settle_operators(converted))
    content = store_bitmaps(dense)
    wanted, found = read_constants(dense), read_constants(content)
    if content is not dense and not _equal_arrays(wanted, found):
        raise AssertionError("A filter that was stored as a bitmap differs when it is read back.")
    return Stored(content, dense, [_BITMAP_NOTE] if content is not dense else [])


def _equal_arrays(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    def sort(constants: Mapping[str, np.ndarray]) -> list[tuple]:
        return sorted((array.shape, array.dtype.str, array.tobytes()) for array in constants.values())

    return sort(first) == sort(second)


# By how weights that are mostly zeros lie in the file; what is given is dense.
STORES: Mapping[str, Callable[[bytes], Stored]] = {
    "sparse": _store_sparse,
    "bitmap": _store_bitmaps,
    "dense": lambda dense: Stored(dense, dense, []),
}
