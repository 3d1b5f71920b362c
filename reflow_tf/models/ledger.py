"""The tensors between a network's layers, for as long as some later step needs them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
import tensorflow as tf

from reflow_tf.models.execution import Step, Steps

Value = TypeVar("Value")


class Ledger(Generic[Value]):
    """What is known between two steps: a value for each tensor that the steps from here on take.

    Args:
        steps: of the model.
        known: tensor -> its value.
        position: how many of the steps have been done.
    """

    def __init__(self, steps: Steps, known: Mapping[int, Value], position: int = 0):
        self._uses = steps.count_uses(position)
        self._values = {tensor: value for tensor, value in known.items() if self._uses[tensor]}

    @property
    def values(self) -> Mapping[int, Value]:
        """Tensor -> value, those that are still needed."""
        return self._values

    def __contains__(self, tensor: int) -> bool:
        return tensor in self._values

    def __getitem__(self, tensor: int) -> Value:
        return self._values[tensor]

    def enter(self, step: Step, value: Value) -> None:
        """Keeps what a step gave, and drops what nobody needs any more."""
        self._values[step.output] = value
        for tensor in set(step.inputs):
            self._uses[tensor] -= 1
            if not self._uses[tensor]:
                del self._values[tensor]


@dataclasses.dataclass(frozen=True)
class Held:
    """How many numbers are between the steps of a model, of one input.

    Attributes:
        between: what is needed before each step, and at the end.
        during: what is there while a step is done: all that is held, and its output.
    """

    between: tuple[int, ...]
    during: tuple[int, ...]


def measure_held(steps: Steps, image: np.ndarray) -> Held:
    """Leads one input, (1, ...), through the network, and counts."""
    ledger = Ledger(steps, {steps.input: tf.convert_to_tensor(image)})
    between, during = [_count(ledger)], []
    for step in steps:
        output = step.call(*(ledger[tensor] for tensor in step.inputs))
        during.append(between[-1] + int(tf.size(output)))
        ledger.enter(step, output)
        between.append(_count(ledger))
    return Held(tuple(between), tuple(during))


def _count(ledger: Ledger[tf.Tensor]) -> int:
    return sum(int(tf.size(value)) for value in ledger.values.values())


def find_late_position(during: Sequence[int], factor: int) -> int | None:
    """The first step from which on none needs more than 1 / factor of what the one needs that needs most; or None.

    Args:
        during: as in `Held`.
        factor: how many times as many inputs the steps from there on can take in the same memory.
    """
    most = max(during)
    late = len(during)
    while late and during[late - 1] * factor <= most:
        late -= 1
    return late if late < len(during) else None
