"""A network judged by the rules of one runtime: clusters, root causes, and what would run sparse."""

import dataclasses

from reflow_tf.targets.operators import Operator, OperatorGraph
from reflow_tf.targets.target import Blocker, Cluster
from reflow_tf.targets.xnnpack.blockers import Placed, find_blockers
from reflow_tf.targets.xnnpack.clusters import FoundCluster, find_clusters
from reflow_tf.targets.xnnpack.costs import Switch
from reflow_tf.targets.xnnpack.delegate import build_subgraphs, is_unpacked_wrong
from reflow_tf.targets.xnnpack.layouts import check_layout
from reflow_tf.targets.xnnpack.nodes import Subgraph
from reflow_tf.targets.xnnpack.regions import Region, Wiring, find_region, has_pixels
from reflow_tf.targets.xnnpack.remedies import EXACT, promise
from reflow_tf.targets.xnnpack.shortfall import is_ballast
from reflow_tf.targets.xnnpack.versions import Version
from reflow_tf.targets.xnnpack.workload import is_pointwise

_STORED_DENSE = Blocker(
    operator="",
    kind="",
    reason="stored dense: the delegate asks for sparse kernels only where some weight is stored sparse",
    remedy="export it with reflow_tf, which stores them sparse",
)
_FLOAT16 = Blocker(
    operator="",
    kind="",
    reason="stored sparse, and the file allows float16 arithmetic, in which XNNPACK reads sparse weights in the wrong "
    "type on ARMv8.2 and newer: NaN, or a crash",
    remedy="store it dense, or do without the metadata 'reduced_precision_support'",
)
_DENSE_IN_FLOAT16 = Blocker(
    operator="",
    kind="",
    reason="the file allows float16 arithmetic, and this runtime has no sparse kernels for it",
    remedy="do without the metadata 'reduced_precision_support'",
)
_NO_PRODUCTS = Blocker(
    operator="",
    kind="",
    reason="no 1x1 convolution with stride 1, and nothing else has sparse kernels",
    remedy="no remedy: XNNPACK gains nothing from zeros in this network",
)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What one runtime makes of a file.

    Attributes:
        clusters: those that it would switch, then the one that something stands in the way of, if any.
        switched: those that run sparse, as operators.
        possible_switches: those that would, given enough zeros that are stored sparse.
        least_zeros: so many weights must be zero in these before anything runs sparse.
        corrupts: the runtime switches a cluster and computes wrong outputs, or refuses the file.
    """

    clusters: tuple[Cluster, ...]
    switched: tuple[Switch, ...]
    possible_switches: tuple[Switch, ...]
    least_zeros: int
    corrupts: bool

    @property
    def sparse(self) -> frozenset[int]:
        """Indices of the operators that run sparse."""
        return frozenset[int]().union(*(switch.sparse for switch in self.switched))

    @property
    def possible(self) -> frozenset[int]:
        """Indices of the operators that would run sparse, given enough zeros that are stored sparse."""
        return frozenset[int]().union(*(switch.sparse for switch in self.possible_switches))

    @property
    def fits(self) -> bool:
        """Something would run sparse, given enough zeros that are stored sparse."""
        return bool(self.possible)

    @property
    def eligible(self) -> bool:
        """Something runs sparse, and right."""
        return bool(self.switched) and not self.corrupts

    @property
    def blockers(self) -> tuple[Blocker, ...]:
        """Each once."""
        return tuple(dict.fromkeys(blocker for cluster in self.clusters for blocker in cluster.blockers))


def judge_version(graph: OperatorGraph, version: Version) -> Judgement:
    """Judges a network by the rules of one runtime."""
    wiring = Wiring(graph)
    clusters: list[Cluster] = []
    switched: list[Switch] = []
    possible: list[Switch] = []
    settled: set[int] = set()
    placed: dict[int, list[Placed]] = {}
    least_zeros = 0
    corrupts = any(is_unpacked_wrong(graph, operator, version) for operator in graph.operators)
    for subgraph in build_subgraphs(graph, version):
        findings = [check_layout(node, subgraph, version) for node in subgraph.nodes]
        for node, finding in zip(subgraph.nodes, findings, strict=True):
            placed.setdefault(node.operator.index, []).append(Placed(subgraph, node, finding))
        for found in find_clusters(subgraph, [finding.layout for finding in findings], version):
            cluster = _describe_cluster(graph, subgraph, found, version)
            clusters.append(cluster)
            wrong = found.garbled or (graph.allows_float16 and version.breaks_in_float16)
            corrupts = corrupts or bool(wrong and found.has_enough_zeros and subgraph.hints_sparse)
            settled |= {subgraph.nodes[n].operator.index for n in found.nodes}
            if found.sparse and not found.garbled:
                switch = _describe_switch(subgraph, found)
                switched += [switch] if cluster.runs_sparse else []
                possible.append(switch)
                least_zeros += found.least_zeros
    region = find_region(wiring, settled)
    if region is not None:
        clusters.append(_describe_region(wiring, region, placed, version))
    if not clusters:
        clusters.append(Cluster((), 0, 0, (_NO_PRODUCTS,), False))
    return Judgement(tuple(clusters), tuple(switched), tuple(possible), least_zeros, corrupts)


def _describe_switch(subgraph: Subgraph, found: FoundCluster) -> Switch:
    operators = [subgraph.nodes[n].operator.index for n in found.nodes]
    return Switch(frozenset(operators), frozenset(subgraph.nodes[n].operator.index for n in found.sparse))


def _describe_cluster(graph: OperatorGraph, subgraph: Subgraph, found: FoundCluster, version: Version) -> Cluster:
    blockers = []
    if found.garbled:
        blockers.append(_garbled(graph, subgraph, found))
    if not found.has_enough_zeros:
        blockers.append(_too_few_zeros(graph, subgraph, found))
    elif not subgraph.hints_sparse:
        blockers.append(_STORED_DENSE)
    elif graph.allows_float16:
        blockers.append(_FLOAT16 if version.breaks_in_float16 else _DENSE_IN_FLOAT16)
    weights = [subgraph.values[subgraph.nodes[n].inputs[1]] for n in found.products]
    num_ballast = sum(value.num_zeros for value in weights if is_ballast(value.name))
    return Cluster(
        operators=_names(graph, _own_operators(graph, subgraph, found)),
        num_weights=found.num_weights - num_ballast,
        num_zeros=found.num_zeros - num_ballast,
        num_ballast=num_ballast,
        blockers=tuple(blockers),
        runs_sparse=bool(found.sparse) and not blockers,
    )


def _own_operators(graph: OperatorGraph, subgraph: Subgraph, found: FoundCluster) -> list[int]:
    """Those of the network, without ballast."""
    operators = [subgraph.nodes[n].operator for n in found.nodes]
    return [o.index for o in operators if not any(is_ballast(graph.values[index].name) for index in o.outputs)]


def _garbled(graph: OperatorGraph, subgraph: Subgraph, found: FoundCluster) -> Blocker:
    operator = subgraph.nodes[found.garbled[0]].operator
    how = "without converting what it read channels first"
    if operator.attributes.get("keep_dims"):
        how = "with dimensions that it keeps, which then are in the order of what it read channels first"
    return Blocker(
        operator=operator.name,
        kind=operator.kind,
        reason=f"ends its cluster {how}: with enough zeros stored sparse, the runtime computes wrong outputs, or "
        "refuses the file",
        remedy=_end_remedy(graph, operator),
    )


def _end_remedy(graph: OperatorGraph, operator: Operator) -> str:
    if any(_is_reshaped(graph, reader) for reader in Wiring(graph).after(operator)):
        return promise(graph, "use GlobalAveragePooling2D without keepdims, then Dense")
    if operator.kind in ("MEAN", "SUM"):
        return "store it dense, or let the mean be over height and width and drop them (keepdims=False)"
    return "store it dense, or let the cluster end at a mean over height and width"


def _is_reshaped(graph: OperatorGraph, operator: Operator) -> bool:
    """Whether it is a classifier that comes as a 1x1 convolution of one pixel, made a vector at once."""
    if not is_pointwise(graph, operator) or has_pixels(graph, operator.inputs[0]):
        return False
    readers = Wiring(graph).after(operator)
    return len(readers) == 1 and readers[0].kind in ("RESHAPE", "SQUEEZE")


def _too_few_zeros(graph: OperatorGraph, subgraph: Subgraph, found: FoundCluster) -> Blocker:
    share = found.num_zeros / found.num_weights
    reason = f"{found.num_zeros:,} of {found.num_weights:,} weights are zero ({share:.1%}); needs more than two thirds"
    remedy = "prune more of its 1x1 weights, and store them sparse; where it pays, ballast makes up for what is missing"
    head = [n for n in found.products if not has_pixels(graph, subgraph.nodes[n].inputs[0])]
    body = [n for n in found.products if n not in head]
    head = [n for n in head if body and n > body[-1]]
    if head:
        values = [subgraph.values[subgraph.nodes[n].inputs[1]] for n in found.products if n not in head]
        zeros, weights = sum(value.num_zeros for value in values), sum(value.num_elements for value in values)
        name = " and ".join(_names(graph, [subgraph.nodes[n].operator.index for n in head]))
        reason += f"; {zeros / weights:.1%} without {name}, part of it for reading a mean that keeps its dimensions"
        last = subgraph.nodes[head[-1]].operator
        by_hand = f"or keep {name} out of the cluster: a mean that drops height and width, then Dense"
        if _is_reshaped(graph, last) and promise(graph, "") == EXACT:
            remedy += f"; --rewrite=exact takes {last.name} out of the count"
        else:
            remedy += f", {by_hand}"
    return Blocker("", "", reason, remedy)


def _describe_region(wiring: Wiring, region: Region, placed: dict[int, list[Placed]], version: Version) -> Cluster:
    graph = wiring.graph
    weights = [graph.values[graph.operators[index].inputs[1]] for index in region.products]
    return Cluster(
        operators=_names(graph, region.operators),
        num_weights=sum(value.num_elements for value in weights),
        num_zeros=sum(value.num_zeros for value in weights),
        blockers=find_blockers(wiring, region, placed, version),
        runs_sparse=False,
    )


def _names(graph: OperatorGraph, operators: list[int] | tuple[int, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(graph.operators[index].name for index in operators))
