"""The calls that a functional model is made of, those of nested models among them, and the tensors between."""

import dataclasses
from typing import Any

import keras

from reflow_tf.models.joining import Join, Take


@dataclasses.dataclass(frozen=True)
class Call:
    """One use of a layer or an operation.

    Attributes:
        operation: a layer, an operation of `keras.ops`, or, where a tensor only gets into a nested model or out of it,
            None.
        inputs: the tensors that it reads, as numbers.
        outputs: the tensors that it computes, as numbers.
        constants: what else it is given: numbers, arrays, and the options of a call; None is left out.
    """

    operation: keras.Operation | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: tuple[Any, ...] = ()


class CallGraph:
    """Every call of a functional or sequential model; of a subclassed one nothing is known, and there are none.

    A nested model that is called several times has its calls once: what comes in and goes out are those of all.

    Args:
        model: a built model.

    Attributes:
        calls: in no order.
        shapes: tensor -> its shape, batch included; None for a size that is open.
        starts: the tensors that the model is given.
        ends: the tensors that the model gives.
    """

    def __init__(self, model: keras.Model):
        self.calls: list[Call] = []
        self.shapes: dict[int, tuple[int | None, ...]] = {}
        self.starts: set[int] = set()
        self.ends: set[int] = set()
        self._read: set[int] = set()
        if functional := functional_of(model):
            self.starts = set(self._number(functional.inputs))
            self.ends = set(self._number(functional.outputs))
            self._add(functional)

    def _add(self, functional: keras.Model) -> None:
        if id(functional) in self._read:
            return
        self._read.add(id(functional))
        for node in (node for nodes in functional._nodes_by_depth.values() for node in nodes):
            inputs, outputs = self._number(node.input_tensors), self._number(node.outputs)
            if nested := functional_of(node.operation):
                self._add(nested)
                self._join(inputs, self._number(nested.inputs))
                self._join(self._number(nested.outputs), outputs)
            elif isinstance(node.operation, Join):  # what it joins are the model's outputs
                self.ends = (self.ends - set(outputs)) | set(inputs)
            elif isinstance(node.operation, Take):  # what it takes is one of the model's inputs
                self.starts = (self.starts - set(inputs)) | set(outputs)
            elif not isinstance(node.operation, keras.layers.InputLayer):
                given = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
                others = tuple(x for x in given if x is not None and not isinstance(x, keras.KerasTensor))
                self.calls.append(Call(node.operation, inputs, outputs, others))

    def _join(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        self.calls += [Call(None, (one,), (other,)) for one, other in zip(before, after, strict=True)]

    def _number(self, tensors: list[keras.KerasTensor]) -> tuple[int, ...]:
        self.shapes |= {id(tensor): tuple(tensor.shape) for tensor in tensors}
        return tuple(map(id, tensors))


def functional_of(operation: keras.Operation) -> keras.Model | None:
    """The functional model that this is or wraps; None for layers and for models with a `call` of their own."""
    if isinstance(operation, keras.Sequential):
        operation = operation._functional
    return operation if type(operation).call.__qualname__ == "Functional.call" else None
