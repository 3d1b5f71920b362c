"""The search for clusters that run sparse as a whole.

Source: XNNPACK 75db3c093, src/subgraph.c line 691, `xnn_subgraph_rewrite_for_nchw`, followed step by step and in its
order, because what it finds depends on it.

What counts as a parameter is the same in all three versions (b9d4073a6 line 640, 8b3d5687e line 850, 75db3c093 line
878): node by node, the filter of every 1x1 convolution, so that one that several nodes read counts once for each; a
fully connected node's as well where 1x1 convolutions become such. Nothing looks at what the weights do, and a
convolution of zeros is not folded into its bias.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from reflow_tf.targets.operators import Value
from reflow_tf.targets.xnnpack.layouts import Layout
from reflow_tf.targets.xnnpack.nodes import Node, NodeType, Subgraph
from reflow_tf.targets.xnnpack.versions import Version


@dataclasses.dataclass(frozen=True)
class FoundCluster:
    """Nodes that switch to channels first together.

    Attributes:
        nodes: positions in the subgraph, in the order of execution.
        products: positions of its 1x1 convolutions and other matrix products.
        num_weights: weights of the products.
        num_zeros: how many of them are zero.
        sparse: positions of the products whose output is channels first, which are the ones that become sparse.
        garbled: positions of the nodes that read channels first and write channels last without converting: XNNPACK
            switches them all the same, and what they compute is wrong.
    """

    nodes: tuple[int, ...]
    products: tuple[int, ...]
    num_weights: int
    num_zeros: int
    sparse: tuple[int, ...]
    garbled: tuple[int, ...]

    @property
    def least_zeros(self) -> int:
        """Strictly more than two thirds."""
        return self.num_weights * 2 // 3 + 1

    @property
    def has_enough_zeros(self) -> bool:
        return self.num_zeros >= self.least_zeros


def find_clusters(subgraph: Subgraph, layouts: Sequence[Layout], version: Version) -> tuple[FoundCluster, ...]:
    """The clusters that only their zeros and their storage can keep from switching; those without a product left out.

    Args:
        subgraph: what the delegate took as one.
        layouts: what each node can be, from `check_layout`.
        version: how consumers are counted.
    """
    search = _Search(subgraph, list(layouts), version)
    if not search.link_ends():
        return ()
    search.propagate()
    search.spoil_leaders()
    search.check_consumers()
    return search.collect()


class _Search:
    """The state of the search: each node's layout and leader, and who is spoiled."""

    def __init__(self, subgraph: Subgraph, layouts: list[Layout], version: Version):
        self._subgraph = subgraph
        self._nodes = subgraph.nodes
        self._layouts = layouts
        self._version = version
        self._leaders = list(range(len(self._nodes)))
        self._spoiled = [False] * len(self._nodes)
        self._producers = {index: n for n, node in enumerate(self._nodes) for index in node.outputs}
        self._changed = False

    def link_ends(self) -> bool:
        """Joins every node that can end a cluster to the producers of its inputs; False if there is none to join."""
        for n in range(len(self._nodes)):
            if self._layouts[n] & Layout.END:
                self._join_producers(n)
        return self._changed

    def propagate(self) -> None:
        """Joins the producers of all that is linked, until nothing changes."""
        while self._changed:
            self._changed = False
            for n in range(len(self._nodes)):
                if not self._spoiled[n] and self._layouts[n] & (Layout.INSIDE | Layout.END):
                    self._join_producers(n)

    def spoil_leaders(self) -> None:
        """One spoiled node spoils its cluster."""
        for n, spoiled in enumerate(self._spoiled):
            if spoiled:
                self._spoiled[self._leaders[n]] = True

    def check_consumers(self) -> None:
        """Whatever a cluster reads must be read by clusters only."""
        compatible = Counter(index for n in self._members() for index in self._data(n))
        consumers = self._count_consumers()
        members = list(self._members())
        for n in members:
            if any(compatible[index] != consumers[index] for index in self._data(n)):
                self._spoiled[self._leaders[n]] = True

    def collect(self) -> tuple[FoundCluster, ...]:
        members = list(self._members())
        channels_first = {index for n in members for index in self._data(n)}
        begins = {self._producers[index] for index in channels_first} - set(members)
        clusters = []
        for leader in sorted({self._leaders[n] for n in members}):
            nodes = sorted(n for n in {*members, *begins} if self._leaders[n] == leader)
            products = [n for n in nodes if self._is_product(n)]
            weights = [self._subgraph.values[self._nodes[n].inputs[1]] for n in products]
            if not products:
                continue
            clusters.append(
                FoundCluster(
                    nodes=tuple(nodes),
                    products=tuple(products),
                    num_weights=sum(value.num_elements for value in weights),
                    num_zeros=sum(self._count_zeros(value) for value in weights),
                    sparse=tuple(n for n in products if self._nodes[n].outputs[0] in channels_first),
                    garbled=tuple(n for n in nodes if self._is_garbled(n, channels_first)),
                )
            )
        return tuple(clusters)

    def _join_producers(self, n: int) -> None:
        for index in self._data(n):
            producer = self._producers.get(index)
            if index in self._subgraph.external or producer is None:
                self._spoiled[n] = True
                continue
            if not self._layouts[producer] & (Layout.INSIDE | Layout.BEGIN) or self._spoiled[producer]:
                self._spoiled[n] = True
                continue
            self._layouts[producer] &= ~Layout.END
            if self._leaders[producer] != self._leaders[n]:
                self._leaders[producer] = self._leaders[n] = max(self._leaders[producer], self._leaders[n])
                self._changed = True

    def _members(self) -> Sequence[int]:
        return [
            n
            for n, layout in enumerate(self._layouts)
            if layout & (Layout.INSIDE | Layout.END) and not self._spoiled[self._leaders[n]]
        ]

    def _data(self, n: int) -> list[int]:
        return [index for index in self._nodes[n].inputs if not self._subgraph.values[index].constant]

    def _is_garbled(self, n: int, channels_first: set[int]) -> bool:
        node, values = self._nodes[n], self._subgraph.values
        if not channels_first.intersection(node.inputs) or node.type is NodeType.DEPTH_TO_SPACE:
            return False
        source = values[node.inputs[0]]
        if node.outputs[0] in channels_first:
            return node.type is NodeType.REDUCTION and self._has_wrong_depth(node)
        if node.type is NodeType.REDUCTION and self._has_wrong_shape(node):
            return True
        if node.type in (NodeType.REDUCTION, NodeType.GLOBAL_POOLING):
            kept = {1, 2, 3} - set(node.operator.attributes["axes"])
            return 3 in kept and any(source.shape[axis] > 1 for axis in kept - {3})
        return len(source.shape) == 4 and source.shape[1:3] != (1, 1)

    def _has_wrong_depth(self, node: Node) -> bool:
        """A mean that keeps its dimensions tells its readers that it has as many channels as its input has rows.

        (src/subgraph/static-reduce.c lines 170 to 200.) A 1x1 convolution that works channels first does not look.
        """
        _, height, _, depth = self._subgraph.values[node.inputs[0]].shape
        if not node.operator.attributes.get("keep_dims") or height == depth:
            return False
        readers = [n for n in self._members() if node.outputs[0] in self._nodes[n].inputs]
        first = {index for n in self._members() for index in self._data(n)}
        return not all(self._is_product(n) and self._nodes[n].outputs[0] in first for n in readers)

    def _has_wrong_shape(self, node: Node) -> bool:
        """A mean that keeps its dimensions gives what is channels last the shape of what is channels first.

        (The same lines.) The numbers lie as they should: a RESHAPE, which a FULLY_CONNECTED begins with, does not look.
        Others do, and even where some of them come out right, they hand the wrong shape on.
        """
        value = node.outputs[0]
        if not node.operator.attributes.get("keep_dims"):
            return False
        batch, height, width, depth = self._subgraph.values[value].shape
        if (batch, depth, height, width) == (batch, height, width, depth):
            return False
        seen = self._subgraph.external - (self._subgraph.returned if self._version.states_outputs else set())
        return value in seen or not all(_is_reshape(reader) for reader in self._nodes if value in reader.inputs)

    def _count_consumers(self) -> Mapping[int, int]:
        consumers: Counter[int] = Counter()
        for n in range(len(self._nodes)):
            data = self._data(n)
            consumers.update(data if self._version.counts_repeated_inputs else set(data))
        return consumers

    def _count_zeros(self, value: Value) -> int:
        missed = self._version.misses_negative_zeros and value.stored_dtype == "float16"
        return value.num_zeros - (value.num_negative_zeros if missed else 0)

    def _is_product(self, n: int) -> bool:
        node = self._nodes[n]
        if node.type is NodeType.FULLY_CONNECTED:
            return True
        return node.type is NodeType.CONVOLUTION and self._subgraph.values[node.inputs[1]].shape[1:3] == (1, 1)


def _is_reshape(node: Node) -> bool:
    return node.type is NodeType.OTHER and node.operator.kind in ("RESHAPE", "FULLY_CONNECTED")
