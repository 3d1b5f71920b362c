"""Layers with weights become calls of the kernels that multiply them, each with the storage that suits it."""

from collections.abc import Mapping

import numpy as np

from reflow_tf.export.c_kernels import sparse_rows
from reflow_tf.export.c_kernels.calls import Call
from reflow_tf.export.c_kernels.constant_rows import settle_constant_rows
from reflow_tf.export.c_kernels.network import Convolution, Dense, DepthwiseConvolution, Layer, Weights, Window
from reflow_tf.export.c_kernels.rescaling import (
    Rescaling,
    bound_partial_sums,
    bound_sums,
    fit_bits,
    fold_zero_point,
    plan_rescaling,
)
from reflow_tf.export.c_kernels.tiles import LARGE_TILE, SMALL_TILE, find_lead

_WORD_BYTES = 4


def call_convolution(layer: Layer, operation: Convolution, storage: str) -> Call:
    """A convolution of at least four pixels whose sums have 24 bits in tiles; any other as the reference writes it."""
    source, weights = layer.inputs[0], settle_constant_rows(layer, operation.weights)
    biases = fold_zero_point(weights.values, weights.biases, source.zero_point)
    sums = bound_sums(weights.values, biases)
    tiled = fit_bits(sums) and operation.window.num_pixels >= SMALL_TILE
    rescaling = plan_rescaling(weights.scales, sums, layer.output.zero_point, layer.limits)
    if not tiled:
        rescaling = _exact(weights, layer)
        storage, starts = "dense", weights.biases
    else:
        totals = weights.values.reshape(len(weights.values), -1).astype(np.int64).sum(axis=1)
        starts = (biases << 32) + ((biases - 128 * totals) << 8)
    fields = {
        "rescaling": _rescaling_fields(rescaling, layer),
        **_window_fields(operation.window),
        "input_channels": source.shape[3],
        "output_channels": layer.output.shape[3],
        "input_zero_point": source.zero_point,
    }
    return Call(
        layer=layer,
        function=f"reflow_conv_{storage}" if tiled else "reflow_conv_exact",
        structure="reflow_conv",
        fields=fields,
        arrays={"weights": _store(weights.values, storage), "starts": starts, **_rescaling_arrays(rescaling)},
        inputs=layer.inputs,
        output=layer.output,
        scratch_bytes=_tile_bytes(operation, source.shape[3]) if tiled else 0,
        lead_bytes=find_lead(operation.window, source.shape[3], layer.output.shape[3]) if tiled else None,
        storage=storage,
    )


def call_depthwise(layer: Layer, operation: DepthwiseConvolution) -> Call:
    """A 3x3 kernel of one output for each input channel in the fast way; any other as the reference writes it."""
    source, window = layer.inputs[0], operation.window
    weights = settle_constant_rows(layer, operation.weights)
    biases = fold_zero_point(weights.values, weights.biases, source.zero_point)
    sums = bound_partial_sums(weights.values, biases)
    multiplier = layer.output.shape[3] // source.shape[3]
    square = window.kernel == (3, 3) and window.strides in ((1, 1), (2, 2))
    fast = square and multiplier == 1 and fit_bits(sums)
    rescaling = plan_rescaling(weights.scales, sums, layer.output.zero_point, layer.limits)
    if not fast:
        rescaling = _exact(weights, layer)
    fields = {
        "rescaling": _rescaling_fields(rescaling, layer),
        **_window_fields(window),
        "channels": source.shape[3],
        "multiplier": multiplier,
        "input_zero_point": source.zero_point,
    }
    return Call(
        layer=layer,
        function="reflow_depthwise_3x3" if fast else "reflow_depthwise_exact",
        structure="reflow_depthwise",
        fields=fields,
        arrays={"weights": weights.values, "biases": biases.astype(np.int32), **_rescaling_arrays(rescaling)},
        inputs=layer.inputs,
        output=layer.output,
        scratch_bytes=_plane_bytes(window) if fast else 0,
        in_place=layer.inputs if fast and layer.output.size <= source.size else (),
        storage="dense",
    )


def call_dense(layer: Layer, operation: Dense, storage: str) -> Call:
    """A matrix times a vector."""
    weights = settle_constant_rows(layer, operation.weights)
    biases = fold_zero_point(weights.values, weights.biases, layer.inputs[0].zero_point)
    sums = bound_sums(weights.values, biases)
    rescaling = plan_rescaling(weights.scales, sums, layer.output.zero_point, layer.limits)
    if not fit_bits(sums):
        rescaling, storage = _exact(weights, layer), "exact"
    stored = "dense" if storage == "exact" else storage
    return Call(
        layer=layer,
        function=f"reflow_dense_{storage}",
        structure="reflow_dense",
        fields={
            "rescaling": _rescaling_fields(rescaling, layer),
            "inputs": weights.values.shape[1],
            "outputs": weights.values.shape[0],
        },
        arrays={
            "weights": _store(weights.values, stored),
            "biases": biases.astype(np.int32),
            **_rescaling_arrays(rescaling),
        },
        inputs=layer.inputs,
        output=layer.output,
        storage=stored,
    )


def _exact(weights: Weights, layer: Layer) -> Rescaling:
    """The rescaling in TFLite's own words."""
    wide = np.full(len(weights.scales), 1 << 31)
    return plan_rescaling(weights.scales, (-wide, wide), layer.output.zero_point, layer.limits)


def _store(values: np.ndarray, storage: str) -> np.ndarray:
    """The array that a kernel takes."""
    rows = values.reshape(len(values), -1)
    return sparse_rows.encode(rows) if storage == "sparse" else rows


def _rescaling_fields(rescaling: Rescaling, layer: Layer) -> Mapping[str, object]:
    return {
        "zero_point": layer.output.zero_point,
        "lowest": layer.limits[0],
        "highest": layer.limits[1],
        "rounding": rescaling.rounding.value,
    }


def _rescaling_arrays(rescaling: Rescaling) -> Mapping[str, np.ndarray]:
    return {"rescaling.multipliers": rescaling.multipliers, "rescaling.shifts": rescaling.shifts}


def _window_fields(window: Window) -> Mapping[str, object]:
    names = {
        "input": window.input_size,
        "output": window.output_size,
        "kernel": window.kernel,
        "stride": window.strides,
    }
    fields = {f"{name}_{side}": size for name, sizes in names.items() for side, size in zip(_SIDES, sizes, strict=True)}
    return fields | {"padding_top": window.padding[0], "padding_left": window.padding[1]}


_SIDES = ("height", "width")


def _tile_bytes(operation: Convolution, channels: int) -> int:
    """Of the scratch of sources/conv_gather.c: a tile, and a row of zero points where kernels can lie outside."""
    window = operation.window
    taps = window.kernel[0] * window.kernel[1]
    pairs = (LARGE_TILE if window.num_pixels >= LARGE_TILE else SMALL_TILE) // 2
    tile = taps * channels * pairs * _WORD_BYTES
    return tile if taps == 1 and window.strides == (1, 1) else tile + window.kernel[1] * channels


def _plane_bytes(window: Window) -> int:
    """Of the scratch of sources/depthwise_3x3.c."""
    height = (window.output_size[0] - 1) * window.strides[0] + 3
    even = (window.output_size[1] + 1) & ~1
    pitch = ((even - 1) * window.strides[1] + 4 + 1) & ~1
    return height * pitch * 2
