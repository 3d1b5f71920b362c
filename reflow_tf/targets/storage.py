"""Storage: a smaller file, wherever it runs; every zero that need not be stored counts."""

import dataclasses

from reflow_tf.sparsity.layers import LayerSpec


@dataclasses.dataclass(frozen=True)
class Storage:
    """Rewards zeros in every kernel."""

    name: str = "storage"
    description: str = "A smaller file: zeros are saved in every kernel, so every kernel is pruned."

    def objection(self, spec: LayerSpec) -> str | None:
        del spec
        return None
