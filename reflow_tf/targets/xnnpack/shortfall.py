"""What clusters lack to run sparse: zeros, and nothing else; and where zeros could be added that change no output."""

import dataclasses

from reflow_tf.targets.operators import OperatorGraph
from reflow_tf.targets.xnnpack.clusters import FoundCluster, find_clusters
from reflow_tf.targets.xnnpack.delegate import build_subgraphs
from reflow_tf.targets.xnnpack.layouts import check_layout
from reflow_tf.targets.xnnpack.nodes import NodeType, Subgraph
from reflow_tf.targets.xnnpack.versions import Version

BALLAST = "reflow_tf/ballast/"
"""How the names of tensors begin that exact rewriting adds to lift a cluster over two thirds of zeros."""


def is_ballast(name: str) -> bool:
    """Whether a tensor of that name is ballast, and none of the network's own."""
    return name.startswith(BALLAST)


@dataclasses.dataclass(frozen=True)
class Shortfall:
    """A cluster that only its share of zeros keeps from running sparse.

    Attributes:
        num_weights: of its 1x1 convolutions.
        num_zeros: how many of them are zero: two thirds or fewer.
        values: indices of the images, (batch, height, width, channels), perhaps of one pixel, that its own operators
            make and nobody else reads: whatever is computed from one of them and combined with it is in the cluster.
    """

    num_weights: int
    num_zeros: int
    values: tuple[int, ...]

    def count_kernels(self, size: int) -> int:
        """How many kernels of so many zeros lift the cluster over two thirds (src/subgraph.c line 935)."""
        return max(0, 2 * self.num_weights - 3 * self.num_zeros) // size + 1


def find_shortfalls(graph: OperatorGraph, version: Version) -> tuple[Shortfall, ...]:
    """The clusters of a network that lack zeros and nothing else, in the order of execution.

    Those are left out in which nothing would become sparse, that the runtime would compute wrong, or in which there is
    no place for more zeros.
    """
    found = []
    for subgraph in build_subgraphs(graph, version):
        layouts = [check_layout(node, subgraph, version).layout for node in subgraph.nodes]
        for cluster in find_clusters(subgraph, layouts, version):
            lacks_zeros = cluster.sparse and not cluster.garbled and not cluster.has_enough_zeros
            if lacks_zeros and (values := _find_inner_values(graph, subgraph, cluster)):
                found.append(Shortfall(cluster.num_weights, cluster.num_zeros, values))
    return tuple(found)


def _find_inner_values(graph: OperatorGraph, subgraph: Subgraph, cluster: FoundCluster) -> tuple[int, ...]:
    members = set(cluster.nodes)
    # A mean that keeps its dimensions tells all but 1x1 convolutions a wrong number of channels (`FoundCluster`).
    makers = [subgraph.nodes[n] for n in cluster.nodes if subgraph.nodes[n].type is not NodeType.REDUCTION]
    made = [index for node in makers for index in node.outputs]
    leaving = {index for n, node in enumerate(subgraph.nodes) if n not in members for index in node.inputs}
    read = {index for n in cluster.nodes for index in subgraph.nodes[n].inputs}
    # What XNNPACK's translation put between operators is not in the file.
    in_file = range(len(graph.values))
    return tuple(
        index
        for index in made
        if index in in_file
        and index in read
        and index not in leaving | subgraph.external
        and len(graph.values[index].shape) == 4
    )
