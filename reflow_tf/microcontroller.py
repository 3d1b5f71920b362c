"""What a file takes on a microcontroller: flash, RAM, and what fills them; and that it computes what it should."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from reflow_tf.export.constants import list_tensors
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import ExportedFile
from reflow_tf.runtimes.tflm.arena import STEP_BYTES, find_arena
from reflow_tf.runtimes.tflm.runtime import TFLM
from reflow_tf.targets.operators import Operator, OperatorGraph, Value

_MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that takes room.

    Attributes:
        name: the layer or tensor as the file names it.
        size_bytes: what it takes.
    """

    name: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a file takes, beside the same network unpruned.

    Attributes:
        runtime: what runs it, with the version.
        flash_bytes: of the file.
        dense_flash_bytes: of the unpruned network's int8 file, as the converter writes it.
        arena_bytes: RAM: the smallest arena, weights expanded in it.
        dense_arena_bytes: RAM of the unpruned network.
        arena_beside_bytes: the smallest arena where weights are expanded in memory of their own; None where none are.
        decode_bytes: that memory.
        num_compared: images that both this file and the one that stores its weights dense were run on.
        num_equal: those of which all outputs were equal, bit for bit.
        flash_largest: what takes most flash, largest first.
        ram_largest: operators with the most bytes around them (inputs, outputs, expanded weights), largest first.
    """

    runtime: str
    flash_bytes: int
    dense_flash_bytes: int
    arena_bytes: int
    dense_arena_bytes: int
    arena_beside_bytes: int | None
    decode_bytes: int
    num_compared: int
    num_equal: int
    flash_largest: tuple[Part, ...]
    ram_largest: tuple[Part, ...]


def measure_tflm(exported: ExportedFile, dense: ExportedFile, images: np.ndarray) -> Footprint:
    """Runs a file in TFLM for what it takes.

    Args:
        exported: the file, with bitmaps or without.
        dense: the unpruned network, in the same quantization.
        images: float32 (n, *sample), which the file and `exported.dense_content` are compared on.

    Raises:
        InputError: TFLM is not installed, or cannot run a file.
    """
    content, graph = exported.content, read_operators(exported.content)
    decoded = max((_decoded_bytes(operator, graph) for operator in graph.operators), default=0)
    outputs = [TFLM(each).run_int8(images) for each in (content, exported.dense_content)]
    equal = (outputs[0] == outputs[1]).reshape(len(images), -1).all(axis=1)
    return Footprint(
        runtime=TFLM(content).name,
        flash_bytes=len(content),
        dense_flash_bytes=len(dense.content),
        arena_bytes=find_arena(content),
        dense_arena_bytes=find_arena(dense.content),
        arena_beside_bytes=find_arena(content, decoded) if decoded else None,
        decode_bytes=decoded,
        num_compared=len(images),
        num_equal=int(np.count_nonzero(equal)),
        flash_largest=_largest({tensor.name: tensor.size_bytes for tensor in list_tensors(content)}),
        ram_largest=_largest({each.name: _bytes_around(each, graph) for each in graph.operators}),
    )


MEASURES: Mapping[str, Callable[[ExportedFile, ExportedFile, np.ndarray], Footprint]] = {"tflm": measure_tflm}


def _largest(sizes: Mapping[str, int]) -> tuple[Part, ...]:
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return tuple(Part(name, size) for name, size in ordered[:_MOST_NAMED])


def _bytes_around(operator: Operator, graph: OperatorGraph) -> int:
    """Bytes that must be in RAM while an operator runs: what it reads and computes, and weights that were expanded."""
    values = [graph.values[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
    return sum(_size_bytes(value) for value in values if not value.constant or value.storage == "bitmap")


def _decoded_bytes(operator: Operator, graph: OperatorGraph) -> int:
    values = [graph.values[index] for index in operator.inputs if index >= 0]
    return sum(-(-_size_bytes(value) // STEP_BYTES) * STEP_BYTES for value in values if value.storage == "bitmap")


def _size_bytes(value: Value) -> int:
    return value.num_elements * np.dtype(value.dtype).itemsize
