"""Mean and variance per channel, over any number of batches, without losing digits.

One batch: deviations from a shift near the mean are summed in float32 per sample and in float64 across samples, so
neither a mean far from zero nor a million samples cost digits. Across batches: counts, means and sums of squared
deviations are merged in float64 (Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances", 1979). Averaging the variances of batches instead would lose the variance between their means.
"""

import dataclasses
from typing import Protocol, Self

import numpy as np
import tensorflow as tf

_LONGEST_FLOAT32_SUM = 16384


@dataclasses.dataclass(frozen=True)
class Moments:
    """Attributes: count: samples per channel; mean, variance: (channels,) float64, the variance over `count`."""

    count: float
    mean: np.ndarray
    variance: np.ndarray


@dataclasses.dataclass(frozen=True)
class PartialMoments:
    """Moments of some samples, to which those of others are added.

    Attributes: count: samples per channel; mean, deviations: (channels,) float64, the sum of squared ones.
    """

    count: float
    mean: np.ndarray
    deviations: np.ndarray

    @classmethod
    def of(cls, values: tf.Tensor, axis: int) -> Self:
        """Of one batch, (n, ...), whose channels are on `axis`."""
        count, mean, deviations = batch_moments(values, axis)
        return cls(float(count), mean.numpy(), deviations.numpy())

    def __add__(self, other: "PartialMoments") -> "PartialMoments":
        total = self.count + other.count
        delta, share = other.mean - self.mean, other.count / total
        deviations = self.deviations + other.deviations + np.square(delta) * self.count * share
        return PartialMoments(total, self.mean + delta * share, deviations)

    @property
    def variance(self) -> np.ndarray:
        return self.deviations / self.count


class MergedMoments(Protocol):
    """What the moments of one batch after the other are put together to."""

    def add(self, partial: PartialMoments) -> None:
        """Takes in those of one batch."""
        ...

    def moments(self) -> Moments:
        """What has been put together so far; count 0 if nothing was."""
        ...


