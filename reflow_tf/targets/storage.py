"""Storage: a smaller file, wherever it runs; every zero that need not be stored counts."""

import dataclasses

from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.patterns import Pattern
from reflow_tf.targets.operators import OperatorGraph
from reflow_tf.targets.target import Verdict


@dataclasses.dataclass(frozen=True)
class Storage:
    """Rewards zeros in every kernel."""

    name: str = "storage"
    description: str = "A smaller file: zeros are saved in every kernel, so every kernel is pruned."
    rewrite: str = "none"

    def obstacle(self, quantize: str) -> str | None:
        del quantize
        return None

    def caution(self, pattern: Pattern) -> str | None:
        del pattern
        return None

    def objection(self, spec: LayerSpec) -> str | None:
        del spec
        return None

    def judge(self, graph: OperatorGraph) -> Verdict:
        """Every file is welcome; how much smaller it got, its size says."""
        del graph
        return Verdict(True, True, (), (), None, "Every zero saves storage; nothing is promised about speed.")
