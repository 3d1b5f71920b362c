"""What every repair is given and what it returns.

A repair changes a pruned model in place so that it computes again what the dense one did; masked weights stay exactly
zero. On any error, and on Ctrl-C, the model is what it was before.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import keras
import numpy as np

from reflow_tf.models.surgery import restored_on_error
from reflow_tf.sparsity.masks import Masks
from reflow_tf.task import Task

Item = TypeVar("Item")


class Progress(Protocol):
    """Wraps batches, or whatever a pass goes over, so that somebody sees how far it has come."""

    def __call__(self, items: Iterable[Item], description: str, /) -> Iterable[Item]:
        """The same items; `description` says what is being done, e.g. 'Recalibrating'."""
        ...


def show_nothing(items: Iterable[Item], description: str, /) -> Iterable[Item]:
    """The progress that a library shows."""
    del description
    return items


@dataclasses.dataclass(frozen=True)
class PrunedModel:
    """A pruned model beside what it was: one Keras model, two sets of values.

    A second Keras model would cost a copy, and models that Keras cannot rebuild have none.

    Attributes:
        model: holds the pruned weights; repairs write into it.
        masks: path -> boolean mask in canonical layout (output, *spatial, input), True = kept.
        dense_weights: the values of `model.variables`, in their order, before anything was pruned.
        task: what its outputs are taken for.
    """

    model: keras.Model
    masks: Masks
    dense_weights: tuple[np.ndarray, ...]
    task: Task = Task.CLASSIFICATION

    def read_weights(self) -> tuple[np.ndarray, ...]:
        """Copies of the values of `model.variables`, in their order."""
        return read_weights(self.model)

    def write_weights(self, values: Iterable[np.ndarray]) -> None:
        """Writes such values back."""
        for variable, value in zip(self.model.variables, values, strict=True):
            variable.assign(value)

    @contextlib.contextmanager
    def as_dense(self) -> Iterator[keras.Model]:
        """For the time of the block the model is the dense one; afterwards it is what it was before the block."""
        before = self.read_weights()
        try:
            self.write_weights(self.dense_weights)
            yield self.model
        finally:
            self.write_weights(before)

    def restored_on_error(self) -> contextlib.AbstractContextManager[None]:
        """Whatever ends the block but its end, Ctrl-C included, leaves the model as it was before it."""
        return restored_on_error(self.model.variables)


@dataclasses.dataclass(frozen=True)
class RepairOutcome:
    """What a repair did.

    Attributes:
        name: of the repair.
        repaired: paths of the layers that it changed.
        unreached: paths of layers that no calibration batch ran through; they keep what they had.
        moved: names of the kinds of variables that the repair may change.
        statement: the same in one sentence.
    """

    name: str
    repaired: tuple[str, ...]
    unreached: tuple[str, ...]
    moved: tuple[str, ...]
    statement: str


@dataclasses.dataclass(frozen=True)
class MovedMasks(RepairOutcome):
    """What a repair did that also chose which weights stay.

    Attributes:
        masks: path -> the masks that hold now, as many zeros in each as before.
    """

    masks: Masks


Repair = Callable[[PrunedModel, Iterable[np.ndarray], Progress], RepairOutcome]


def resolve_memory_budget(asked: int | None, memory: int) -> int:
    """The bytes asked for, or where nobody asked, a quarter of the memory of the machine that computes."""
    return asked if asked is not None else memory // 4


def read_weights(model: keras.Model) -> tuple[np.ndarray, ...]:
    """Copies of the values of the model's variables, in their order."""
    # `convert_to_numpy` may give a view of the variable's own memory, which an assignment then changes.
    return tuple(np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables)
