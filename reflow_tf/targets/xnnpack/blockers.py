"""Why 1x1 convolutions are in no cluster: the root causes in their region, each once."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from reflow_tf.targets.operators import Operator
from reflow_tf.targets.target import Blocker
from reflow_tf.targets.xnnpack.delegate import refusal
from reflow_tf.targets.xnnpack.layouts import Finding, Layout
from reflow_tf.targets.xnnpack.nodes import Node, NodeType, Subgraph
from reflow_tf.targets.xnnpack.regions import Region, Wiring, has_pixels
from reflow_tf.targets.xnnpack.remedies import Words, averages_map, describe, describe_kind, describe_refusal
from reflow_tf.targets.xnnpack.versions import Version

_NO_STEM = Words(
    "no convolution of the image comes before it; a cluster must begin at one: 3x3, stride 2, 3 channels, padding 1",
    "begin the network with such a convolution, and train again",
)
_NO_END = Words(
    "nothing ends the cluster: needs a mean over height and width (GlobalAveragePooling2D) or a DEPTH_TO_SPACE",
    "end the convolutions with GlobalAveragePooling2D, and train again",
)
_TWICE = Words("reads one value twice, which XNNPACK miscounts", "multiply it by a constant instead")


class Placed(NamedTuple):
    """A node, where it is, and what it can be."""

    subgraph: Subgraph
    node: Node
    finding: Finding


def find_blockers(
    wiring: Wiring, region: Region, placed: dict[int, list[Placed]], version: Version
) -> tuple[Blocker, ...]:
    """The root causes in a region that would be a cluster, in the order of execution, equal ones as one.

    Args:
        wiring: of the graph.
        region: from `find_region`.
        placed: operator -> its nodes; none where the delegate refuses it, or where it was fused away.
        version: whose delegate it is.
    """
    graph = wiring.graph
    causes: list[tuple[Operator, Words]] = []
    if not region.stems:
        causes.append((graph.operators[region.products[0]], _NO_STEM))
    for index in region.operators:
        operator = graph.operators[index]
        refused = refusal(graph, operator, version)
        if refused:
            causes.append((operator, describe_refusal(operator, refused)))
        for place in placed.get(index, []):
            causes += _own_cause(wiring, place, index in region.stems)
    causes += _outside_causes(wiring, region, placed, version)
    if not region.ends:
        causes.append(_missing_end(wiring, region))
    if not causes:
        words = Words("XNNPACK's search puts it into no cluster that it would switch", "none known: please report it")
        causes.append((graph.operators[region.products[0]], words))
    return group(causes)


def _missing_end(wiring: Wiring, region: Region) -> tuple[Operator, Words]:
    """The pooling that could be a mean, which would end the cluster, or the last operator of all."""
    graph = wiring.graph
    behind = [graph.operators[index] for index in sorted(wiring.spread(region.operators, wiring.after))]
    pooling = next((operator for operator in behind if averages_map(graph, operator)), None)
    if pooling is not None:
        return pooling, describe_kind(graph, pooling)
    return graph.operators[region.operators[-1]], _NO_END


def group(causes: Iterable[tuple[Operator, Words]]) -> tuple[Blocker, ...]:
    """One blocker for all operators that are blocked in the same words."""
    together: dict[Words, list[Operator]] = {}
    for operator, words in causes:
        together.setdefault(words, []).append(operator)
    return tuple(
        Blocker(
            operator=_join(list(dict.fromkeys(operator.name for operator in operators))),
            kind=", ".join(dict.fromkeys(operator.kind for operator in operators)),
            reason=words.reason,
            remedy=words.remedy,
        )
        for words, operators in together.items()
    )


def _join(names: list[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:2])} and {len(names) - 2} more"


def _own_cause(wiring: Wiring, place: Placed, begins: bool) -> Iterator[tuple[Operator, Words]]:
    node, finding = place.node, place.finding
    if finding.broken is not None:
        yield node.operator, describe(wiring.graph, node, place.subgraph.values, finding.broken, begins)
    elif begins and not finding.layout & Layout.BEGIN:
        yield node.operator, _NO_STEM


def _outside_causes(
    wiring: Wiring, region: Region, placed: dict[int, list[Placed]], version: Version
) -> Iterator[tuple[Operator, Words]]:
    graph = wiring.graph
    inside = set(region.operators)
    for index in region.operators:
        operator = graph.operators[index]
        ends = index in region.ends
        for value in operator.outputs:
            readers = wiring.readers[value]
            kept = [reader for reader in readers if reader.index in inside or (ends and _joins(placed, reader))]
            if not kept:
                continue
            if value in graph.outputs:
                words = Words("its output is an output of the file, too", "export each output as a file of its own")
                yield operator, words
            for reader in readers:
                if reader not in kept:
                    yield reader, _outside_words(operator, kept[0], has_pixels(graph, value))
            for reader in kept:
                if reader.inputs.count(value) > 1 and not version.counts_repeated_inputs and _is_binary(placed, reader):
                    yield reader, _TWICE


def _outside_words(maker: Operator, member: Operator, pixels: bool) -> Words:
    where = "from outside of the cluster" if pixels else f"beside {member.name}, which the cluster takes in"
    return Words(
        f"reads the output of {maker.name} {where}; whatever a cluster reads, only the cluster may read",
        "read it behind the cluster's end, or export it as a file of its own",
    )


def _joins(placed: dict[int, list[Placed]], operator: Operator) -> bool:
    """Whether an operator behind an end is drawn into the cluster."""
    places = placed.get(operator.index, [])
    return bool(places) and bool(places[0].finding.layout & (Layout.INSIDE | Layout.END))


def _is_binary(placed: dict[int, list[Placed]], operator: Operator) -> bool:
    return any(place.node.type is NodeType.BINARY for place in placed.get(operator.index, []))
