"""What an operator costs dense and inside a sparse cluster, on one device; and so what running sparse gains or loses.

A cost is the work of `workload`, kind by kind, times what a unit of it was measured to cost. The coefficients are
fitted by nonnegative least squares to small networks of layers of many shapes and shares of zeros, each measured with
its weights stored dense and stored sparse: benchmarks/xnnpack_costs.py, which prints them and what they leave over.

    python benchmarks/xnnpack_costs.py --device=arm --networks=70 --folder=/tmp/costs

gave those of ARM: of 140 files, the predicted instructions of 90 % are 0.98 to 1.02 of the counted ones, and whole
networks that were not among them gain what is predicted to 3 % (MobileNet and MobileNetV2, 30 to 80 % of zeros).

    python benchmarks/xnnpack_costs.py --device=browser --networks=60 --folder=/tmp/costs

gave those of browsers, in milliseconds. Of whole networks that nothing was fitted to, 40 to 80 % of zeros, the
predicted speed-up was 0.97 to 1.07 of the measured one (MobileNetV2, EfficientNet-Lite0), for MobileNet 1.07 to 1.11.
An app that forces float16 arithmetic runs no sparse file right, and dense ones in about half of the instructions: ARM
here means float32.
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
    "binary": 4.436,
    "broadcast": 2.853,
    "broadcast_row": 24.22,
    "depthwise25": 140.2,
    "depthwise25_pixel": 136.6,
    "depthwise3s1": 68.28,
    "depthwise3s1_band": 53.65,
    "depthwise3s2": 46.61,
    "depthwise3s2_band": 77.01,
    "depthwise5s1": 193.8,
    "depthwise5s1_band": 0.2522,
    "depthwise5s2": 94.36,
    "depthwise5s2_band": 22.53,
    "depthwise9": 53.51,
    "depthwise9_pixel": 75.09,
    "hard_swish": 5.525,
    "inference": 9659,
    "mean": 2.757,
    "mean_first": 3.369,
    "mean_first_row": 113.3,
    "narrow": 3.778,
    "narrow_tile": 47.62,
    "product": 14.98,
    "product_tile": 83.49,
    "sigmoid": 34.74,
    "sparse1_far": 0.006114,
    "sparse1_pass": 8.011,
    "sparse1_row_whole": 33.79,
    "sparse1_vector": 2.248,
    "sparse1_whole": 21.05,
    "sparse2_far": 0.07903,
    "sparse2_pass": 8.452,
    "sparse2_row_whole": 58.49,
    "sparse2_whole": 29.93,
    "sparse4_far": 2.959,
    "sparse4_pass": 6.935,
    "sparse4_row_pass": 42.7,
    "sparse4_row_whole": 123.6,
    "sparse4_vector": 4.054,
    "sparse4_whole": 74.16,
    "stem": 167.7,
    "vector": 3.949,
    "window": 29.64,
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
    "binary": 6.314e-07,
    "broadcast": 5.209e-07,
    "broadcast_row": 2.831e-06,
    "depthwise25": 5.586e-05,
    "depthwise25_pixel": 1.683e-05,
    "depthwise3s1": 6.101e-06,
    "depthwise3s1_band": 3.037e-06,
    "depthwise3s2": 3.157e-06,
    "depthwise3s2_band": 5.058e-06,
    "depthwise5s1": 3.728e-05,
    "depthwise5s1_band": 2.227e-08,
    "depthwise5s2": 1.485e-05,
    "depthwise5s2_band": 2.737e-06,
    "depthwise9": 1.358e-05,
    "depthwise9_pixel": 6.773e-06,
    "hard_swish": 9.741e-07,
    "inference": 0.001152,
    "mean": 2.963e-07,
    "mean_first": 6.696e-07,
    "mean_first_row": 1.259e-05,
    "narrow": 2.576e-07,
    "narrow_tile": 3.131e-06,
    "operator": 0.0007927,
    "product": 1.403e-06,
    "product_tile": 4.429e-06,
    "sigmoid": 3.469e-06,
    "sparse1_far": 7.217e-10,
    "sparse1_pass": 6.803e-07,
    "sparse1_row_pass": 9.194e-07,
    "sparse1_row_vector": 3.674e-07,
    "sparse1_vector": 1.695e-08,
    "sparse1_whole": 1.832e-06,
    "sparse2_pass": 2.489e-07,
    "sparse2_row_pass": 1.722e-06,
    "sparse2_row_vector": 6.89e-07,
    "sparse2_row_whole": 5.884e-06,
    "sparse2_vector": 6.251e-07,
    "sparse2_whole": 4.758e-06,
    "sparse4_pass": 2.031e-07,
    "sparse4_row_pass": 4.729e-06,
    "sparse4_row_vector": 1.431e-06,
    "sparse4_row_whole": 1.745e-05,
    "sparse4_vector": 1.19e-07,
    "sparse4_whole": 8.648e-06,
    "stem": 5.496e-05,
    "vector": 5.574e-07,
    "vector_tile": 6.602e-05,
    "window": 2.107e-06,
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
