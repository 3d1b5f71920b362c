"""A functional model as a list of steps, carried out one by one with everything between them at hand.

That is how two versions of a network can be led through it side by side, each layer once. Subclassed models hide their
steps in Python and cannot be; a model nested in another is one step.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.inference import tensorflow_names
from reflow_tf.models.observation import graphs_as_they_are
from reflow_tf.models.precision import computed_in_float32, to_float32

CHUNK = 16
"""Inputs that a step takes at a time: few, so that more of what it reads and writes is in the processor's cache."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a layer; of what gives several tensors, as many as somebody takes, each computed by itself.

    Attributes:
        operation: the layer.
        inputs: ids of the tensors that it takes, in the order of its arguments.
        output: id of the tensor that it gives.
        call: arrays for the inputs -> output, at inference, computed in float32.
    """

    operation: keras.Operation
    inputs: tuple[int, ...]
    output: int
    call: Callable[..., tf.Tensor]

    def compute(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """The output for arrays (n, ...), a chunk at a time."""
        outputs = None
        for start in range(0, len(inputs[0]), CHUNK):
            part = slice(start, start + CHUNK)
            computed = self.call(*(tf.convert_to_tensor(array[part]) for array in inputs)).numpy()
            if outputs is None:
                outputs = np.empty((len(inputs[0]), *computed.shape[1:]), computed.dtype)
            outputs[part] = computed
        assert outputs is not None
        return outputs


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of one model in an order in which they can be done.

    Attributes:
        steps: them.
        input: id of the model's input.
        output: id of the model's output.
    """

    steps: tuple[Step, ...]
    input: int
    output: int

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def consumers(self, tensor: int) -> tuple[Step, ...]:
        """The steps that take the tensor."""
        return tuple(step for step in self.steps if tensor in step.inputs)

    def count_uses(self, position: int = 0) -> Counter[int]:
        """Tensor -> how many steps from `position` on take it; the model's output is taken once more."""
        return Counter([tensor for step in self.steps[position:] for tensor in set(step.inputs)] + [self.output])

    def count_calls(self) -> Counter[int]:
        """Id of a layer -> how often it is called."""
        return Counter(id(step.operation) for step in self.steps)


class Stretch:
    """Steps that follow each other, as one graph: faster than one by one, and nothing between them is at hand.

    It reads the weights that the layers have when it is called.

    Args:
        steps: at least one.
        sources: tensors that are given: all that the steps take from before them.
        wanted: tensors that are asked for.
    """

    def __init__(self, steps: Sequence[Step], sources: Sequence[int], wanted: Sequence[int]):
        self._steps, self._sources, self._wanted = tuple(steps), tuple(sources), tuple(wanted)
        self._trace: Callable[..., list[tf.Tensor]] | None = None

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The wanted tensors for those given, (n, ...) each; a chunk at a time."""
        chunks = []
        with graphs_as_they_are():
            for start in range(0, len(arrays[0]), CHUNK):
                tensors = [tf.convert_to_tensor(array[start : start + CHUNK]) for array in arrays]
                if self._trace is None:
                    signature = [tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype) for tensor in tensors]
                    self._trace = tf.function(self._compute, autograph=False).get_concrete_function(*signature)
                chunks.append([tensor.numpy() for tensor in self._trace(*tensors)])
        return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]

    def _compute(self, *tensors: tf.Tensor) -> list[tf.Tensor]:
        known = dict(zip(self._sources, tensors, strict=True))
        for step in self._steps:
            known[step.output] = step.call(*(known[tensor] for tensor in step.inputs))
        return [known[tensor] for tensor in self._wanted]


def read_steps(model: keras.Model) -> Steps:
    """The steps of a functional or sequential model.

    Raises:
        InputError: the model is subclassed, or has several inputs or outputs.
    """
    functional = model._functional if isinstance(model, keras.Sequential) else model
    if type(functional).call.__qualname__ != "Functional.call":
        raise InputError(
            "A functional or sequential model is required to go through it layer by layer. "
            f"Received: {model.name}, of class {type(model).__name__}"
        )
    if len(functional.inputs) != 1 or len(functional.outputs) != 1:
        found = f"{len(functional.inputs)} inputs and {len(functional.outputs)} outputs"
        raise InputError(f"The model must have one input and one output. Received: {model.name} with {found}")
    nodes = [n for depth in sorted(functional._nodes_by_depth, reverse=True) for n in functional._nodes_by_depth[depth]]
    taken = {id(tensor) for node in nodes for tensor in node.input_tensors} | {id(functional.outputs[0])}
    steps = tuple(
        _read_step(node, place)
        for node in nodes
        if not node.is_input
        for place, tensor in enumerate(node.outputs)
        if id(tensor) in taken
    )
    return Steps(steps, id(functional.inputs[0]), id(functional.outputs[0]))


def _read_step(node: keras.src.ops.node.Node, place: int) -> Step:
    """The step that gives the output in this place, in the order of `node.outputs`."""
    inputs = tuple(id(tensor) for tensor in node.arguments.keras_tensors)

    def call(*tensors: tf.Tensor) -> tf.Tensor:
        waiting = iter(tensors)
        args, kwargs = keras.tree.map_structure(
            lambda value: next(waiting) if isinstance(value, keras.KerasTensor) else value,
            (node.arguments.args, node.arguments.kwargs),
        )
        with tensorflow_names(node.operation), computed_in_float32(node.operation):
            outputs = node.operation(*args, **(kwargs | {"training": False} if "training" in kwargs else kwargs))
        return to_float32(keras.tree.flatten(outputs)[place])

    return Step(node.operation, inputs, id(node.outputs[place]), call)
