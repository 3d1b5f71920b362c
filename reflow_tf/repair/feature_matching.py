"""Training steps in which a pruned network learns to compute, layer by layer, what the dense one does.

Features are what leaves the batch norms, and the pruned layers behind which none stands (Romero et al., "FitNets",
arXiv 1412.6550). For features s of the pruned network and d of the dense one, c counting the channels of one layer,

    loss = mean over layers of mean over c of E[(s_c - d_c)^2] / (Var[d_c] + VARIANCE_FLOOR * mean over c of Var[d_c])
           + output_weight * KL(outputs of d || outputs of s)

so that a layer that says nothing about its inputs loses about 1, whatever the scale of its channels. E and Var are
over the inputs and the positions of the batch. For outputs that are no probabilities the second term is their error
over their variance, like a layer's.

The dense features are computed for the very inputs that the pruned network sees: Beyer et al., "Knowledge distillation:
A good teacher is patient and consistent", arXiv 2106.05237. Batch norms normalize by the moments that they have, as
they will in the exported network; gamma and beta are trained like any other weight.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.consumers import find_norm_cover
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.inference import infer
from reflow_tf.models.observation import LayerCall, replaced_calls
from reflow_tf.models.precision import read_wide, reading
from reflow_tf.models.predictions import Reading
from reflow_tf.models.surgery import write_values
from reflow_tf.models.walking import find_batch_norms, walk
from reflow_tf.repair.contract import PrunedModel

VARIANCE_FLOOR = 0.01
"""The least variance that a channel is taken to have, as a share of its layer's: channels that are dead stay so."""