class PooledMoments:
    """The exact moments of everything seen, as if it had been one batch; it is fed inside a graph."""

    def __init__(self, num_channels: int):
        # Variables, not returned tensors: a layer may run inside a while loop or a cond, whose tensors cannot leave it.
        self._count = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self._mean = tf.Variable(tf.zeros(num_channels, tf.float64), trainable=False)
        self._deviations = tf.Variable(tf.zeros(num_channels, tf.float64), trainable=False)

    def update(self, values: tf.Tensor, axis: int, mask: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes in one batch and returns that batch's own mean and variance, each (channels,) float32."""
        pooled = self._count.value(), self._mean.value(), self._deviations.value()
        (count, mean, deviations), *of_batch = _pool(pooled, values, axis, mask)
        self._count.assign(count)
        self._mean.assign(mean)
        self._deviations.assign(deviations)
        return tuple(of_batch)

    def moments(self) -> Moments:
        count = float(self._count.numpy())
        return Moments(count, self._mean.numpy(), self._deviations.numpy() / max(count, 1.0))

    def take(self) -> PartialMoments:
        """What has been accumulated since the last time; count 0 if nothing was."""
        variables = self._count, self._mean, self._deviations
        count, mean, deviations = (variable.numpy() for variable in variables)
        for variable in variables:
            variable.assign(tf.zeros_like(variable))
        return PartialMoments(float(count), mean, deviations)


class Merged:
    """The exact moments of all batches, as if they had been one."""

    def __init__(self, num_channels: int):
        self._sum = PartialMoments(0.0, np.zeros(num_channels), np.zeros(num_channels))

    def add(self, partial: PartialMoments) -> None:
        if partial.count:
            self._sum = self._sum + partial

    def moments(self) -> Moments:
        return Moments(self._sum.count, self._sum.mean, self._sum.deviations / max(self._sum.count, 1.0))


class MovingAverage:
    """Exponential moving average of the batches' moments, as training keeps it: new = momentum * old + (1 -
    momentum) * batch.

    It depends on its start and on the order, lacks the variance between batches, and after k batches still holds
    momentum**k of its start; it is here to be compared with.
    """

    def __init__(self, mean: np.ndarray, variance: np.ndarray, momentum: float):
        self._momentum, self._count = momentum, 0.0
        self._mean, self._variance = mean.astype(np.float64), variance.astype(np.float64)

    def add(self, partial: PartialMoments) -> None:
        if partial.count:
            self._count += partial.count
            self._mean = self._momentum * self._mean + (1 - self._momentum) * partial.mean
            self._variance = self._momentum * self._variance + (1 - self._momentum) * partial.variance

    def moments(self) -> Moments:
        return Moments(self._count, self._mean, self._variance)


# A function of its own is traced once per shape, not once per layer: half of the time that tracing a network takes.
@tf.function
def _pool(
    pooled: tuple[tf.Tensor, ...], values: tf.Tensor, axis: int, mask: tf.Tensor | None
) -> tuple[tuple[tf.Tensor, ...], tf.Tensor, tf.Tensor]:
    """Merges a batch into (count, mean, deviations); also returns the batch's mean and variance in float32."""
    count, mean, deviations = pooled
    batch_count, batch_mean, batch_deviations = batch_moments(values, axis, mask)
    total = count + batch_count
    share = tf.math.divide_no_nan(batch_count, total)
    delta = batch_mean - mean
    merged = total, mean + delta * share, deviations + batch_deviations + tf.square(delta) * count * share
    variance = tf.math.divide_no_nan(batch_deviations, batch_count)
    return merged, tf.cast(batch_mean, tf.float32), tf.cast(variance, tf.float32)


def batch_moments(
    values: tf.Tensor, axis: int, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Count, mean and sum of squared deviations per channel of one batch, in float64.

    Args:
        values: floating tensor of rank 2 or more.
        axis: the channel axis.
        mask: optional boolean tensor of the shape of `values` without its last axis; False entries do not count.

    Returns:
        (), (channels,), (channels,) float64.
    """
    rank = len(values.shape)
    if axis % rank != rank - 1:
        values = tf.transpose(values, [*(a for a in range(rank) if a != axis % rank), axis % rank])
    if mask is not None:
        return _weighted_moments(tf.cast(values, tf.float64), tf.cast(mask, tf.float64)[..., None])
    if rank == 2:
        wide = tf.cast(values, tf.float64)
        mean = tf.reduce_mean(wide, 0)
        return tf.cast(tf.shape(values)[0], tf.float64), mean, tf.reduce_sum(tf.square(wide - mean), 0)
    return _shifted_moments(tf.cast(values, tf.float32))


def _shifted_moments(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(n, ..., channels) float32: deviations from the first sample's mean, summed per sample by a matrix product."""
    shift = tf.reduce_mean(values[0], list(range(len(values.shape) - 2)))
    shape = tf.shape(values)
    positions = values.shape[1:-1].num_elements() or tf.reduce_prod(shape[1:-1])
    deviations = tf.reshape(values - shift, [shape[0], positions, values.shape[-1]])
    count = tf.cast(shape[0] * positions, tf.float64)
    if not isinstance(positions, int) or positions > _LONGEST_FLOAT32_SUM:
        # Deviations of zero add nothing to either sum, so the last part may be filled up with them.
        deviations = tf.pad(deviations, [[0, 0], [0, -positions % _LONGEST_FLOAT32_SUM], [0, 0]])
        deviations = tf.reshape(deviations, [-1, _LONGEST_FLOAT32_SUM, values.shape[-1]])
    ones = tf.ones([tf.shape(deviations)[0], 1, tf.shape(deviations)[1]])
    # A matrix product with ones sums several times faster than tf.reduce_sum over leading axes, and more exactly.
    sums = tf.reduce_sum(tf.cast(tf.matmul(ones, deviations), tf.float64), [0, 1])
    squares = tf.reduce_sum(tf.cast(tf.matmul(ones, tf.square(deviations)), tf.float64), [0, 1])
    offset = sums / count
    return count, tf.cast(shift, tf.float64) + offset, tf.maximum(squares - offset * sums, 0.0)


def _weighted_moments(values: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    axes = list(range(len(values.shape) - 1))
    count = tf.reduce_sum(weights)
    mean = tf.math.divide_no_nan(tf.reduce_sum(values * weights, axes), count)
    return count, mean, tf.reduce_sum(weights * tf.square(values - mean), axes)
