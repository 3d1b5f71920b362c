"""Outputs that are the same whatever the input is: their weights need neither be stored nor multiplied.

A row without non-zeros is one; so is a row whose bias is so large that every sum saturates. Where pruning leaves a
channel next to nothing, its weights' scale becomes tiny, and in steps of that scale its bias is huge.
"""

from dataclasses import replace

import numpy as np

from reflow_tf.export.c_kernels.network import Layer, Weights
from reflow_tf.export.c_kernels.rescaling import bound_sums, fold_zero_point, rescale

_SCALE = 0.25  # of constant rows: a sum of 4 d becomes d, in the fast way of rounding, too


def settle_constant_rows(layer: Layer, weights: Weights) -> Weights:
    """The same outputs, with the weights of constant rows set to 0 and their biases and scales to small numbers."""
    biases = fold_zero_point(weights.values, weights.biases, layer.inputs[0].zero_point)
    least, greatest = bound_sums(weights.values, biases)
    lowest, highest = layer.limits
    ends = np.array([rescale(sums, weights.scales) + layer.output.zero_point for sums in (least, greatest)])
    first, last = np.clip(ends, lowest, highest)
    constant = first == last  # a rescaling never decreases
    values = weights.values.copy()
    values[constant] = 0
    return replace(
        weights,
        values=values,
        biases=np.where(constant, 4 * (first - layer.output.zero_point), weights.biases),
        scales=np.where(constant, _SCALE, weights.scales),
    )
