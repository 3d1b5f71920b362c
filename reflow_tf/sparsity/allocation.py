"""Allocations: how sparse each layer gets, for one sparsity over all of them.

Every allocation is a function `(specs, scores, sparsity) -> {path: sparsity}`. `scores` holds one array a path, in
canonical layout and *pooled* by the pattern: the weights of one group share one score, so a cut lands between groups
everywhere but in the one group where the budget ends. The sum over layers is exact:
`sum(round(s_l * n_l)) == round(sparsity * sum(n_l))`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.patterns import count_zeros

Scores = Mapping[str, np.ndarray]
Allocation = Callable[[Sequence[LayerSpec], Scores, float], dict[str, float]]


def uniform_allocation(specs: Sequence[LayerSpec], scores: Scores, sparsity: float) -> dict[str, float]:
    """Every layer gets the same sparsity, to within one weight."""
    del scores
    return _spend(specs, [sparsity * spec.num_weights for spec in specs])


def global_allocation(specs: Sequence[LayerSpec], scores: Scores, sparsity: float) -> dict[str, float]:
    """The lowest scores of the whole network go, wherever they are."""
    return _cut(specs, [scores[spec.path].ravel() for spec in specs], sparsity)


def erk_allocation(specs: Sequence[LayerSpec], scores: Scores, sparsity: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel: density of a layer proportional to (sum of its dimensions) / (product of its dimensions).

    For a kernel (o, h, w, i) that is (o + h + w + i) / (o h w i). A layer that would need a density over 1 stays dense
    and the others share what is left (Evci et al., "Rigging the Lottery", arXiv 1911.11134, and its reference code).
    """
    del scores
    sizes = np.array([spec.num_weights for spec in specs], float)
    shares = np.array([sum(size for size in spec.canonical_shape if size > 1) or 1 for spec in specs], float)
    budget = (1 - sparsity) * sizes.sum()
    kept = np.zeros_like(sizes)
    full = np.zeros(sizes.size, bool)
    while not full.all():
        kept[full] = sizes[full]
        kept[~full] = shares[~full] * (budget - sizes[full].sum()) / shares[~full].sum()
        overfull = (kept > sizes) & ~full
        if not overfull.any():
            break
        full |= overfull
    return _spend(specs, list(sizes - np.minimum(kept, sizes)))


def lamp_allocation(specs: Sequence[LayerSpec], scores: Scores, sparsity: float) -> dict[str, float]:
    """LAMP: the lowest of s_u^2 / sum of s_v^2 over the layer's weights v with s_v >= s_u go, network-wide.

    Lee et al., "Layer-Adaptive Sparsity for the Magnitude-based Pruning", arXiv 2010.07611, eq. 2. Weights of equal
    score get equal LAMP scores, so the groups of a pattern stay whole.
    """
    return _cut(specs, [_lamp_scores(scores[spec.path]) for spec in specs], sparsity)


ALLOCATIONS: Mapping[str, Allocation] = {
    "global": global_allocation,
    "uniform": uniform_allocation,
    "erk": erk_allocation,
    "lamp": lamp_allocation,
}


def _lamp_scores(scores: np.ndarray) -> np.ndarray:
    """LAMP scores of one layer, ascending, (n,) float32: where in the layer they stand does not matter here."""
    ascending = np.sort(scores, axis=None)
    squares = np.square(ascending, dtype=np.float64)
    remaining = np.cumsum(squares[::-1])[::-1]
    first_of_tie = np.concatenate([[True], ascending[1:] != ascending[:-1]])
    remaining = remaining[np.maximum.accumulate(np.where(first_of_tie, np.arange(ascending.size), 0))]
    return np.divide(squares, remaining, out=np.zeros_like(squares), where=remaining > 0).astype(np.float32)


def _cut(specs: Sequence[LayerSpec], flat_scores: Sequence[np.ndarray], sparsity: float) -> dict[str, float]:
    """Sparsity per layer when the lowest scores over all layers go; ties go in the order of the layers."""
    everything = np.concatenate(flat_scores)
    num_zeros = count_zeros(sparsity, everything.size)
    if num_zeros == 0:
        return {spec.path: 0.0 for spec in specs}
    everything.partition(num_zeros - 1)
    threshold = everything[num_zeros - 1]
    below = [int(np.count_nonzero(layer < threshold)) for layer in flat_scores]
    tied = [int(np.count_nonzero(layer == threshold)) for layer in flat_scores]
    num_left = num_zeros - sum(below)
    sparsities = {}
    for spec, num_below, num_tied in zip(specs, below, tied, strict=True):
        taken = min(num_tied, num_left)
        num_left -= taken
        sparsities[spec.path] = (num_below + taken) / spec.num_weights
    return sparsities


def _spend(specs: Sequence[LayerSpec], zeros: Sequence[float]) -> dict[str, float]:
    """Rounds wanted numbers of zeros to whole ones so that no layer and no running total is off by more than one."""
    total, spent, sparsities = 0.0, 0, {}
    for spec, wanted in zip(specs, zeros, strict=True):
        total += wanted
        # Rounding the running total, not the layer, keeps the sum exact; the clip is for float noise at 0 and n.
        num_zeros = min(max(round(total) - spent, 0), spec.num_weights)
        spent += num_zeros
        sparsities[spec.path] = num_zeros / spec.num_weights
    return sparsities
