"""XNNPACK, the CPU delegate of mobile TensorFlow Lite: it runs 1x1 convolutions sparse and nothing else.

Source: XNNPACK `src/subgraph.c`, the sparse rewrite (`xnn_subgraph_rewrite_for_nchw`): inside an NCHW cluster only a
CONV_2D with a 1x1 kernel, stride 1 and one group turns into a sparse matrix product, and only if over 2/3 of the
cluster's weights are zero.
"""

import dataclasses

from reflow_tf.sparsity.layers import Kind, LayerSpec


@dataclasses.dataclass(frozen=True)
class XNNPack:
    """Rewards zeros in 1x1 convolutions."""

    name: str = "xnnpack"
    description: str = "XNNPACK on mobile CPUs can run 1x1 convolutions sparse, so only their kernels are pruned."

    def objection(self, spec: LayerSpec) -> str | None:
        if spec.kind is Kind.POINTWISE_CONV:
            return None
        return f"XNNPACK runs no {spec.kind.value.replace('_', ' ')} sparse"
