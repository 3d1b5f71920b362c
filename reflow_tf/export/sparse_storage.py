"""Weights that are mostly zeros, stored as a sparse tensor and a DENSIFY operator wherever that makes the file smaller.

The converter's own pass (dense_to_sparse_pass.cc) is a rule of thumb: 30 % zeros, the innermost axis compressed. Here
every weight tensor is encoded in the cheapest order of its axes and both forms are measured as bytes of a real file.

DENSIFY runs once, before the first inference (tensorflow/lite/kernels/densify.cc); where the XNNPACK delegate takes the
consumer, it unpacks the tensor itself and remembers that it was sparse (delegates/xnnpack/xnnpack_delegate.cc,
`static_sparse_weights_`), which is what lets XNNPACK choose its sparse kernels.
"""

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.sparse_format import Level, SparseTensor, decode, encode

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
_SMALL_BYTES = 256

_VECTOR_TYPES: dict[np.dtype, tuple[int, type]] = {
    np.dtype(np.uint8): (schema.SparseIndexVector.Uint8Vector, schema.Uint8VectorT),
    np.dtype(np.uint16): (schema.SparseIndexVector.Uint16Vector, schema.Uint16VectorT),
    np.dtype(np.int32): (schema.SparseIndexVector.Int32Vector, schema.Int32VectorT),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One constant tensor as it lies in a file.

    Attributes:
        name: the tensor's name, as in `read_constants`.
        shape: its dense shape.
        dtype: NumPy's name of its element type.
        num_zeros: how many of its elements are zero.
        storage: 'dense' or 'sparse'.
        size_bytes: values and, if sparse, indices; without the tables around them.
        dense_size_bytes: what the values would take if stored dense.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_zeros: int
    storage: str
    size_bytes: int
    dense_size_bytes: int


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
    for group in _weight_groups(model):
        tensors = [graph.tensors[index] for index in group]
        dense = _read_buffer(model, tensors[0])
        # Before anything is encoded: an element costs at least one byte of index, so a fully dense tensor cannot gain.
        if np.count_nonzero(dense) == dense.size:
            continue
        encoded = encode(dense)
        if _saved_bytes(tensors, dense, encoded) > _PADDING_BYTES:
            densified += _replace(model, group, encoded)
    if not densified:
        return content
    graph.operators = densified + list(graph.operators)
    smaller = flatbuffer.serialize(model, size_hint=len(content))
    return smaller if len(smaller) < len(content) else content


def read_constants(content: bytes) -> dict[str, np.ndarray]:
    """Every numeric constant tensor of a file, sparse ones expanded, by name.

    Tensors of several graphs, or without a name, are told apart by '#' and their index.

    Raises:
        InputError: not a .tflite file, or a sparse tensor whose indices contradict its shape.
    """
    model = flatbuffer.parse(content)
    return {name: read_tensor(model, tensor) for name, tensor in _constants(model)}


def list_tensors(content: bytes) -> tuple[StoredTensor, ...]:
    """The constant tensors of more than 256 dense bytes, in the order of the file.

    Raises:
        InputError: as `read_constants`.
    """
    model = flatbuffer.parse(content)
    stored = []
    for name, tensor in _constants(model):
        dense = read_tensor(model, tensor)
        if dense.nbytes <= _SMALL_BYTES:
            continue
        size_bytes = dense.nbytes if tensor.sparsity is None else _read_sparse(model, tensor).size_bytes
        stored.append(
            StoredTensor(
                name=name,
                shape=dense.shape,
                dtype=dense.dtype.name,
                num_zeros=dense.size - int(np.count_nonzero(dense)),
                storage="dense" if tensor.sparsity is None else "sparse",
                size_bytes=size_bytes,
                dense_size_bytes=dense.nbytes,
            )
        )
    return tuple(stored)


def _constants(model: schema.ModelT) -> Iterator[tuple[str, schema.TensorT]]:
    taken = set()
    for graph in model.subgraphs:
        for index, tensor in enumerate(graph.tensors):
            if model.buffers[tensor.buffer].data is None or tensor.type not in flatbuffer.NUMPY_TYPES:
                continue
            name = (tensor.name or b"").decode()
            if not name or name in taken:
                name = f"{name}#{index}"
            while name in taken:
                name += "'"
            taken.add(name)
            yield name, tensor


def read_tensor(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray:
    if tensor.sparsity is None:
        return _read_buffer(model, tensor)
    return decode(_read_sparse(model, tensor))


def _read_buffer(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray:
    values = np.frombuffer(model.buffers[tensor.buffer].data, flatbuffer.NUMPY_TYPES[tensor.type])
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    return values.reshape(shape)


def _read_sparse(model: schema.ModelT, tensor: schema.TensorT) -> SparseTensor:
    shape = tuple(int(size) for size in tensor.shape)
    sparsity = tensor.sparsity
    levels = []
    for axis, metadata in zip(sparsity.traversalOrder, sparsity.dimMetadata, strict=True):
        if metadata.format == schema.DimensionType.DENSE:
            levels.append(Level(int(axis), int(metadata.denseSize)))
        else:
            levels.append(
                Level(int(axis), shape[axis], _read_vector(metadata, "Segments"), _read_vector(metadata, "Indices"))
            )
    values = np.frombuffer(model.buffers[tensor.buffer].data, flatbuffer.NUMPY_TYPES[tensor.type])
    block_map = tuple(int(axis) for axis in (sparsity.blockMap if sparsity.blockMap is not None else ()))
    sizes = {level.axis: level.size for level in levels}
    block_sizes = tuple(sizes[len(shape) + block] for block in range(len(block_map)))
    return SparseTensor(shape, tuple(levels), values, block_map, block_sizes)


def _read_vector(metadata: schema.DimensionMetadataT, part: str) -> np.ndarray:
    kind = getattr(metadata, f"array{part}Type")
    dtype = next(dtype for dtype, (code, _) in _VECTOR_TYPES.items() if code == kind)
    return np.asarray(getattr(metadata, f"array{part}").values, dtype)


def _weight_groups(model: schema.ModelT) -> Iterator[list[int]]:
    """Tensors of the main graph that only weigh, grouped by the buffer that they share."""
    graph = model.subgraphs[0]
    by_buffer: defaultdict[int, list[int]] = defaultdict(list)
    for index, tensor in enumerate(graph.tensors):
        by_buffer[tensor.buffer].append(index)
    elsewhere = {tensor.buffer for other in model.subgraphs[1:] for tensor in other.tensors}
    elsewhere |= {metadata.buffer for metadata in model.metadata or ()}
    weights = _weight_tensors(model)
    for buffer, group in by_buffer.items():
        if buffer == 0 or buffer in elsewhere or not weights.issuperset(group):
            continue
        forms = {(tuple(graph.tensors[index].shape), graph.tensors[index].type) for index in group}
        if len(forms) == 1:
            yield group


def _weight_tensors(model: schema.ModelT) -> set[int]:
    """Constants that are the weights of every operator that reads them, float16 through a DEQUANTIZE."""
    graph = model.subgraphs[0]
    readers = defaultdict(list)
    for operator in graph.operators:
        for slot, index in enumerate(operator.inputs if operator.inputs is not None else ()):
            readers[index].append((flatbuffer.operator_code(model, operator), slot, operator))
    ends = set(graph.outputs) | set(graph.inputs)

    def only_weighs(index: int, kind: int, dequantized: bool) -> bool:
        if index in ends or not readers[index]:
            return False
        if kind == _TYPE.FLOAT16 and not dequantized:
            return all(
                code == _OPERATOR.DEQUANTIZE and only_weighs(operator.outputs[0], kind, True)
                for code, _, operator in readers[index]
            )
        return all(code in _READERS[kind] and slot == 1 for code, slot, _ in readers[index])

    return {
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.type in _READERS
        and tensor.sparsity is None
        and not tensor.isVariable
        and model.buffers[tensor.buffer].data is not None
        and tensor.shape is not None
        and len(tensor.shape) > 1
        and only_weighs(index, tensor.type, False)
    }


def _replace(model: schema.ModelT, group: list[int], encoded: SparseTensor) -> list[schema.OperatorT]:
    """Moves the data of tensors that share a buffer into one sparse tensor; returns one DENSIFY for each.

    The tensors keep their numbers, so that no reader has to change; they only become the outputs of DENSIFY.
    """
    graph = model.subgraphs[0]
    stored, emptied = _sparse_form([graph.tensors[index] for index in group], encoded)
    # The values take the place of the dense ones: nothing else reads that buffer.
    model.buffers[stored.buffer] = schema.BufferT(data=_as_bytes(encoded.values))
    graph.tensors.append(stored)
    for index, tensor in zip(group, emptied, strict=True):
        graph.tensors[index] = tensor
    code = _densify_code(model)
    return [_densify(code, len(graph.tensors) - 1, index) for index in group]


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
        segments_type, segments_vector = _VECTOR_TYPES[level.segments.dtype]
        indices_type, indices_vector = _VECTOR_TYPES[level.indices.dtype]
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


def _saved_bytes(tensors: list[schema.TensorT], dense: np.ndarray, encoded: SparseTensor) -> int:
    """How much smaller a real file with nothing but these tensors gets; negative if it grows."""
    stored, emptied = _sparse_form(tensors, encoded)
    operators = [_densify(0, 0, 0) for _ in tensors]
    return _probe_bytes(tensors, [], dense) - _probe_bytes([stored, *emptied], operators, encoded.values)


def _probe_bytes(tensors: list[schema.TensorT], operators: list[schema.OperatorT], values: np.ndarray) -> int:
    """Size of a file with these tensors and a DENSIFY of a scrap, whose vtables every further one can share."""
    tensors = [copy.copy(tensor) for tensor in tensors]
    for tensor in tensors:
        tensor.buffer = min(tensor.buffer, 1)
    scrap, scrap_output = _sparse_form(
        [copy.copy(tensors[-1])], encode(np.ones((1,) * len(tensors[0].shape), np.uint8))
    )
    graph = schema.SubGraphT(
        tensors=[*tensors, scrap, scrap_output[0]], inputs=[], outputs=[], operators=[*operators, _densify(0, 0, 0)]
    )
    buffers = [schema.BufferT(), schema.BufferT(data=_as_bytes(values))]
    model = schema.ModelT(version=3, operatorCodes=[], subgraphs=[graph], buffers=buffers)
    return len(flatbuffer.serialize(model, size_hint=values.nbytes + 4096))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1)