@dataclasses.dataclass
class Student:
    """A pruned network and the state of its training: Adam's moments, and an average over the weights so far.

    Attributes:
        pruned: trained in place; its masked weights get no gradient, which Adam and averaging leave at zero.
        averaging: how much of the average a step keeps, in [0, 1).
        output_weight: of the outputs' divergence in the loss; 0: features alone.
        probabilities: whether the outputs are probabilities.
        read: how outputs are read.

    Raises:
        InputError: nothing is trainable.
    """

    pruned: PrunedModel
    averaging: float
    output_weight: float
    probabilities: bool
    read: Reading = dataclasses.field(default_factory=Reading)

    def __post_init__(self) -> None:
        self._variables, self._masks = _find_trained(self.pruned)
        # Adam's steps are lost in 16 bits: such variables are trained as float32 copies, and rounded where one looks.
        self._trained = [
            keras.Variable(read_wide(v), dtype="float32") if _has_16_bits(v) else v for v in self._variables
        ]
        self._optimizer = keras.optimizers.Adam(use_ema=True, ema_momentum=self.averaging)
        self._optimizer.build(self._trained)
        model = self.pruned.model
        # `StatelessScope` reads these in place of the variables, which nobody has to write to and fro.
        self._dense = [
            (v, tf.convert_to_tensor(w)) for v, w in zip(model.variables, self.pruned.dense_weights, strict=True)
        ]
        self._features: list[tf.Tensor] = []
        self._calls = {layer: _observed_call(layer, self._features) for layer in _find_observed(self.pruned)}
        # No XLA: compiling MobileNetV2 for CPUs takes longer than a minute of training.
        self._descend = tf.function(self._build_descent, autograph=False)

    def learn(self, batch: tf.Tensor, rate: float) -> float:
        """One step of Adam on inputs (n, ...) at this learning rate. Returns the loss before the step."""
        self._optimizer.learning_rate.assign(rate)
        # Only the trace goes through the replaced calls.
        with replaced_calls(self._calls):
            return float(self._descend(batch))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """For the time of the block the trained variables hold their averages; there are none before the first step."""
        before = [(variable, np.array(variable)) for variable in (*self._trained, *self._variables)]
        try:
            self._optimizer.finalize_variable_values(self._trained)
            for variable, trained in zip(self._variables, self._trained, strict=True):
                if trained is not variable:
                    write_values(variable, read_wide(trained))
            yield
        finally:
            for variable, value in before:
                variable.assign(value)

    def _build_descent(self, batch: tf.Tensor) -> tf.Tensor:
        with keras.StatelessScope(state_mapping=self._dense):
            targets, dense_features = self._observe(batch)
        values = [tf.convert_to_tensor(v.value) for v in self._trained]
        with tf.GradientTape() as tape, reading(zip(self._variables, values, strict=True)):
            tape.watch(values)
            outputs, features = self._observe(batch)
            losses = [lost_share(*pair) for pair in zip(features, dense_features, strict=True)]
            loss = tf.add_n(losses) / len(losses)
            if self.output_weight:
                loss += self.output_weight * measure_outputs(outputs, targets, self.probabilities)
        # What lies behind the last feature, such as a classifier that was not pruned, gets no gradient and stays.
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        masked = [
            g if mask is None else g * tf.cast(mask, g.dtype) for g, mask in zip(gradients, self._masks, strict=True)
        ]
        self._optimizer.apply(masked, self._trained)
        return loss

    def _observe(self, batch: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        self._features.clear()
        outputs = self.read(infer(self.pruned.model, batch))
        features = list(self._features)
        self._features.clear()
        return outputs, features


def _find_trained(pruned: PrunedModel) -> tuple[list[keras.Variable], list[np.ndarray | None]]:
    """The variables that are trained; for each True where it may move, or None where it may everywhere."""
    trained = list(pruned.model.trainable_variables)
    if not trained:
        raise InputError(f"Distillation needs trainable variables. Received: {pruned.model.name}, all frozen")
    kernels = find_kernels(pruned.model)
    kept = {
        id(kernels.variables[spec.path]): spec.from_canonical(pruned.masks[spec.path])
        for spec in kernels.specs
        if spec.path in pruned.masks
    }
    return trained, [kept.get(id(v)) for v in trained]


def _has_16_bits(variable: keras.Variable) -> bool:
    return keras.backend.standardize_dtype(variable.dtype) in ("float16", "bfloat16")


def _find_observed(pruned: PrunedModel) -> tuple[keras.Layer, ...]:
    cover = find_norm_cover(pruned.model, pruned.masks)
    paths = {path.rpartition("/")[0] for path in cover.bare + cover.unknown}
    paths |= {norm.path for norm in find_batch_norms(pruned.model)}
    placed = {place.path: place.layer for place in walk(pruned.model)}
    around = {_find_loop(path, placed) for path in paths}
    return tuple(layer for path, layer in placed.items() if path in around)


def _find_loop(path: str, placed: Mapping[str, keras.Layer]) -> str:
    """The path of the outermost layer around this one that calls it from inside a loop, which nothing gets out of."""
    names = path.split("/")
    around = ("/".join(names[:count]) for count in range(1, len(names)))
    loops = keras.layers.RNN | keras.layers.TimeDistributed
    return next((outer for outer in around if isinstance(placed.get(outer), loops)), path)


def _observed_call(layer: keras.Layer, features: list[tf.Tensor]) -> LayerCall:
    inference_call = layer.call
    axis = layer.axis if isinstance(layer, keras.layers.BatchNormalization) else -1

    def call(*args: object, **options: object) -> tf.Tensor:
        outputs = inference_call(*args, **options)
        given, *_ = keras.tree.flatten(outputs)  # without the states of a recurrent layer
        features.append(tf.experimental.numpy.moveaxis(given, axis, -1))
        return outputs

    return call


def lost_share(values: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Mean squared error of each channel over its variance in the targets, channels last; their mean, a scalar.

    Targets that do not vary at all have nothing to lose: 0.
    """
    values, targets = tf.cast(values, tf.float32), tf.cast(targets, tf.float32)
    positions = list(range(targets.shape.rank - 1))
    variances = tf.math.reduce_variance(targets, positions)
    errors = tf.reduce_mean(tf.math.squared_difference(values, targets), positions)
    return tf.reduce_mean(tf.math.divide_no_nan(errors, variances + VARIANCE_FLOOR * tf.reduce_mean(variances)))


def measure_outputs(outputs: tf.Tensor, targets: tf.Tensor, probabilities: bool) -> tf.Tensor:
    """Mean Kullback-Leibler divergence of probabilities (n, ..., classes) from the targets; else their lost share."""
    if not probabilities:
        return lost_share(outputs, targets)
    least = np.finfo(np.float32).tiny
    ours, theirs = (tf.math.log(tf.cast(p, tf.float32) + least) for p in (outputs, targets))
    return tf.reduce_mean(tf.reduce_sum(tf.cast(targets, tf.float32) * (theirs - ours), -1))
