"""Two versions of a network, the dense and the pruned one, computed side by side step by step."""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.models.execution import Step, Steps
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.observation import without_activation
from reflow_tf.models.precision import reading


@dataclasses.dataclass(frozen=True)
class Pair:
    """One tensor in both networks, (n, ...) each; the very same object as long as nothing before it was pruned."""

    dense: tf.Tensor
    pruned: tf.Tensor

    @property
    def is_same(self) -> bool:
        return self.dense is self.pruned


class Networks:
    """The same steps with two sets of values: those that the model holds when it is asked, and the dense ones.

    Args:
        steps: of the model.
        dense: variable -> its value in the dense network; of those that are missing the model's is taken.
        pruned: `id` of the variables that differ between the two, or will; what follows from them may differ, too.
    """

    def __init__(
        self, steps: Steps, dense: Sequence[tuple[keras.Variable, np.ndarray]] = (), pruned: Collection[int] = ()
    ):
        self.steps = steps
        self._dense: Mapping[int, np.ndarray] = {id(variable): value for variable, value in dense}
        self._tensors: dict[int, tf.Tensor] = {}  # of those, made when they are first computed with
        self._differing: set[int] = set()
        differing: set[int] = set()
        for position, step in enumerate(steps):
            has_pruned = any(id(variable) in pruned for variable in getattr(step.operation, "variables", ()))
            if has_pruned or differing.intersection(step.inputs):
                self._differing.add(position)
                differing.add(step.output)

    def differ_at(self, position: int) -> bool:
        """Whether what this step gives may differ between the networks."""
        return position in self._differing

    def differ_before(self, position: int) -> bool:
        """Whether what this step takes may differ."""
        inputs = self.steps.steps[position].inputs
        return any(i in self._differing and self.steps.steps[i].output in inputs for i in range(position))

    def read_dense(self, variable: keras.Variable) -> np.ndarray:
        """The variable's value in the dense network."""
        return self._dense[id(variable)]

    def compute(self, position: int, ledger: Ledger[Pair]) -> Pair:
        """What a step gives for some inputs."""
        step = self.steps.steps[position]
        pruned = step.call(*(ledger[tensor].pruned for tensor in step.inputs))
        return Pair(self.compute_dense(step, ledger), pruned) if self.differ_at(position) else Pair(pruned, pruned)

    def compute_dense(self, step: Step, ledger: Ledger[Pair], *, activated: bool = True) -> tf.Tensor:
        """What it gives in the dense network.

        Args:
            step: of the model.
            ledger: has what it takes.
            activated: with the activation that the layer applies last of all, if it has one.
        """
        inputs = [ledger[tensor].dense for tensor in step.inputs]
        values = [
            (variable, self._read_wide(variable))
            for variable in getattr(step.operation, "variables", ())
            if id(variable) in self._dense and keras.backend.is_float_dtype(variable.dtype)
        ]
        plain = contextlib.nullcontext() if activated else without_activation(step.operation)
        with plain, reading(values) if values else contextlib.nullcontext():
            return step.call(*inputs)

    def _read_wide(self, variable: keras.Variable) -> tf.Tensor:
        """The variable's value in the dense network to compute with: of 16 bits as float32."""
        if id(variable) not in self._tensors:
            value = self.read_dense(variable)
            self._tensors[id(variable)] = tf.convert_to_tensor(value.astype(np.promote_types(value.dtype, np.float32)))
        return self._tensors[id(variable)]
