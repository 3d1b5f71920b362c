"""Scores, allocation and masks for a network of 25 million weights in 50 kernels, NumPy only. The bar is 2 s each.

python benchmarks/mask_cost.py
"""

import time

import numpy as np

from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.criteria import magnitude
from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.sparsity.masks import build_masks, count_masked
from reflow_tf.sparsity.patterns import Unstructured
from reflow_tf.sparsity.plan import make_plan

REPEATS = 5


def main() -> None:
    rng = np.random.default_rng(0)
    # From 64x64 to about 1800x1800, like the kernels of a ResNet-50.
    widths = np.geomspace(64, 1790, 50).astype(int)
    specs = [LayerSpec(f"l{i}", Kind.POINTWISE_CONV, (1, 1, w, w), (3,), (2,)) for i, w in enumerate(widths)]
    kernels = {s.path: rng.normal(0, s.shape[2] ** -0.5, s.canonical_shape).astype(np.float32) for s in specs}
    print(f"{sum(spec.num_weights for spec in specs) / 1e6:.1f} million weights, sparsity 0.8")
    for name, allocation in ALLOCATIONS.items():
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            scores = {path: magnitude(kernel, {}) for path, kernel in kernels.items()}
            masks = build_masks(
                make_plan(specs, scores, dict.fromkeys(scores, Unstructured()), allocation, 0.8), scores
            )
            seconds.append(time.perf_counter() - start)
        print(
            f"{name:8} median {np.median(seconds):.2f} s (from {min(seconds):.2f} to {max(seconds):.2f}), "
            f"{count_masked(masks)} zeros"
        )


if __name__ == "__main__":
    main()
