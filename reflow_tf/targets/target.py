"""What a kind of hardware is to this tool: a judge of which kernels it pays to prune."""

from typing import Protocol

from reflow_tf.sparsity.layers import LayerSpec


class HardwareTarget(Protocol):
    """One kind of hardware, or one thing that a user wants small."""

    @property
    def name(self) -> str:
        """As `--target` spells it."""
        ...

    @property
    def description(self) -> str:
        """One sentence on what the target rewards."""
        ...

    def objection(self, spec: LayerSpec) -> str | None:
        """Why zeros in this kernel gain nothing here, or None if they do."""
        ...
