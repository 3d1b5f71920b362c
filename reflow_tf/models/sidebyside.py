"""The dense and the pruned network led through the same images side by side, with what lies between at hand."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from reflow_tf.models.execution import Step, Steps


@dataclasses.dataclass(frozen=True)
class Pair:
    """One tensor in both networks, (n, ...) each. The very same array as long as nothing before it was pruned."""

    dense: np.ndarray
    pruned: np.ndarray

    @property
    def is_same(self) -> bool:
        return self.dense is self.pruned


class Ledger:
    """The tensors that some later step still needs.

    A step's output takes the place of its input where that has the same shape and is needed no more: at 224 x 224, one
    layer of MobileNetV2 gives 2.4 GB for 500 images.
    """

    def __init__(self, steps: Steps, images: np.ndarray):
        self._uses = steps.count_uses()
        self._pairs = {steps.input: Pair(images, images)}
        self._lent: np.ndarray | None = images  # the caller's: never written over

    @property
    def tensors(self) -> tuple[int, ...]:
        """Those that are held."""
        return tuple(self._pairs)

    def extend(self, dense: Sequence[np.ndarray], pruned: Sequence[np.ndarray]) -> None:
        """Adds more images behind those that are there: what they give for each of `tensors` in either network."""
        for tensor, more_dense, more_pruned in zip(self.tensors, dense, pruned, strict=True):
            pair = self._pairs.pop(tensor)  # popped: the largest are not held twice for long
            joined = np.concatenate([pair.dense, more_dense])
            self._pairs[tensor] = Pair(joined, joined if pair.is_same else np.concatenate([pair.pruned, more_pruned]))
        self._lent = None

    def __contains__(self, tensor: int) -> bool:
        return tensor in self._pairs

    def __getitem__(self, tensor: int) -> Pair:
        return self._pairs[tensor]

    def count_elements(self) -> int:
        """How many numbers one network's tensors hold in all."""
        return sum(pair.dense.size for pair in self._pairs.values())

    def compute(self, step: Step, version: str) -> np.ndarray:
        """The step's output in the 'dense' or 'pruned' version, with the weights that its layer holds now."""
        inputs = [getattr(self._pairs[tensor], version) for tensor in step.inputs]
        first = self._pairs[step.inputs[0]]
        is_free = self._uses[step.inputs[0]] == 1 and not first.is_same and step.inputs.count(step.inputs[0]) == 1
        return step.compute(inputs, into=inputs[0] if is_free and inputs[0] is not self._lent else None)

    def enter(self, step: Step, dense: np.ndarray, pruned: np.ndarray) -> None:
        """Keeps the step's output, and drops what nobody needs any more."""
        self._pairs[step.output] = Pair(dense, pruned)
        for tensor in set(step.inputs):
            self._uses[tensor] -= 1
            if not self._uses[tensor]:
                del self._pairs[tensor]
