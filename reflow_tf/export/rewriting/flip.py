"""An image mirrored inside a file, by operators that every runtime has.

tflite-runtime 2.14.0 reverses one axis at a time, and copies runs of what lies behind it; newer kernels reverse
contiguous axes at once (tensorflow/lite/kernels/reverse.cc). Measured in LiteRT 2.3.0 on 224x224x3 floats, one
thread: reversing all numbers at once 44 us, two thirds of it for the two RESHAPEs; pixel by pixel 86; height and
width one after the other 81; GATHER 113; STRIDED_SLICE with negative strides 790.
"""

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.graph import EditableGraph


def insert_flip(
    graph: EditableGraph,
    index: int,
    axes: tuple[int, ...],
    readers: Sequence[schema.OperatorT],
    channels: bool = False,
    output: int | None = None,
) -> None:
    """Lets operators read the mirror image of a tensor of shape (batch, height, width, channels).

    Args:
        graph: is changed.
        index: the tensor.
        axes: HEIGHT, WIDTH or both.
        readers: who reads the mirror image from now on; the operators go in front of the first of them.
        channels: reverse the channels, too; the readers are made for it.
        output: tensor for the mirror image; None: a new one.
    """
    batch, height, width, depth = graph.shape(index)
    name = graph.tensor_name(index)
    mirrored = graph.copy_value(index) if output is None else output
    if output is None:
        graph.tensors[mirrored].name = f"{name}/mirrored".encode()
    flat = (batch, height * width * depth) if channels else (batch, height * width, depth)
    steps: list[tuple[str, int, tuple[int, ...], int]]
    if len(axes) == 1:
        steps = [("REVERSE_V2", index, axes, mirrored)]
    else:
        unrolled = graph.add_value(f"{name}/unrolled", flat, like=index)
        reversed_ = graph.add_value(f"{name}/reversed", flat, like=index)
        steps = [("RESHAPE", index, flat, unrolled), ("REVERSE_V2", unrolled, (1,), reversed_)]
        steps += [("RESHAPE", reversed_, (batch, height, width, depth), mirrored)]
    for kind, source, argument, target in steps:
        constant = graph.add_constant(f"{name}/{kind.lower()}", np.array(argument, np.int32))
        options = schema.ReverseV2OptionsT() if kind == "REVERSE_V2" else schema.ReshapeOptionsT()
        if readers:
            graph.insert(min(readers, key=graph.operators.index), kind, [source, constant], target, options)
        else:
            graph.append(kind, [source, constant], target, options)
    graph.redirect(index, mirrored, readers)
