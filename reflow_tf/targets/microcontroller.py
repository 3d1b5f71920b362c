"""What microcontrollers have in common as targets: int8 throughout, few operators, and bytes of flash that count."""

import dataclasses
from collections.abc import Callable, Collection, Iterable

from reflow_tf.sparsity.budget import Price
from reflow_tf.targets.operators import Operator, OperatorGraph, group_by_kind, name_first
from reflow_tf.targets.target import Blocker, HardwareTarget, Tariff

_INT8_REMEDY = "--quantize=int8, which --target={} does by itself; operators that have no int8 form need replacing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Microcontroller(HardwareTarget):
    """A target whose networks compute in int8.

    Attributes:
        why_int8: why zeros gain nothing in any other file.
        filtered: kinds of operators in whose input 1, the weights, zeros gain something.
        weight: what one int8 weight of those costs.
    """

    quantize: str = "int8"
    is_microcontroller: bool = True
    why_int8: str
    filtered: frozenset[str]
    weight: Price

    def obstacle(self, quantize: str) -> str | None:
        return None if quantize == "int8" else self.why_int8

    def price(self, graph: OperatorGraph) -> Tariff:
        """Bytes of flash: see the subclass for what a weight takes and why."""
        return Tariff(dict.fromkeys(self.find_weights(graph), self.weight))

    def find_weights(self, graph: OperatorGraph) -> frozenset[int]:
        """The int8 constants in which zeros gain something."""
        return frozenset(
            operator.inputs[1]
            for operator in graph.operators
            if operator.kind in self.filtered and graph.values[operator.inputs[1]].stored_dtype == "int8"
        )

    def refuse_types(self, operators: Iterable[Operator], reason: str) -> tuple[Blocker, ...]:
        """One blocker for all the operators that do not compute in int8, if there are any."""
        found = list(operators)
        if not found:
            return ()
        kinds = ", ".join(sorted({operator.kind for operator in found}))
        return (Blocker(name_first(found), kinds, reason, _INT8_REMEDY.format(self.name)),)


def refuse_kinds(
    operators: Iterable[Operator], known: Collection[str], reason: Callable[[str], str], remedy: str
) -> tuple[Blocker, ...]:
    """A blocker for each kind of operator that is not known; `reason` makes its words of the kind."""
    missing = group_by_kind(operator for operator in operators if operator.kind not in known)
    return tuple(Blocker(name_first(found), kind, reason(kind), remedy) for kind, found in missing.items())
