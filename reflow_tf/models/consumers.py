"""Which kernels have a batch norm behind them: what REFLOW can restore, and what it cannot.

Read from the graph of functional and sequential models, nested ones included. What a subclassed model or layer does
with its layers is written in Python only, so of kernels in there it is not known.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator

import keras
from keras import layers

from reflow_tf.models.calls import Call, CallGraph
from reflow_tf.models.walking import find_batch_norms, walk

# One input, and every value of a channel stays in that channel: a batch norm behind these still restores its moments.
_CHANNEL_WISE = (
    layers.Activation, layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU, layers.Dropout, layers.SpatialDropout1D,
    layers.SpatialDropout2D, layers.SpatialDropout3D, layers.GaussianNoise, layers.GaussianDropout, layers.Identity,
    layers.ActivityRegularization, layers.Rescaling, layers.Reshape, layers.Permute, layers.Flatten,
    layers.RepeatVector, layers.Masking, layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D,
)  # fmt: skip
_CHANNEL_WISE_OPS = {
    "Relu",
    "Relu6",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Silu",
    "Gelu",
    "HardSilu",
    "HardSigmoid",
    "Sigmoid",
    "Tanh",
}


@dataclasses.dataclass(frozen=True)
class NormCover:
    """Kernels by whether a batch norm restores what comes out of them.

    Attributes:
        covered: every way that the layer's output goes meets a batch norm before any other arithmetic than activations.
        bare: some way does not: there REFLOW restores nothing.
        unknown: of a subclassed model or layer, whose graph cannot be read.
    """

    covered: tuple[str, ...]
    bare: tuple[str, ...]
    unknown: tuple[str, ...]


def find_norm_cover(model: keras.Model, paths: Iterable[str]) -> NormCover:
    """Sorts kernels by whether every consumer of their layer's output is a batch norm.

    The way to the batch norm may lead through activations, dropout, padding and reshaping, and through nested models.
    A convolution that is added to a shortcut first, pooled, multiplied or normalized otherwise is bare.

    Args:
        model: a built model.
        paths: of kernels, as `find_kernels` names them; their order is kept.
    """
    owners = {placed.path: placed.layer for placed in walk(model)}
    graph = _Graph(model)
    has_norms = bool(find_batch_norms(model))
    found: dict[str, list[str]] = {"covered": [], "bare": [], "unknown": []}
    for path in paths:
        covered = graph.is_covered(owners[path.rpartition("/")[0]]) if has_norms else False
        found["unknown" if covered is None else "covered" if covered else "bare"].append(path)
    return NormCover(**{name: tuple(group) for name, group in found.items()})


class _Graph:
    """Tensors and who takes them, over a model and the models nested in it."""

    def __init__(self, model: keras.Model):
        graph = CallGraph(model)
        self._ends = graph.ends
        self._takers: dict[int, list[Call]] = defaultdict(list)
        self._outputs: dict[int, list[int]] = defaultdict(list)
        for call in graph.calls:
            for layer in _at_the_end_of(call.operation) if call.operation is not None else ():
                self._outputs[id(layer)] += call.outputs
            for tensor in call.inputs:
                self._takers[tensor].append(call)

    def is_covered(self, layer: keras.Layer) -> bool | None:
        """Whether every use of the layer's outputs meets a batch norm; None if the graph does not show it."""
        outputs = self._outputs.get(id(layer))
        return None if outputs is None else all(self._reaches_norm(tensor, set()) for tensor in outputs)

    def _reaches_norm(self, tensor: int, seen: set[int]) -> bool:
        if tensor in seen:
            return True  # a loop of shared models: its other ways decide
        seen.add(tensor)
        ways = []
        for call in self._takers[tensor]:
            last = None
            if call.operation is not None:
                *_, last = _at_the_end_of(call.operation)
            passes = last is None or isinstance(last, _CHANNEL_WISE) or type(last).__name__ in _CHANNEL_WISE_OPS
            ways.append(
                isinstance(last, layers.BatchNormalization)
                or (passes and all(self._reaches_norm(output, seen) for output in call.outputs))
            )
        return bool(ways) and all(ways) and tensor not in self._ends


def _at_the_end_of(operation: keras.Operation) -> Iterator[keras.Operation]:
    """The operation, then, through wrappers that apply a layer step by step, the layer that computes its output."""
    yield operation
    if isinstance(operation, layers.TimeDistributed):
        yield from _at_the_end_of(operation.layer)
