"""The constants of a .tflite file that only weigh: whatever stores them otherwise reaches all their readers."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer

# Tensor type -> operators whose input 1 may be computed by another operator.
Readers = Mapping[int, Collection[int]]


def group_weights(model: schema.ModelT, readers: Readers) -> Iterator[list[list[int]]]:
    """Tensors of the main graph that only weigh: a group for each buffer, and in it one for each shape and type.

    TensorFlow's converter gives equal bytes one buffer, whatever they stand for: empty kernels above all.

    A tensor that anything but these readers reads is left out, because its other reader may demand a constant; so is
    one whose buffer somebody else holds, in whose form it would have to stay.

    Args:
        model: a parsed file.
        readers: which operators may read a tensor of a type. float16 is read through a DEQUANTIZE.
    """
    graph = model.subgraphs[0]
    by_buffer: defaultdict[int, list[int]] = defaultdict(list)
    for index, tensor in enumerate(graph.tensors):
        by_buffer[tensor.buffer].append(index)
    elsewhere = {tensor.buffer for other in model.subgraphs[1:] for tensor in other.tensors}
    elsewhere |= {metadata.buffer for metadata in model.metadata or ()}
    weights = _weight_tensors(model, readers)
    for buffer, group in by_buffer.items():
        if buffer == 0 or buffer in elsewhere or not weights.issuperset(group):
            continue
        forms: defaultdict[tuple, list[int]] = defaultdict(list)
        for index in group:
            forms[tuple(graph.tensors[index].shape), graph.tensors[index].type].append(index)
        yield list(forms.values())


def _weight_tensors(model: schema.ModelT, readers: Readers) -> set[int]:
    """Constants that are the weights of every operator that reads them."""
    graph = model.subgraphs[0]
    reads = defaultdict(list)
    for operator in graph.operators:
        for slot, index in enumerate(operator.inputs if operator.inputs is not None else ()):
            reads[index].append((flatbuffer.operator_code(model, operator), slot, operator))
    ends = set(graph.outputs) | set(graph.inputs)

    def only_weighs(index: int, kind: int, dequantized: bool) -> bool:
        if index in ends or not reads[index]:
            return False
        if kind == schema.TensorType.FLOAT16 and not dequantized:
            return all(
                code == schema.BuiltinOperator.DEQUANTIZE and only_weighs(operator.outputs[0], kind, True)
                for code, _, operator in reads[index]
            )
        return all(code in readers[kind] and slot == 1 for code, slot, _ in reads[index])

    return {
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.type in readers
        and tensor.sparsity is None
        and not tensor.isVariable
        and model.buffers[tensor.buffer].data is not None
        and tensor.shape is not None
        and len(tensor.shape) > 1
        and only_weighs(index, tensor.type, False)
    }
