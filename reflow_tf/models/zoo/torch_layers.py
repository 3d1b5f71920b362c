"""Convolution and batch norm as PyTorch computes them: padded alike on all sides, 1e-5 beside the variance.

TF's SAME padding agrees with PyTorch's only at stride 1; at stride 2 and an even size it pads below and to the right
alone. So a strided convolution pads by a layer of its own here, as keras.applications' networks do.
"""

import keras

BATCH_NORM_EPSILON = 1e-5


def convolve(
    x: keras.KerasTensor, filters: int, kernel_size: int, stride: int, name: str, *, groups: int = 1
) -> keras.KerasTensor:
    """Convolution without bias, padded by half the kernel, then batch norm.

    Args:
        x: (batch, height, width, channels).
        filters: channels of the result.
        kernel_size: odd.
        stride: the result has ceil(height / stride) rows.
        name: prefix of the layers' names: `{name}_conv`, `{name}_bn` and, where there is one, `{name}_pad`.
        groups: the channels are split in this many groups, each of which feeds its own share of the filters.
    """
    x, padding = _pad(x, kernel_size, stride, name)
    x = keras.layers.Conv2D(filters, kernel_size, stride, padding, groups=groups, use_bias=False, name=f"{name}_conv")(
        x
    )
    return keras.layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn")(x)


def convolve_depthwise(x: keras.KerasTensor, kernel_size: int, stride: int, name: str) -> keras.KerasTensor:
    """As `convolve`, one filter for each channel."""
    x, padding = _pad(x, kernel_size, stride, name)
    x = keras.layers.DepthwiseConv2D(kernel_size, stride, padding, use_bias=False, name=f"{name}_conv")(x)
    return keras.layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn")(x)


def classify(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Mean over the image, then a dense layer with softmax."""
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    return keras.layers.Dense(num_classes, activation="softmax", name="predictions")(x)


def _pad(x: keras.KerasTensor, kernel_size: int, stride: int, name: str) -> tuple[keras.KerasTensor, str]:
    """The input of the convolution, and what padding is left for the convolution itself."""
    if stride == 1:
        return x, "same"
    if kernel_size == 1:
        return x, "valid"
    return keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x), "valid"
