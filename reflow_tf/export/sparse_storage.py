"""Weights that are mostly zeros, stored as a sparse tensor and a DENSIFY operator wherever that makes the file smaller.

The converter's own pass (dense_to_sparse_pass.cc) is a rule of thumb: 30 % zeros, the innermost axis compressed. Here
every weight tensor is encoded in the cheapest order of its axes and both forms are measured as bytes of a real file.

DENSIFY runs once, before the first inference (tensorflow/lite/kernels/densify.cc); where the XNNPACK delegate takes the
consumer, it unpacks the tensor itself and remembers that it was sparse (delegates/xnnpack/xnnpack_delegate.cc,
`static_sparse_weights_`), which is what lets XNNPACK choose its sparse kernels.
"""

import copy

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.constants import VECTOR_TYPES, read_tensor
from reflow_tf.export.sparse_format import SparseTensor, encode
from reflow_tf.export.weight_tensors import group_weights

_OPERATOR = schema.BuiltinOperator
_TYPE = schema.TensorType
_PLANAR = frozenset({_OPERATOR.CONV_2D, _OPERATOR.DEPTHWISE_CONV_2D, _OPERATOR.TRANSPOSE_CONV})
# For each type, the operators whose input 1 may come out of DENSIFY. Measured in LiteRT 2.3.0 and tflite-runtime
# 2.14.0:
# - every order of the axes and every index width gives bit-equal outputs, with and without the XNNPACK delegate;
# - float16 needs a DEQUANTIZE in between; where XNNPACK does not take its reader (CONV_3D), both runtimes compute
#   garbage;
# - int8 into FULLY_CONNECTED: LiteRT's delegate fails to prepare ("failed to delegate FULLY_CONNECTED").
_READERS = {
    _TYPE.FLOAT32: _PLANAR | {_OPERATOR.FULLY_CONNECTED, _OPERATOR.CONV_3D, _OPERATOR.CONV_3D_TRANSPOSE},
    _TYPE.FLOAT16: _PLANAR | {_OPERATOR.FULLY_CONNECTED},
    _TYPE.INT8: _PLANAR,
}
# A file pads each buffer to 16 bytes: two buffers can shift by this much between the measurement and the file.
_PADDING_BYTES = 32


def store_sparse(content: bytes) -> bytes:
    """Stores each weight tensor of a .tflite file sparse if that makes the file smaller; the result is never larger.

    Only the main graph is rewritten: the bodies of loops and branches keep their weights dense. A tensor that anything
    but a convolution or matrix product reads stays dense too, because its other reader may demand a constant.

    Args:
        content: a .tflite file.

    Returns:
        The new file, or the very same bytes where nothing is gained.

    Raises:
        InputError: `content` is not a .tflite file.
    """
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    densified = []
    for forms in group_weights(model, _READERS):
        dense = [read_tensor(model, graph.tensors[form[0]]) for form in forms]
        # Before anything is encoded: an element costs at least one byte of index, so a fully dense tensor cannot gain.
        if all(np.count_nonzero(values) == values.size for values in dense):
            continue
        # What -0.0 multiplies it adds as 0, and one runtime counts it as no zero (`Version.misses_negative_zeros`).
        dense = [np.where(values == 0, np.zeros_like(values), values) for values in dense]
        encoded = [encode(values) for values in dense]
        if _saved_bytes(model, forms, dense[0], encoded) > _PADDING_BYTES:
            for form, one in zip(forms, encoded, strict=True):
                densified += _replace(model, form, one, is_first=form is forms[0])
        else:
            model.buffers[graph.tensors[forms[0][0]].buffer] = schema.BufferT(data=_as_bytes(dense[0]))
    if not densified:
        return content
    graph.operators = densified + list(graph.operators)
    smaller = flatbuffer.serialize(model, size_hint=len(content))
    # Written anew a file may shrink by itself: equal vectors of scales are stored once.
    anew = flatbuffer.serialize(flatbuffer.parse(content), size_hint=len(content))
    return smaller if len(smaller) < min(len(content), len(anew)) else content


