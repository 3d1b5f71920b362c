"""The edges of a Keras 2 network: which layer is called on which tensors, as Keras 3 writes it.

Keras 2 wrote a call as a structure of leaves [layer, number of the call, number of the output, arguments], the same
arguments in each leaf; a first argument that is no tensor is ['_CONSTANT_VALUE', -1, value, arguments]. Keras 3 writes
positional arguments and arguments by name. Source: tf_keras.src.engine.node.Node.serialize.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from reflow_tf.models.keras2.refusal import Untranslatable

_CONSTANT = "_CONSTANT_VALUE"


@dataclasses.dataclass(frozen=True)
class References:
    """How the layers of one network are referred to.

    Attributes:
        names: name in the file -> name in Keras 3, of every layer.
        nested: names in the file of the models among them.
        first_calls: for these, the number of the first call. Keras 2 counts a model's own input as call 0, Keras 3 does
            not.
    """

    names: Mapping[str, str]
    nested: frozenset[str]
    first_calls: Mapping[str, int]

    def tensor(self, leaf: list[Any], layer: str) -> dict[str, Any]:
        """A tensor as Keras 3 writes it among the arguments of a call."""
        return {
            "class_name": "__keras_tensor__",
            "config": {"shape": [], "dtype": "float32", "keras_history": self.history(leaf, layer)},
        }

    def history(self, leaf: list[Any], layer: str) -> list[Any]:
        """[name, number of the call, number of the output] in Keras 3."""
        name, call, output = leaf[:3]
        if name not in self.names:
            raise Untranslatable(layer, f"takes the output of {name!r}, which is no layer of the network")
        return [self.names[name], call - self.first_calls.get(name, 0), output]


def read_references(names: Mapping[str, str], nested: frozenset[str], config: Mapping[str, Any]) -> References:
    """Reads how the network's configuration counts the calls of the models in it."""
    first: dict[str, int] = {}
    calls = [node for entry in config["layers"] for node in entry.get("inbound_nodes", [])]
    for leaf in find_leaves([calls, config["input_layers"], config["output_layers"]]):
        if leaf[0] in nested:
            first[leaf[0]] = min(leaf[1], first.get(leaf[0], leaf[1]))
    return References(names, nested, first)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        first: the first argument: a tensor as Keras 3 writes it, a constant, or a list or dictionary of these.
        others: the other arguments, by name.
    """

    first: Any
    others: dict[str, Any]


def read_call(node: Any, references: References, layer: str) -> Call:
    """Reads one of a layer's 'inbound_nodes'.

    Raises:
        Untranslatable: it is no call as Keras 2 writes it.
    """
    leaves = list(find_leaves(node, into_arguments=False))
    if not leaves:
        raise Untranslatable(layer, f"is called on something that is no tensor: {str(node)[:80]}")
    arguments = leaves[0][3] if len(leaves[0]) > 3 else {}
    if not isinstance(arguments, dict):
        raise Untranslatable(layer, f"is called with arguments that have no names: {str(arguments)[:80]}")
    first = _map_leaves(node, references, layer)
    if isinstance(first, list) and len(first) == 1:
        first = first[0]
    return Call(first, {key: _map_leaves(value, references, layer) for key, value in arguments.items()})


def is_leaf(value: Any) -> bool:
    """Whether a value refers to a tensor, or is a constant in its place."""
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and (isinstance(value[2], int) or value[0] == _CONSTANT)
    )


def find_leaves(value: Any, into_arguments: bool = True) -> Iterator[list[Any]]:
    """Whatever refers to a tensor, or is a constant in its place; with those among the arguments of calls."""
    if is_leaf(value):
        yield value
        if into_arguments and len(value) > 3:
            yield from find_leaves(value[3])
    elif isinstance(value, list):
        for item in value:
            yield from find_leaves(item, into_arguments)
    elif isinstance(value, dict):
        for item in value.values():
            yield from find_leaves(item, into_arguments)


def _map_leaves(value: Any, references: References, layer: str) -> Any:
    if is_leaf(value):
        return value[2] if value[0] == _CONSTANT else references.tensor(value, layer)
    if isinstance(value, list):
        return [_map_leaves(item, references, layer) for item in value]
    if isinstance(value, dict):
        return {key: _map_leaves(item, references, layer) for key, item in value.items()}
    return value
