"""The constants of a .tflite file, however it stores them: dense, as TFLite's sparse tensors, or as TFLM's bitmaps."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import bitmap_format, flatbuffer
from reflow_tf.export.sparse_format import Level, SparseTensor, decode

_SMALL_BYTES = 256

VECTOR_TYPES: dict[np.dtype, tuple[int, type]] = {
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
        storage: 'dense', 'sparse' or 'bitmap'.
        size_bytes: values and, unless dense, what says where they belong; without the tables around them.
        dense_size_bytes: what the values would take if stored dense.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_zeros: int
    storage: str
    size_bytes: int
    dense_size_bytes: int


@dataclasses.dataclass(frozen=True)
class Constant:
    """One constant tensor of a parsed file.

    Attributes:
        name: unique in the file: the tensor's own; where it has none, its reader's with '/weights' or '/bias'; told
            apart by '#' and its index where it still has none or shares it.
        tensor: what operators read: for a bitmap, the output of its first DECODE.
        values: all its elements, expanded.
        storage: 'dense', 'sparse' or 'bitmap'.
        size_bytes: as in `StoredTensor`.
    """

    name: str
    tensor: schema.TensorT
    values: np.ndarray
    storage: str
    size_bytes: int


def read_constants(content: bytes) -> dict[str, np.ndarray]:
    """Every numeric constant tensor of a file, expanded, by name.

    Tensors of several graphs, or without a name, are told apart by '#' and their index.

    Raises:
        InputError: not a .tflite file, or a stored tensor that contradicts its shape.
    """
    with flatbuffer.reading(content):
        return {constant.name: constant.values for constant in _constants(flatbuffer.parse(content))}


def list_tensors(content: bytes) -> tuple[StoredTensor, ...]:
    """The constant tensors of more than 256 dense bytes, in the order of the file.

    Raises:
        InputError: as `read_constants`.
    """
    with flatbuffer.reading(content):
        return tuple(
            StoredTensor(
                name=constant.name,
                shape=constant.values.shape,
                dtype=constant.values.dtype.name,
                num_zeros=constant.values.size - int(np.count_nonzero(constant.values)),
                storage=constant.storage,
                size_bytes=constant.size_bytes,
                dense_size_bytes=constant.values.nbytes,
            )
            for constant in _constants(flatbuffer.parse(content))
            if constant.values.nbytes > _SMALL_BYTES
        )


def has_bitmaps(content: bytes) -> bool:
    """Whether a file stores constants as TFLM's bitmaps, which nothing but TFLM can run.

    Raises:
        InputError: not a .tflite file.
    """
    model = flatbuffer.parse(content)
    with flatbuffer.reading(content):
        return any(find_bitmaps(model, graph) for graph in model.subgraphs)


def read_tensor(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray:
    """A constant that is stored dense or sparse, expanded."""
    return _read_buffer(model, tensor) if tensor.sparsity is None else decode(_read_sparse(model, tensor))


def find_bitmaps(model: schema.ModelT, graph: schema.SubGraphT) -> dict[int, tuple[int, int]]:
    """Index of each tensor that a DECODE expands -> indices of its bitmap and its ancillary tensor."""
    found = {}
    for operator in graph.operators:
        if flatbuffer.custom_name(model, operator) == bitmap_format.OPERATOR:
            for slot, output in enumerate(operator.outputs):
                found[int(output)] = (int(operator.inputs[2 * slot]), int(operator.inputs[2 * slot + 1]))
    return found


def read_bitmap(model: schema.ModelT, graph: schema.SubGraphT, index: int, parts: tuple[int, int]) -> np.ndarray:
    """A constant that is stored as a bitmap, expanded."""
    tensor = graph.tensors[index]
    encoded = (_read_buffer(model, graph.tensors[part]) for part in parts)
    shape, dtype = tuple(map(int, tensor.shape)), flatbuffer.NUMPY_TYPES[tensor.type]
    return bitmap_format.decode(bitmap_format.Bitmap(*encoded), shape, dtype)


def _constants(model: schema.ModelT) -> Iterator[Constant]:
    taken: set[str] = set()
    for graph in model.subgraphs:
        bitmaps = find_bitmaps(model, graph)
        borrowed = _borrow_names(graph)
        parts = {part for pair in bitmaps.values() for part in pair}
        seen: set[tuple[int, int]] = set()  # a tensor that several operators read has one DECODE for each
        for index, tensor in enumerate(graph.tensors):
            stored = model.buffers[tensor.buffer].data is not None and tensor.type in flatbuffer.NUMPY_TYPES
            if index in bitmaps and bitmaps[index] not in seen:
                seen.add(bitmaps[index])
                values = read_bitmap(model, graph, index, bitmaps[index])
                size = sum(len(model.buffers[graph.tensors[part].buffer].data) for part in bitmaps[index])
                yield Constant(_name(tensor, index, taken, borrowed), tensor, values, "bitmap", size)
            elif stored and index not in parts:
                values = read_tensor(model, tensor)
                storage = "dense" if tensor.sparsity is None else "sparse"
                size = values.nbytes if tensor.sparsity is None else _read_sparse(model, tensor).size_bytes
                yield Constant(_name(tensor, index, taken, borrowed), tensor, values, storage, size)


def _borrow_names(graph: schema.SubGraphT) -> dict[int, str]:
    """Names for weights and biases that have none, from what their reader computes."""
    borrowed = {}
    for operator in graph.operators:
        for slot, role in ((1, "weights"), (2, "bias")):
            if len(operator.inputs) > slot and len(operator.outputs):
                output = (graph.tensors[operator.outputs[0]].name or b"").decode()
                borrowed[int(operator.inputs[slot])] = f"{output}/{role}" if output else ""
    return borrowed


def _name(tensor: schema.TensorT, index: int, taken: set[str], borrowed: dict[int, str]) -> str:
    name = (tensor.name or b"").decode() or borrowed.get(index, "")
    if not name or name in taken:
        name = f"{name}#{index}"
    while name in taken:
        name += "'"
    taken.add(name)
    return name


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
    dtype = next(dtype for dtype, (code, _) in VECTOR_TYPES.items() if code == kind)
    return np.asarray(getattr(metadata, f"array{part}").values, dtype)
