"""float16 arithmetic: a mark in a .tflite file that lets CPUs which have it compute in float16.

Weights in float16 alone make a file smaller and no faster: they are unpacked to float32 first. With the mark, XNNPACK
computes in float16 on ARMv8.2 and newer; elsewhere the file runs as before. Source: TensorFlow
`tensorflow/lite/delegates/xnnpack/xnnpack_delegate.cc`, which hints XNNPACK at float16 for this metadata, and
`tensorflow/lite/tools/optimize/reduced_precision_support.h`, which says how it is spelled.

Never beside sparse tensors: XNNPACK's sparse convolutions read float16 weights as float32 then, and write float32 into
float16 (src/subgraph/convolution-2d.c, `create_nchw_convolution`, at 75db3c093): NaN, or a crash.
"""

import re

from ai_edge_litert import schema_py_generated as schema

from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer

_NAME = b"reduced_precision_support"
_VALUE = b"fp16accfp16"
_SPELLING = re.compile(rb"((?:fp16|bf16)+)accfp16")


def allow_float16(content: bytes) -> bytes:
    """A file that may be computed in float16.

    Raises:
        InputError: not a .tflite file, or one that stores tensors sparse.
    """
    model = flatbuffer.parse(content)
    if stores_sparse(model):
        raise InputError(
            "float16 arithmetic needs a file without sparse tensors, which XNNPACK would compute wrong in float16. "
            f"Received: {len(content)} bytes with some"
        )
    if is_allowed(model):
        return content
    buffer = _find_buffer(model)
    if buffer is None:
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer = _NAME, len(model.buffers)
        model.metadata = [*(model.metadata or ()), entry]
        model.buffers.append(buffer)
    buffer.data = _VALUE
    return flatbuffer.serialize(model, size_hint=len(content))


def allows_float16(content: bytes) -> bool:
    """Whether a file says that it may be computed in float16."""
    return is_allowed(flatbuffer.parse(content))


def is_allowed(model: schema.ModelT) -> bool:
    """The same of a file that was parsed already; what accumulates in float32 is computed in float32."""
    buffer = _find_buffer(model)
    found = None if buffer is None or buffer.data is None else _SPELLING.fullmatch(bytes(buffer.data))
    return found is not None and b"fp16" in found[1]


def _find_buffer(model: schema.ModelT) -> schema.BufferT | None:
    """Where the value is, if the file has one: the converter says of float16 weights that they are summed in float32.

    Of several entries LiteRT takes the last.
    """
    named = [entry.buffer for entry in model.metadata or () if entry.name == _NAME]
    return model.buffers[named[-1]] if named and 0 <= named[-1] < len(model.buffers) else None


def stores_sparse(model: schema.ModelT) -> bool:
    """Whether any tensor of a parsed file is sparse."""
    return any(tensor.sparsity is not None for graph in model.subgraphs for tensor in graph.tensors)