def _replace(
    model: schema.ModelT, form: list[int], encoded: SparseTensor, is_first: bool = True
) -> list[schema.OperatorT]:
    """Moves the data of tensors of one shape on one buffer into one sparse tensor; returns one DENSIFY for each.

    The tensors keep their numbers, so that no reader has to change; they only become the outputs of DENSIFY. The values
    take the place of the dense ones, which nothing else reads, or with `is_first=False` a buffer of their own.
    """
    graph = model.subgraphs[0]
    stored, emptied = _sparse_form([graph.tensors[index] for index in form], encoded)
    if not is_first:
        stored.buffer = len(model.buffers)
        model.buffers.append(schema.BufferT())
    model.buffers[stored.buffer] = schema.BufferT(data=_as_bytes(encoded.values))
    graph.tensors.append(stored)
    for index, tensor in zip(form, emptied, strict=True):
        graph.tensors[index] = tensor
    code = _densify_code(model)
    return [_densify(code, len(graph.tensors) - 1, index) for index in form]


def _sparse_form(tensors: list[schema.TensorT], encoded: SparseTensor) -> tuple[schema.TensorT, list[schema.TensorT]]:
    stored = copy.copy(tensors[0])
    stored.sparsity = _pack_levels(encoded)
    emptied = []
    for tensor in tensors:
        output = copy.copy(tensor)
        output.buffer = 0
        output.name = None  # the sparse tensor carries it; DENSIFY gives its output a name of its own
        emptied.append(output)
    return stored, emptied


def _pack_levels(encoded: SparseTensor) -> schema.SparsityParametersT:
    metadata = []
    for level in encoded.levels:
        if level.segments is None or level.indices is None:
            metadata.append(schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=level.size))
            continue
        segments_type, segments_vector = VECTOR_TYPES[level.segments.dtype]
        indices_type, indices_vector = VECTOR_TYPES[level.indices.dtype]
        metadata.append(
            schema.DimensionMetadataT(
                format=schema.DimensionType.SPARSE_CSR,
                arraySegmentsType=segments_type,
                arraySegments=segments_vector(values=level.segments),
                arrayIndicesType=indices_type,
                arrayIndices=indices_vector(values=level.indices),
            )
        )
    order = np.array([level.axis for level in encoded.levels], np.int32)
    return schema.SparsityParametersT(traversalOrder=order, dimMetadata=metadata)


def _densify(code: int, source: int, target: int) -> schema.OperatorT:
    return schema.OperatorT(
        opcodeIndex=code,
        inputs=np.array([source], np.int32),
        outputs=np.array([target], np.int32),
        builtinOptionsType=schema.BuiltinOptions.DensifyOptions,
        builtinOptions=schema.DensifyOptionsT(),
    )


def _densify_code(model: schema.ModelT) -> int:
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == _OPERATOR.DENSIFY:
            return index
    code = schema.OperatorCodeT(deprecatedBuiltinCode=_OPERATOR.DENSIFY, builtinCode=_OPERATOR.DENSIFY, version=1)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _saved_bytes(model: schema.ModelT, forms: list[list[int]], dense: np.ndarray, encoded: list[SparseTensor]) -> int:
    """How much smaller a real file with nothing but the tensors of one buffer gets; negative if it grows."""
    tensors = [[model.subgraphs[0].tensors[index] for index in form] for form in forms]
    before = [_with_buffer(tensor, 1) for form in tensors for tensor in form]
    after, operators = [], []
    for buffer, (form, one) in enumerate(zip(tensors, encoded, strict=True), start=1):
        stored, emptied = _sparse_form(form, one)
        after += [_with_buffer(stored, buffer), *emptied]
        operators += [_densify(0, 0, 0) for _ in form]
    return _probe_bytes(before, [], [dense]) - _probe_bytes(after, operators, [one.values for one in encoded])


def _with_buffer(tensor: schema.TensorT, buffer: int) -> schema.TensorT:
    moved = copy.copy(tensor)
    moved.buffer = buffer
    return moved


def _probe_bytes(tensors: list[schema.TensorT], operators: list[schema.OperatorT], contents: list[np.ndarray]) -> int:
    """Size of a file with these tensors and a DENSIFY of a scrap, whose vtables every further one can share."""
    scrap, scrap_output = _sparse_form(
        [copy.copy(tensors[-1])], encode(np.ones((1,) * len(tensors[0].shape), np.uint8))
    )
    graph = schema.SubGraphT(
        tensors=[*tensors, scrap, scrap_output[0]], inputs=[], outputs=[], operators=[*operators, _densify(0, 0, 0)]
    )
    buffers = [schema.BufferT(), *(schema.BufferT(data=_as_bytes(values)) for values in contents)]
    model = schema.ModelT(version=3, operatorCodes=[], subgraphs=[graph], buffers=buffers)
    return len(flatbuffer.serialize(model, size_hint=sum(values.nbytes for values in contents) + 4096))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1)
