"""How much work of which kind an operator is: how often the loops of the kernel that XNNPACK runs it with go round.

Source: XNNPACK 75db3c093, src/configs (which kernels, of which tiles), src/operators/convolution-nchw.c (sparse ones),
src/f32-spmm, src/f32-gemm, src/f32-dwconv2d-chw: the loops.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

from reflow_tf.targets.operators import ABSENT, Operator, OperatorGraph, Value

_NARROW = 4, 2  # pixels and outputs of the dense product for few outputs
_NUMBER_BYTES = 4
_CACHE_BYTES = 32 << 10  # the first one; of deeper maps, a tile's input comes from the second, pass by pass
_LANES = 4  # numbers in a vector of 128 bits
# As quick as an addition: an instruction or two for what is read and written.
_SIMPLE = frozenset({"RELU", "RELU6", "RELU_N1_TO_1", "ABS", "NEG", "SQUARE", "PAD", "CONCATENATION", "TRANSPOSE"})
_SIMPLE |= {"SLICE", "STRIDED_SLICE", "SPLIT", "QUANTIZE", "DEQUANTIZE", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH"}
_FREE = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
_BINARY = frozenset({"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"})


@dataclasses.dataclass(frozen=True)
class SparseTile:
    """What a sparse kernel takes at once.

    Attributes:
        pixels: of the map; what is left of it goes in halves: 16, 8, 4, 2, 1.
        lanes: pixels in one instruction.
    """

    pixels: int
    lanes: int

    def split(self, pixels: int) -> tuple[int, int, int]:
        """Passes through the weights: of whole tiles, of halves; and the registers that the halves fill."""
        whole, rest = divmod(pixels, self.pixels)
        halves = [1 << bit for bit in range(rest.bit_length()) if rest >> bit & 1]
        return whole, len(halves), sum(math.ceil(half / self.lanes) for half in halves)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """What the kernels of a device take at once.

    Attributes:
        pixels: of a dense product; a product of one pixel has a kernel of its own.
        outputs: of a dense product.
        sparse: rows of the weights that a sparse kernel takes together -> its tile.
        rows: (kernel, stride) of a depthwise convolution -> rows of the map that it computes at once channels first.
    """

    pixels: int
    outputs: int
    sparse: Mapping[int, SparseTile]
    rows: Mapping[tuple[int, int], int]


def is_pointwise(graph: OperatorGraph, operator: Operator) -> bool:
    """Whether an operator is a 1x1 convolution with stride 1 and one group: what sparse kernels exist for."""
    if operator.kind != "CONV_2D" or operator.attributes["strides"] != (1, 1):
        return False
    weights = graph.values[operator.inputs[1]].shape
    return weights[1:3] == (1, 1) and weights[3] == graph.values[operator.inputs[0]].shape[3]


def count_macs(graph: OperatorGraph, operator: Operator) -> int:
    """Multiply-accumulates of one inference; 0 for what has no weights, which is small beside the rest."""
    if operator.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
        return 0
    weights = graph.values[operator.inputs[1]].shape
    if operator.kind == "TRANSPOSE_CONV":  # inputs: output shape, weights, data
        source = graph.values[operator.inputs[2]]
        return source.num_elements * math.prod(weights[:3])
    results = graph.values[operator.outputs[0]].num_elements
    depth = weights[1] * weights[2] if operator.kind == "DEPTHWISE_CONV_2D" else math.prod(weights[1:])
    return results * depth


def choose_rows(weights: Value) -> int:
    """Output channels that the sparse kernel takes together: 4 or 2 where such blocks are 90 % full, else 1.

    (src/operators/convolution-nchw.c lines 112 to 132.) An all-zero kernel goes by 4, and one without a zero as well.
    """
    for blocks in sorted(weights.blocks, key=lambda blocks: -blocks.rows):
        if blocks.num_nonzeros * 10 >= blocks.num_blocks * blocks.rows * 9:
            return blocks.rows
    return 1


def count_dense(graph: OperatorGraph, operator: Operator, tiles: Tiles) -> Counter[str]:
    """Kind of work -> how much of it one operator is when it works channels last, with dense kernels."""
    values, kind = graph.values, operator.kind
    result = values[operator.outputs[0]] if operator.outputs else None
    if kind in _FREE or result is None or (kind == "PAD" and _is_fused(graph, operator)):
        return Counter()
    work: Counter[str] = Counter(operator=1)
    size = result.num_elements
    if kind in ("CONV_2D", "FULLY_CONNECTED"):
        shape = values[operator.inputs[1]].shape
        if math.prod(shape[1:-1]) == 1 and operator.attributes.get("strides", (1, 1)) == (1, 1):
            return work + _count_product(size // shape[0], shape[-1], shape[0], tiles)
        return work + _count_window(size // shape[0], shape, tiles)
    if kind == "DEPTHWISE_CONV_2D":
        _, height, width, channels = values[operator.inputs[1]].shape
        taps = 9 if height * width <= 9 else 25
        scale = math.ceil(height * width / taps)
        pixels = size // channels
        return work + Counter(
            {f"depthwise{taps}": scale * pixels * math.ceil(channels / 8), f"depthwise{taps}_pixel": scale * pixels}
        )
    if kind in ("MEAN", "SUM"):
        return work + Counter(mean=_vectors(values[operator.inputs[0]].num_elements))
    if kind in _BINARY:
        return work + _count_binary(graph, operator, size // max(result.shape[-1], 1) if result.shape else 1)
    return work + _count_others(graph, operator, size, tiles)


def count_channels_first(graph: OperatorGraph, operator: Operator, tiles: Tiles, sparse: bool) -> Counter[str]:
    """Kind of work -> how much of it one operator is inside a cluster that switched to channels first.

    Args:
        graph: the network.
        operator: of the cluster.
        tiles: of the device.
        sparse: it is a product that runs sparse.
    """
    values, kind = graph.values, operator.kind
    work: Counter[str] = Counter(operator=1)
    result = values[operator.outputs[0]]
    if sparse:
        weights = values[operator.inputs[1]]
        return work + count_sparse(result.num_elements // weights.shape[0], weights, tiles)
    if kind == "CONV_2D" and values[operator.inputs[1]].shape[1:3] == (3, 3):
        batch, height, width, channels = result.shape
        return work + Counter(stem=batch * math.ceil(height / 2) * math.ceil(width / 2) * math.ceil(channels / 4))
    if kind == "DEPTHWISE_CONV_2D":
        batch, height, width, channels = result.shape
        form = values[operator.inputs[1]].shape[1], operator.attributes["strides"][0]
        bands = batch * channels * math.ceil(height / tiles.rows[form])
        name = "depthwise{}s{}".format(*form)
        return work + Counter({name: bands * math.ceil(width / _LANES), f"{name}_band": bands})
    if kind in ("MEAN", "SUM"):
        source = values[operator.inputs[0]]
        return work + Counter(mean_first=_vectors(source.num_elements), mean_first_row=source.shape[-1])
    if kind in _BINARY:
        return work + _count_binary(graph, operator, result.shape[0] * result.shape[-1])
    return count_dense(graph, operator, tiles)


def count_sparse(pixels: int, weights: Value, tiles: Tiles) -> Counter[str]:
    """Kind of work -> how much of it a sparse product of a map with these weights is."""
    rows = choose_rows(weights)
    num_blocks, (outputs, single) = weights.num_elements - weights.num_zeros, divmod(weights.shape[0], rows)
    if rows > 1:
        blocks = next(blocks for blocks in weights.blocks if blocks.rows == rows)
        num_blocks += blocks.num_blocks - blocks.num_nonzeros
    return count_blocks(pixels, weights.shape[-1], rows, num_blocks, outputs + single, tiles)


def count_blocks(pixels: int, depth: int, rows: int, num_blocks: int, outputs: int, tiles: Tiles) -> Counter[str]:
    """Work of a sparse kernel.

    Args:
        pixels: of the map.
        depth: its channels.
        rows: of the weights that the kernel takes together.
        num_blocks: that hold a value.
        outputs: rows of blocks.
        tiles: of the device.
    """
    parts = zip(("whole", "pass", "vector"), tiles.sparse[rows].split(pixels), strict=True)
    work: Counter[str] = Counter()
    for part, times in parts:
        work[f"sparse{rows}_{part}"] = num_blocks * times
        work[f"sparse{rows}_row_{part}"] = outputs * times
    if depth * tiles.sparse[rows].pixels * _NUMBER_BYTES > _CACHE_BYTES:
        work[f"sparse{rows}_far"] = work[f"sparse{rows}_whole"]
    return work


def _count_product(pixels: int, depth: int, outputs: int, tiles: Tiles) -> Counter[str]:
    columns = math.ceil(outputs / tiles.outputs)
    if _is_narrow(outputs, tiles.outputs):
        blocks = math.ceil(pixels / _NARROW[0]) * math.ceil(outputs / _NARROW[1])
        return Counter(narrow=blocks * depth, narrow_tile=blocks)
    if pixels == 1:
        return Counter(vector=columns * depth, vector_tile=columns)
    blocks = math.ceil(pixels / tiles.pixels) * columns
    return Counter(product=blocks * depth, product_tile=blocks)


def _is_narrow(outputs: int, wide: int) -> bool:
    """Whether a product goes by 2 outputs: wide tiles would waste more (src/microkernel-utils.c line 157)."""
    waste, least = -outputs % wide, -outputs % _NARROW[1]
    return outputs < wide or (least < waste and waste * 100 > outputs)


def _count_window(pixels: int, shape: tuple[int, ...], tiles: Tiles) -> Counter[str]:
    blocks = math.ceil(pixels / tiles.pixels) * math.ceil(shape[0] / tiles.outputs)
    return Counter(window=blocks * math.prod(shape[1:]), window_tap=blocks * math.prod(shape[1:-1]))


def _count_binary(graph: OperatorGraph, operator: Operator, rows: int) -> Counter[str]:
    """Equal shapes go in one run; otherwise row by row, of which there are as many as the layout makes of the map."""
    result = graph.values[operator.outputs[0]]
    shapes = [graph.values[index].shape for index in operator.inputs if index != ABSENT]
    vectors = _vectors(result.num_elements)
    if all(shape == result.shape or math.prod(shape) == 1 for shape in shapes):
        return Counter(binary=vectors)
    return Counter(broadcast=vectors, broadcast_row=rows)


def _count_others(graph: OperatorGraph, operator: Operator, size: int, tiles: Tiles) -> Counter[str]:
    kind, vectors = operator.kind, _vectors(size)
    if kind == "HARD_SWISH":
        return Counter(hard_swish=vectors)
    if kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
        return Counter(binary=vectors * math.prod(operator.attributes["window"]))
    if kind in _SIMPLE:
        return Counter(binary=vectors)
    if kind == "TRANSPOSE_CONV":
        return Counter(window=count_macs(graph, operator) // (tiles.pixels * tiles.outputs))
    return Counter(sigmoid=vectors)  # LOGISTIC, TANH, ELU, GELU, SOFTMAX: each some exponential


def _is_fused(graph: OperatorGraph, pad: Operator) -> bool:
    """Whether convolutions take the zeros in as their own padding."""
    readers = [operator for operator in graph.operators if pad.outputs[0] in operator.inputs]
    return bool(readers) and all(operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") for operator in readers)


def _vectors(size: int) -> int:
    return math.ceil(size / _LANES)
