"""A .tflite file as objects that can be changed, and back."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why

FILE_IDENTIFIER = b"TFL3"
# force_align of Buffer.data in tensorflow/lite/schema/schema.fbs; the generated Python code forgets it.
_BUFFER_ALIGNMENT = 16

NUMPY_TYPES: dict[int, np.dtype] = {
    schema.TensorType.FLOAT32: np.dtype(np.float32),
    schema.TensorType.FLOAT16: np.dtype(np.float16),
    schema.TensorType.FLOAT64: np.dtype(np.float64),
    schema.TensorType.INT8: np.dtype(np.int8),
    schema.TensorType.UINT8: np.dtype(np.uint8),
    schema.TensorType.INT16: np.dtype(np.int16),
    schema.TensorType.INT32: np.dtype(np.int32),
    schema.TensorType.INT64: np.dtype(np.int64),
    schema.TensorType.BOOL: np.dtype(np.bool_),
}


OPERATOR_CODES: dict[str, int] = {
    name: code for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
_OPERATOR_NAMES = {code: name for name, code in OPERATOR_CODES.items()}


class AlignedBuffer(schema.BufferT):
    """A buffer whose data begins at a multiple of 16 bytes, as the schema demands of a writer."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        data = None
        if self.data is not None:
            raw = memoryview(self.data).cast("B")
            builder.StartVector(1, len(raw), _BUFFER_ALIGNMENT)
            builder.head -= len(raw)
            builder.Bytes[builder.head : builder.head + len(raw)] = raw
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class SharedQuantization(schema.QuantizationParametersT):
    """The scales and zero points of one tensor, in a file that holds equal vectors once.

    A flatbuffer may point to one vector from many tables; the generated code never does it. Filters that are quantized
    per channel have eight bytes of zero for each.

    Args:
        full: what to write.
        shared: bytes of a vector -> where it lies in the file that is being written.
    """

    def __init__(self, full: schema.QuantizationParametersT, shared: dict[bytes, int]):
        super().__init__()
        self.__dict__ |= vars(full)
        self._shared = shared

    def Pack(self, builder: flatbuffers.Builder) -> int:
        fields = (("Scale", self.scale), ("ZeroPoint", self.zeroPoint), ("Min", self.min), ("Max", self.max))
        places = [(name, self._share(builder, name, vector)) for name, vector in fields if vector is not None]
        schema.QuantizationParametersStart(builder)
        for name, place in places:
            getattr(schema, f"QuantizationParametersAdd{name}")(builder, place)
        schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
        return schema.QuantizationParametersEnd(builder)

    def _share(self, builder: flatbuffers.Builder, name: str, vector: np.ndarray) -> int:
        values = np.asarray(vector, np.int64 if name == "ZeroPoint" else np.float32)
        key = values.dtype.str.encode() + values.tobytes()
        if key not in self._shared:
            self._shared[key] = builder.CreateNumpyVector(values)
        return self._shared[key]


def parse(content: bytes) -> schema.ModelT:
    """Reads every table of a .tflite file.

    Raises:
        InputError: the bytes are not a .tflite file, or not a whole one.
    """
    if len(content) < 8 or content[4:8] != FILE_IDENTIFIER:
        raise InputError(
            f"A .tflite file must carry the identifier TFL3 at its bytes 4 to 7. "
            f"Received: {len(content)} bytes that begin with {content[:8]!r}"
        )
    try:
        model = flatbuffer_utils.read_model_from_bytearray(content)
    except Exception as error:  # the generated reader trusts every offset: a damaged one may raise nearly anything
        raise _damaged(content, say_why(error)) from error
    if not model.subgraphs:
        raise _damaged(content, "no graph in it")
    if not model.operatorCodes:
        raise InputError(f"A network must compute something. Received: {len(content)} bytes without an operator")
    dangling = (found for graph in model.subgraphs for found in _find_dangling(model, graph))
    if (first := next(dangling, None)) is not None:
        raise _damaged(content, first)
    return model


