"""What an operator costs dense and inside a sparse cluster, on one device; and so what running sparse gains or loses.

A cost is the work of `workload`, kind by kind, times what a unit of it was measured to cost. The coefficients are
fitted by nonnegative least squares to small networks of layers of many shapes and shares of zeros, each measured with
its weights stored dense and stored sparse: benchmarks/xnnpack_costs.py, which prints them and what they leave over.

    python benchmarks/xnnpack_costs.py --device=arm --networks=70 --folder=/tmp/costs

gave those of ARM: of 140 files, the predicted instructions of 90 % are 0.98 to 1.02 of the counted ones, and whole
networks that were not among them gain what is predicted to 3 % (MobileNet and MobileNetV2, 30 to 80 % of zeros).

    python benchmarks/xnnpack_costs.py --device=browser --networks=45 --folder=/tmp/costs

gave those of browsers, in milliseconds: of five whole networks on an idle machine within 8 %. An app that forces
float16 arithmetic runs no sparse file right, and dense ones in about half of the instructions: ARM here means float32.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping

from reflow_tf.targets.operators import Operator, OperatorGraph
from reflow_tf.targets.xnnpack.workload import SparseTile, Tiles, count_channels_first, count_dense


@dataclasses.dataclass(frozen=True)
class Device:
    """Where a file runs.

    Attributes:
        name: as `--device` spells it.
        place: how a sentence goes on: 'in a browser'.
        description: what was measured.
        tiles: what its kernels take at once.
        coefficients: kind of work -> what a unit of it costs; what is not here costs nothing.
    """

    name: str
    place: str
    description: str
    tiles: Tiles
    coefficients: Mapping[str, float]

    def cost(self, work: Mapping[str, float]) -> float:
        """The sum over kinds of work."""
        return sum(self.coefficients.get(kind, 0.0) * amount for kind, amount in work.items())


@dataclasses.dataclass(frozen=True)
class Switch:
    """Operators that work channels first together, once their cluster runs sparse.

    Attributes:
        operators: indices of all of them, the stem and the end included.
        sparse: indices of the products that then run sparse.
    """

    operators: frozenset[int]
    sparse: frozenset[int]


def count_work(graph: OperatorGraph, switches: Collection[Switch], tiles: Tiles) -> Counter[str]:
    """Kind of work -> how much of it one inference is.

    Args:
        graph: the network.
        switches: the clusters that run sparse.
        tiles: of the device.
    """
    first = frozenset[int]().union(*(switch.operators for switch in switches))
    sparse = frozenset[int]().union(*(switch.sparse for switch in switches))
    total: Counter[str] = Counter(inference=1)
    for operator in graph.operators:
        total.update(_count_one(graph, operator, tiles, first, sparse))
    return total


def _count_one(
    graph: OperatorGraph, operator: Operator, tiles: Tiles, first: Collection[int], sparse: Collection[int]
) -> Counter[str]:
    if operator.index in first:
        return count_channels_first(graph, operator, tiles, operator.index in sparse)
    return count_dense(graph, operator, tiles)


_ARM_COEFFICIENTS = {
    "binary": 4.305,
    "broadcast": 2.989,
    "broadcast_row": 24.19,
    "depthwise25": 140.3,
    "depthwise25_pixel": 136.6,
    "depthwise3s1": 68.34,
    "depthwise3s1_band": 50.8,
    "depthwise3s2": 46.89,
    "depthwise3s2_band": 73.26,
    "depthwise5s1": 192.9,
    "depthwise5s1_band": 7.176,
    "depthwise5s2": 93.47,
    "depthwise5s2_band": 25.87,
    "depthwise9": 53.51,
    "depthwise9_pixel": 74.88,
    "hard_swish": 5.398,
    "inference": 10370.0,
    "mean": 2.653,
    "mean_first": 3.238,
    "mean_first_row": 113.6,
    "narrow": 3.778,
    "narrow_tile": 47.72,
    "product": 14.98,
    "product_tile": 83.91,
    "sigmoid": 34.72,
    "sparse1_pass": 7.888,
    "sparse1_row_whole": 34.87,
    "sparse1_vector": 2.334,
    "sparse1_whole": 21.03,
    "sparse2_pass": 8.356,
    "sparse2_row_whole": 59.66,
    "sparse2_whole": 29.92,
    "sparse4_pass": 23,
    "sparse4_row_pass": 42.93,
    "sparse4_row_whole": 121.7,
    "sparse4_vector": 0.02839,
    "sparse4_whole": 74.68,
    "stem": 167.7,
    "vector": 3.908,
    "window": 29.63,
}
_ARM_TILE = SparseTile(32, 4)
ARM = Device(
    name="arm",
    place="on ARM",
    description="64-bit ARM CPUs in float32 arithmetic, by instructions of ai-edge-litert 1.4.0 on a Cortex-A76",
    tiles=Tiles(6, 8, {1: _ARM_TILE, 2: _ARM_TILE, 4: _ARM_TILE}, {(3, 1): 3, (3, 2): 2, (5, 1): 4, (5, 2): 1}),
    coefficients=_ARM_COEFFICIENTS,
)
_BROWSER_COEFFICIENTS = {
    "binary": 7.208e-07,
    "broadcast": 4.58e-07,
    "broadcast_row": 2.941e-06,
    "depthwise25": 5.595e-05,
    "depthwise25_pixel": 1.575e-05,
    "depthwise3s1": 5.604e-06,
    "depthwise3s1_band": 3.465e-06,
    "depthwise3s2": 2.965e-06,
    "depthwise3s2_band": 4.585e-06,
    "depthwise5s1": 3.876e-05,
    "depthwise5s1_band": 6.238e-07,
    "depthwise5s2": 1.196e-05,
    "depthwise5s2_band": 3.232e-06,
    "depthwise9": 1.223e-05,
    "depthwise9_pixel": 8.098e-06,
    "hard_swish": 1.176e-06,
    "inference": 0.001224,
    "mean": 2.174e-07,
    "mean_first": 6.078e-07,
    "mean_first_row": 1.459e-05,
    "narrow": 2.755e-07,
    "narrow_tile": 3.937e-06,
    "operator": 0.0005758,
    "product": 1.427e-06,
    "product_tile": 5.628e-06,
    "sigmoid": 3.568e-06,
    "sparse1_pass": 3.238e-07,
    "sparse1_row_pass": 9.884e-07,
    "sparse1_row_vector": 3.895e-07,
    "sparse1_whole": 2.118e-06,
    "sparse2_pass": 2.458e-07,
    "sparse2_row_pass": 1.755e-06,
    "sparse2_row_vector": 7.019e-07,
    "sparse2_row_whole": 5.746e-06,
    "sparse2_vector": 2.09e-05,
    "sparse2_whole": 4.95e-06,
    "sparse4_pass": 6.788e-07,
    "sparse4_row_pass": 4.338e-06,
    "sparse4_row_vector": 1.375e-06,
    "sparse4_row_whole": 1.492e-05,
    "sparse4_whole": 8.809e-06,
    "stem": 5.523e-05,
    "vector": 5.616e-07,
    "vector_tile": 1.95e-05,
    "window": 2.241e-06,
}
_SCALAR_TILE = SparseTile(8, 1)
BROWSER = Device(
    name="browser",
    place="in a browser",
    description="browsers, by the time of LiteRT.js 2.5.3 (WebAssembly) in one thread on x86",
    tiles=Tiles(
        4, 8, {1: SparseTile(32, 4), 2: _SCALAR_TILE, 4: _SCALAR_TILE}, {(3, 1): 2, (3, 2): 1, (5, 1): 3, (5, 2): 1}
    ),
    coefficients=_BROWSER_COEFFICIENTS,
)
DEVICES: Mapping[str, Device] = {device.name: device for device in (BROWSER, ARM)}
