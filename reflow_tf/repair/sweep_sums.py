"""What the least-squares sweep sums up before a step: all that it needs to know of the images to settle the step.

A layer that is refitted needs its normal equations; its target is what the dense network's layer gives before an
activation of its own and, where a shortcut is added behind its batch norm, what the shortcut has lost. A batch norm
needs the moments of what it takes in either network.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.crew import State
from reflow_tf.models.carrying import Carried
from reflow_tf.models.channel_order import CHANNELS_FIRST
from reflow_tf.models.execution import Step, Steps, read_steps
from reflow_tf.models.gram import is_solvable
from reflow_tf.models.graph import KernelMap, find_kernels
from reflow_tf.models.ledger import Ledger
from reflow_tf.models.moments import PartialMoments
from reflow_tf.models.observation import find_activation
from reflow_tf.models.precision import read_wide
from reflow_tf.models.sidebyside import Networks, Pair
from reflow_tf.models.streaming import Stream, Values
from reflow_tf.repair.contract import PrunedModel
from reflow_tf.repair.layer_sums import InputSums, RunningSums, sum_inputs, sum_up, take_samples, thin_out
from reflow_tf.repair.position_worth import PositionWorth
from reflow_tf.repair.views import make_view
from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.task import Task


@dataclasses.dataclass(frozen=True)
class AtLayer:
    """Sums at a layer that is refitted; those over other inputs are added to it.

    Attributes:
        sums: of its normal equations, positions counted by what they are worth.
        plain: of what it takes and is to give, all positions alike.
        given: moments of what it gives in the dense network, at the same positions.
    """

    sums: RunningSums
    plain: InputSums
    given: PartialMoments

    def __add__(self, other: "AtLayer") -> "AtLayer":
        return AtLayer(self.sums + other.sums, self.plain + other.plain, self.given + other.given)


@dataclasses.dataclass(frozen=True)
class AtNorm:
    """The moments of what a batch norm takes in either network; those over other inputs are added to it."""

    dense: PartialMoments
    pruned: PartialMoments

    def __add__(self, other: "AtNorm") -> "AtNorm":
        return AtNorm(self.dense + other.dense, self.pruned + other.pruned)


class Meter:
    """Says what to sum up where; it needs the model's weights to be right up to the step that is asked for.

    Args:
        pruned: a functional or sequential model.
        steps: of it.

    Attributes:
        networks: the dense and the pruned one.
        kernels: of the model.
        specs: position of a step that is refitted -> its kernel: the pruned ones, and depthwise kernels behind them.
    """

    def __init__(self, pruned: PrunedModel, steps: Steps):
        self._steps = steps
        self.kernels: KernelMap = find_kernels(pruned.model)
        changed = {id(self.kernels.variables[path]) for path in pruned.masks}
        self.networks = Networks(steps, list(zip(pruned.model.variables, pruned.dense_weights, strict=True)), changed)
        calls = steps.count_calls()
        masked = [spec for spec in self.kernels.specs if spec.path in pruned.masks]
        behind = [spec for spec in self.kernels.specs if spec.kind is Kind.DEPTHWISE_CONV and spec not in masked]
        self.specs = {
            position: spec
            for position, step in enumerate(steps)
            if self.networks.differ_at(position)
            and calls[id(step.operation)] == 1
            and (spec := self._find_spec(step.operation, masked) or self._find_spec(step.operation, behind))
        }

    def _find_spec(self, layer: keras.Operation, specs: list[LayerSpec]) -> LayerSpec | None:
        own = [id(variable) for variable in getattr(layer, "_trainable_variables", ())]
        found = [spec for spec in specs if id(self.kernels.variables[spec.path]) in own]
        is_turned = getattr(layer, "data_format", None) == CHANNELS_FIRST
        return found[0] if len(found) == 1 and not is_turned and is_solvable(layer, found[0]) else None

    @property
    def weighed(self) -> Mapping[int, LayerSpec]:
        """Those of `specs` whose fit counts positions by their worth: an output of a depthwise kernel has few weights,
        and as many positions as any other.
        """
        return {step: spec for step, spec in self.specs.items() if spec.kind is not Kind.DEPTHWISE_CONV}

    def find_norm(self, position: int) -> keras.layers.BatchNormalization | None:
        """The batch norm at this step, if it takes something else in the pruned network than in the dense one."""
        operation = self._steps.steps[position].operation
        is_norm = isinstance(operation, keras.layers.BatchNormalization)
        return operation if is_norm and self.networks.differ_before(position) else None

    def __call__(self, position: int, ledger: Ledger[Pair], worth: tf.Tensor | None) -> AtLayer | AtNorm:
        """Measures some inputs before the step at `position`, which is refitted, or a batch norm.

        Args:
            position: of the step.
            ledger: what is known before it.
            worth: of the positions of what it gives, (n, ...); None: all alike.
        """
        step = self._steps.steps[position]
        if position in self.specs:
            return self._measure_layer(step, self.specs[position], ledger, worth)
        norm, pair = self.find_norm(position), ledger[step.inputs[0]]
        assert norm is not None
        return AtNorm(PartialMoments.of(pair.dense, norm.axis), PartialMoments.of(pair.pruned, norm.axis))

    def _measure_layer(self, step: Step, spec: LayerSpec, ledger: Ledger[Pair], worth: tf.Tensor | None) -> AtLayer:
        dense = self.networks.compute_dense(step, ledger, activated=False)
        lost = self._find_loss(step, ledger, dense)
        targets = dense if lost is None else dense + lost
        samples = take_samples(step.operation, spec, ledger[step.inputs[0]].pruned, targets)
        sums, given = sum_up(samples, worth), PartialMoments.of(thin_out(dense, samples.thinning), -1)
        return AtLayer(sums, sums.moments if worth is None else sum_inputs(samples), given)

    def _find_loss(self, step: Step, ledger: Ledger[Pair], given: tf.Tensor) -> tf.Tensor | None:
        """What the shortcut that is added behind the step's batch norm has lost, in the units of the step's output."""
        norm = find_norm(step, self._steps)
        if norm is None:
            return None
        (norm_step,) = self._steps.consumers(step.output)
        sum_step = _only(self._steps.consumers(norm_step.output))
        if sum_step is None or type(sum_step.operation).__name__ != "Add":
            return None
        known = [ledger[t] for t in sum_step.inputs if t != norm_step.output and t in ledger]
        lost = [_fit_shape(pair.dense - pair.pruned, given) for pair in known if not pair.is_same]
        if not lost:
            return None
        scale = _scale(norm)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > 1e-6).astype(np.float32)
        shape = [1] * len(given.shape)
        shape[norm.axis] = -1
        return functools.reduce(operator.add, lost) * inverse.reshape(shape)


def _fit_shape(lost: tf.Tensor, given: tf.Tensor) -> tf.Tensor:
    """As Keras adds them: fewer axes get some behind the first. Where `given` is repeated it is the mean of `lost`."""
    surplus = len(lost.shape) - len(given.shape)
    lost = tf.reduce_mean(lost, range(1, 1 + surplus)) if surplus > 0 else lost
    for _ in range(-surplus):
        lost = tf.expand_dims(lost, 1)
    repeated = [axis for axis, size in enumerate(given.shape) if axis and size == 1 < lost.shape[axis]]
    return tf.reduce_mean(lost, repeated, keepdims=True) if repeated else lost


@dataclasses.dataclass(frozen=True)
class Measuring:
    """All of that as a `crew.Work`, whose items are a stream's legs, and whose news are weights.

    Attributes:
        carried: the model, with the weights that it has before the sweep.
        dense_weights: of `model.variables`, in their order.
        kernels: which of the model's are masked, by their positions: layers may have other names where it is loaded.
        batches: of calibration inputs.
        whole_from: as for the stream.
        shard: as for the stream.
        task: what the model's outputs are taken for.
    """

    carried: Carried
    dense_weights: tuple[np.ndarray, ...]
    kernels: tuple[int, ...]
    batches: Iterable[np.ndarray]
    whole_from: int
    shard: int
    task: Task

    def prepare(self) -> State:
        model = self.carried.model
        specs = find_kernels(model).specs
        masks = {specs[i].path: np.empty(0) for i in self.kernels}  # that they are masked is all that is asked
        pruned = PrunedModel(model, masks, self.dense_weights, self.task)
        meter = Meter(pruned, read_steps(model))
        weigh = PositionWorth(pruned, meter.weighed, self.whole_from)
        given = meter.networks, meter, self.batches, make_view, weigh, self.whole_from, self.shard
        return _MeasuredStream(model, Stream(*given))


class _MeasuredStream(State):
    """The stream of a model that is told its weights."""

    def __init__(self, model: keras.Model, stream: Stream):
        self._model, self._stream = model, stream

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        return self._stream(items)

    def hear(self, news: Values) -> None:
        variables = self._model.variables
        for position, value in news:
            variables[position].assign(value)

    def close(self) -> None:
        self._stream.close()


def _only(steps: tuple[Step, ...]) -> Step | None:
    return steps[0] if len(steps) == 1 else None


def find_norm(step: Step, steps: Steps) -> keras.layers.BatchNormalization | None:
    """The batch norm that is all that takes the step's output, if there is one and no activation lies between."""
    if find_activation(step.operation) is not None:
        return None
    behind = _only(steps.consumers(step.output))
    if behind is None or not isinstance(behind.operation, keras.layers.BatchNormalization):
        return None
    return behind.operation


def _scale(norm: keras.layers.BatchNormalization) -> np.ndarray:
    """What the batch norm multiplies each channel by, (channels,) float32."""
    gamma = read_wide(norm.gamma) if norm.scale else np.float32(1)
    return gamma / np.sqrt(read_wide(norm.moving_variance) + np.float32(norm.epsilon))