def _find_dangling(model: schema.ModelT, graph: schema.SubGraphT) -> Iterator[str]:
    """What points to something that is not there."""
    count = len(_or_empty(graph.tensors))
    for tensor in _or_empty(graph.tensors):
        if not 0 <= tensor.buffer < len(model.buffers):
            yield f"a tensor that points to buffer {tensor.buffer} of {len(model.buffers)}"
    for operator in _or_empty(graph.operators):
        if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
            yield f"an operator that points to code {operator.opcodeIndex} of {len(model.operatorCodes)}"
        inputs = _or_empty(operator.inputs)
        least = [0, *[-1] * len(inputs)]  # any but the first may be left out
        if any(not low <= index < count for low, index in zip(least, inputs, strict=False)):
            yield f"an operator that reads tensors {list(inputs)} of {count}"
        if any(not 0 <= index < count for index in _or_empty(operator.outputs)):
            yield f"an operator that writes tensors {list(operator.outputs)} of {count}"
    for index in (*_or_empty(graph.inputs), *_or_empty(graph.outputs)):
        if not 0 <= index < count:
            yield f"an end of the network at tensor {index} of {count}"


def _or_empty(vector: Any) -> Any:
    """A vector of a table; () where the file leaves it out."""
    return () if vector is None else vector


@contextlib.contextmanager
def reading(content: bytes) -> Iterator[None]:
    """Turns what a damaged file raises, where its tables are followed, into InputError."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(content, say_why(error)) from error


def serialize(model: schema.ModelT, size_hint: int = 1024) -> bytes:
    """Writes a .tflite file, each weight buffer aligned to 16 bytes, equal vectors of scales and zero points once.

    Args:
        model: what `parse` returned, changed or not.
        size_hint: bytes to reserve; with enough of them the builder never has to grow.
    """
    model.buffers = [AlignedBuffer(data=buffer.data) for buffer in model.buffers]
    shared: dict[bytes, int] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.quantization is not None and tensor.quantization.details is None:
                tensor.quantization = SharedQuantization(tensor.quantization, shared)
    builder = flatbuffers.Builder(size_hint)
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def fix_batch(content: bytes) -> bytes:
    """A file that leaves its batch open, as one for a batch of 1; any other comes back as the same object.

    Raises:
        InputError: not a .tflite file, or one that leaves more of its input open than the batch.
    """
    model = parse(content)
    graph = model.subgraphs[0]
    tensors = [graph.tensors[index] for index in graph.inputs]
    signatures = [[int(size) for size in t.shapeSignature] for t in tensors if t.shapeSignature is not None]
    if any(size < 1 for signature in signatures for size in signature[1:]):
        raise InputError(
            f"A .tflite file must fix every dimension of its input but the batch. Received: {signatures[0]}"
        )
    if not any(signature[:1] == [-1] for signature in signatures):
        return content
    # Where a dimension is open, the shape beside the signature says 1 already.
    for tensor in graph.tensors:
        tensor.shapeSignature = None
    return serialize(model, size_hint=len(content))


def operator_code(model: schema.ModelT, operator: schema.OperatorT) -> int:
    """The BuiltinOperator of an operator; old files keep it in the deprecated field."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def operator_kind(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """TFLite's name of an operator, 'CONV_2D'; 'UNKNOWN' for one that the schema does not name."""
    return _OPERATOR_NAMES.get(operator_code(model, operator), "UNKNOWN")


def custom_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """The name of a custom operator, 'TFLM_DECODE'; '' for a builtin one."""
    name = model.operatorCodes[operator.opcodeIndex].customCode
    return (name or b"").decode("utf-8", "replace")


def _damaged(content: bytes, found: str) -> InputError:
    return InputError(f"A .tflite file must be whole. Received: {len(content)} bytes; reading them gave {found}")
