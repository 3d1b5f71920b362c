"""Storage: a smaller file, wherever it runs; every zero that need not be stored counts."""

import dataclasses

import numpy as np

from reflow_tf.sparsity.budget import Price
from reflow_tf.targets.operators import OperatorGraph
from reflow_tf.targets.target import HardwareTarget, Tariff, Verdict

_DTYPES = frozenset({"float32", "float16", "int8"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage(HardwareTarget):
    """Rewards zeros in every kernel."""

    name: str = "storage"
    description: str = "A smaller file: zeros are saved in every kernel, so every kernel is pruned."
    storage: str = "sparse"

    def price(self, graph: OperatorGraph) -> Tariff:
        """Bytes: a weight that is kept needs an index beside it, unless its whole tensor is stored dense."""
        prices = {}
        for value in graph.values:
            if value.constant and len(value.shape) > 1 and value.stored_dtype in _DTYPES:
                size_bytes = np.dtype(value.stored_dtype).itemsize
                # The file stores its indices along one axis of its choice.
                shortest = min((size for size in value.shape if size > 1), default=1)
                prices[value.index] = Price(size_bytes + (1 if shortest <= 256 else 2), size_bytes)
        return Tariff(prices)

    def judge(self, graph: OperatorGraph) -> Verdict:
        """Every file is welcome; how much smaller it got, its size says."""
        del graph
        return Verdict(True, True, (), (), "Every zero saves storage; nothing is promised about speed.")
