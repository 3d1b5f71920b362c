"""Which rows of a kernel are to share a pattern of zeros: those whose blocks keep most, by maximum-weight matching.

A block of two output channels stays or goes as a whole. Rows that want the same inputs lose little by that, and rows
that stand side by side by accident lose twice what single weights do. NVIDIA permutes input channels for 2:4 in the
same spirit, by search (Pool & Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021); pairs of rows are a matching
problem, which Edmonds's algorithm solves to the optimum.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import rustworkx

NUM_PARTNERS = 40
"""Partners of each row that the matching may choose from; the others are far from the best.

On MobileNetV2's kernels of 96 to 384 rows, 10 partners give what all do, to 0.001 of the layer's energy.
"""
MOST_PRODUCTS = 1 << 33
"""Most sums of two scores that the weights of one round take; of more, every t-th input is looked at."""
_ROUNDS_OF_THRESHOLD = 2
_STEPS_OF_WEIGHT = 1e7  # weights of edges are whole numbers


@dataclasses.dataclass(frozen=True)
class ScoredRows:
    """One kernel, as the search for pairs sees it.

    Attributes:
        energies: (rows, inputs), not negative: what is lost with each weight, e.g. the square of a score.
        sparsity: share of the weights that go.
    """

    energies: np.ndarray
    sparsity: float


def order_rows(kernels: Sequence[ScoredRows], height: int) -> np.ndarray:
    """The order of rows in which blocks of `height` neighbours keep most energy.

    Rows are matched into pairs, pairs into fours and so on, as often as `height` is even; what is left over of an odd
    number comes last, and a height of 3 leaves all as it is.

    Args:
        kernels: whose rows are numbered alike; each counts by the share of its own energy.
        height: rows of a block.

    Returns:
        Which row comes to each place, (rows,).
    """
    num_rows = len(kernels[0].energies)
    teams = [[row] for row in range(num_rows)]
    alone: list[list[int]] = []
    while height % 2 == 0 and len(teams) > 1:
        sums = [_sum_teams(kernel.energies, teams) for kernel in kernels]
        pairs = _pair([ScoredRows(e, k.sparsity) for e, k in zip(sums, kernels, strict=True)])
        left = set(range(len(teams))) - set(itertools.chain(*pairs))
        alone = [teams[index] for index in sorted(left)] + alone
        teams = [teams[one] + teams[other] for one, other in pairs]
        height //= 2
    return np.array([row for team in teams + alone for row in team])


def _sum_teams(energies: np.ndarray, teams: Sequence[Sequence[int]]) -> np.ndarray:
    total = float(energies.sum(dtype=np.float64)) or 1.0
    return np.stack([energies[team].sum(0) for team in teams]) / total


def _pair(kernels: Sequence[ScoredRows]) -> list[tuple[int, int]]:
    """The best pairs, each in increasing order, in the order of their first rows."""
    num_rows = len(kernels[0].energies)
    pairs = [(row, row + 1) for row in range(0, num_rows - 1, 2)]
    thinned = _thin(kernels)
    for _ in range(_ROUNDS_OF_THRESHOLD):
        pairs = _match(_weigh(thinned, pairs))
    return pairs


def _thin(kernels: Sequence[ScoredRows]) -> list[ScoredRows]:
    rows, inputs = len(kernels[0].energies), sum(kernel.energies.shape[1] for kernel in kernels)
    step = -(-rows * rows * inputs // MOST_PRODUCTS)
    return [ScoredRows(kernel.energies[:, ::step].astype(np.float32), kernel.sparsity) for kernel in kernels]


def _weigh(kernels: Sequence[ScoredRows], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """What each two rows would keep above the price of a block, (rows, rows) float32.

    Of all pairs together as many blocks stay as the sparsity says; which, a threshold decides. With the threshold as
    price the choice of pairs falls apart into a sum (Lagrange); it is that of the pairs given.
    """
    first, second = map(list, zip(*pairs, strict=True))
    weights = np.zeros((len(kernels[0].energies),) * 2, np.float32)
    for kernel in kernels:
        price = np.quantile(kernel.energies[first] + kernel.energies[second], kernel.sparsity).astype(np.float32)
        for row, own in zip(weights, kernel.energies, strict=True):
            row += np.maximum(kernel.energies + (own - price), 0).sum(1)
    return weights


def _match(weights: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of the highest total weight, as many as there can be."""
    num_rows = len(weights)
    np.fill_diagonal(weights, 0)
    # Without the mean of either row, what is left tells partners apart; rows of much energy are not everyone's best.
    means = weights.sum(1) / (num_rows - 1)
    gains = weights - means[:, None] - means
    np.fill_diagonal(gains, -np.inf)
    edges = _find_edges(gains)
    values = weights[edges[:, 0], edges[:, 1]].astype(np.float64)
    scaled = np.round((values - values.min()) / (float(np.ptp(values)) or 1.0) * _STEPS_OF_WEIGHT).astype(np.int64)
    graph: rustworkx.PyGraph[int, int] = rustworkx.PyGraph()
    graph.add_nodes_from(range(num_rows))
    graph.add_edges_from([(int(one), int(other), int(v)) for (one, other), v in zip(edges, scaled, strict=True)])
    found = rustworkx.max_weight_matching(graph, max_cardinality=True, weight_fn=int)
    pairs = {(min(pair), max(pair)) for pair in found}
    # Partners that were left out of the graph can leave rows without one.
    rest = sorted(set(range(num_rows)) - set(itertools.chain(*pairs)))
    return sorted(pairs | set(zip(rest[::2], rest[1::2], strict=False)))


def _find_edges(gains: np.ndarray) -> np.ndarray:
    """Every two rows of which one is among the other's best NUM_PARTNERS, (edges, 2), each once."""
    num_rows = len(gains)
    count = min(NUM_PARTNERS, num_rows - 1)
    best = np.argpartition(-gains, count - 1, axis=1)[:, :count]
    near = np.zeros(gains.shape, bool)
    np.put_along_axis(near, best, True, axis=1)
    return np.argwhere(np.triu(near | near.T, 1))
