"""Output channels in an order in which the blocks of a pattern keep most, with the network computing what it did."""

from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from reflow_tf.data.portions import take_first
from reflow_tf.models import gram
from reflow_tf.models.channels.groups import ChannelGroup, find_channel_groups
from reflow_tf.models.channels.permutation import permute
from reflow_tf.models.fisher import gather_output_gains
from reflow_tf.models.graph import KernelMap, find_kernels
from reflow_tf.models.walking import walk
from reflow_tf.sparsity.criteria import activation
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.pairing import ScoredRows, order_rows
from reflow_tf.task import Task

MOST_SCORED = 128
"""Calibration inputs that say what each weight is worth to its block."""


def pair_channels(
    model: keras.Model,
    specs: Sequence[LayerSpec],
    heights: Mapping[str, int],
    sparsity: float,
    batches: Iterable[np.ndarray] | None,
    task: Task = Task.CLASSIFICATION,
) -> tuple[str, ...]:
    """Permutes output channels, in place, so that the rows of a block want the same inputs.

    A group of channels is ordered once for all kernels whose outputs it numbers: a residual stream for every
    projection that is added to it. Channels of the network's output, and those that something unknown touches, stay.

    Args:
        model: functional or sequential; of any other nothing is known, and nothing happens.
        specs: the kernels that are going to be pruned.
        heights: path of those that get blocks of outputs -> outputs of a block.
        sparsity: share of zeros that each kernel is going to have, as far as is known.
        batches: float arrays (n, ...), of which the first MOST_SCORED inputs are looked at; None: weights count by
            their magnitude.
        task: what the model's outputs are taken for.

    Returns:
        Paths of the kernels whose outputs were ordered.

    Raises:
        InputError: inputs that do not fit the model; activations or gradients that are not finite.
    """
    kernels = find_kernels(model)
    found = [(group, _members(group, specs, heights, kernels)) for group in find_channel_groups(model)]
    found = [(group, members) for group, members in found if group.frozen is None and members]
    if not found:
        return ()
    scores = _score(model, kernels, [spec for _, members in found for spec in members], batches, task)
    for group, members in found:
        rows = [np.square(scores[spec.path].reshape(group.size, -1)) for spec in members]
        height = max(heights[spec.path] for spec in members)
        permute(group, order_rows([ScoredRows(energies, sparsity) for energies in rows], height))
    return tuple(spec.path for _, members in found for spec in members)


def _members(
    group: ChannelGroup, specs: Sequence[LayerSpec], heights: Mapping[str, int], kernels: KernelMap
) -> list[LayerSpec]:
    """The kernels whose outputs, all of them, are the channels of the group, and that get blocks of them."""

    def is_member(spec: LayerSpec) -> bool:
        variable = kernels.variables[spec.path]
        return spec.canonical_shape[0] == group.size and any(
            span.variable is variable and span.axis in spec.output_axes for span in group.spans
        )

    return [spec for spec in specs if heights.get(spec.path, 1) > 1 and is_member(spec)]


def _score(
    model: keras.Model,
    kernels: KernelMap,
    specs: Sequence[LayerSpec],
    batches: Iterable[np.ndarray] | None,
    task: Task,
) -> dict[str, np.ndarray]:
    """Path -> what each weight does to its output (`criteria.activation`) times what that does to the prediction.

    Layers whose input has no Gram have magnitudes in place of the former.
    """
    weights = kernels.read()
    if batches is None:
        return {spec.path: np.abs(weights[spec.path]) for spec in specs}
    images = take_first(batches, MOST_SCORED)
    placed = {place.path: place.layer for place in walk(model)}
    layers = {spec.path: spec.path.rpartition("/") for spec in specs}
    known = [s for s in specs if gram.find_patches(placed[layers[s.path][0]], layers[s.path][2]) is not None]
    grams = gram.gather(model, known, [images]) if known else {}
    gains = gather_output_gains(model, specs, images, task)
    scores = {}
    for spec in specs:
        statistics = {"input_gram": grams[spec.path]} if spec.path in grams else None
        kernel = weights[spec.path]
        scored = np.abs(kernel) if statistics is None else activation(kernel, statistics)
        scores[spec.path] = scored * gains[spec.path].reshape(-1, *[1] * (kernel.ndim - 1))
    return scores
