"""A .tflite file without what a microcontroller never reads: flash has no room for it.

TensorFlow's converter names every tensor after all that it was fused from, gives biases scales that follow from those
of their operands, and writes a vector of zeros, eight bytes a channel, beside the scales of every filter. In an int8
MobileNetV2 of width 0.5 that is a fifth of the file.
"""

from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.operators import read_operators

# TFLM reads the bias's scale of FULLY_CONNECTED (GetQuantizedConvolutionMultipler in kernels/kernel_util.cc), and of a
# convolution only the scales of input, filter and output (PopulateConvolutionQuantizationParams there).
_CONVOLUTIONS = frozenset({schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D})
_BIAS = 2


def slim(content: bytes) -> bytes:
    """The same network in fewer bytes: bit-equal in TFLM and in LiteRT.

    Names stay only on what operators compute, and say the layer; descriptions and metadata go, so do ranges and the
    scales of the biases of convolutions; equal vectors of zero points become one when the file is written.

    Args:
        content: a .tflite file.

    Raises:
        InputError: `content` is not a whole .tflite file.
    """
    model = flatbuffer.parse(content)
    names = {operator.outputs[0]: operator.name for operator in read_operators(content).operators if operator.outputs}
    biases = _convolution_biases(model)
    for graph in model.subgraphs:
        for index, tensor in enumerate(graph.tensors):
            tensor.name = names[index].encode() if graph is model.subgraphs[0] and index in names else None
            quantization = tensor.quantization
            scaled = quantization is not None and quantization.scale is not None
            dropped = not scaled or (graph is model.subgraphs[0] and index in biases)
            tensor.quantization = None if dropped else _without_ranges(quantization)
    model.description, model.metadata, model.metadataBuffer = None, None, None
    _drop_unused_buffers(model)
    return flatbuffer.serialize(model, size_hint=len(content))


def _without_ranges(full: schema.QuantizationParametersT) -> schema.QuantizationParametersT:
    """Scales and zero points alone."""
    return schema.QuantizationParametersT(
        scale=full.scale, zeroPoint=full.zeroPoint, quantizedDimension=full.quantizedDimension
    )


def _convolution_biases(model: schema.ModelT) -> set[int]:
    """Tensors of the main graph that are nothing but biases of convolutions."""
    graph = model.subgraphs[0]
    biases: set[int] = set()
    others: set[int] = set()
    for operator in graph.operators:
        is_convolution = flatbuffer.operator_code(model, operator) in _CONVOLUTIONS
        for slot, index in enumerate(map(int, operator.inputs)):
            (biases if is_convolution and slot == _BIAS else others).add(index)
    return biases - others - {-1}


def _drop_unused_buffers(model: schema.ModelT) -> None:
    """Numbers the buffers anew that tensors still point to; buffer 0 is empty by convention and stays."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    used = sorted({0} | {tensor.buffer for tensor in tensors if model.buffers[tensor.buffer].data is not None})
    numbers = {old: new for new, old in enumerate(used)}
    for tensor in tensors:
        tensor.buffer = numbers.get(tensor.buffer, 0)
    model.buffers = [model.buffers[old] for old in used]
