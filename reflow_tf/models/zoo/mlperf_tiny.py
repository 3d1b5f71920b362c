"""The convolutional networks of MLPerf Tiny, the benchmark of microcontrollers.

Source: https://github.com/mlcommons/tiny, benchmark/training: image_classification/keras_model.py with 16 filters,
visual_wake_words/vww_model.py and keyword_spotting/keras_model.py ('ds_cnn'). As there, every convolution has a bias,
also before a batch norm, strides pad as TF's SAME does, and the layers come in the order in which the reference saves
its weights. With the weights published there, each network here computes what the model published there computes.
"""

import keras

_KEYWORD_COEFFICIENTS = 10  # of the cepstrum, for each window of sound
_KEYWORD_FILTERS = 64
# (filters, stride) of each depthwise-separable convolution at width 0.25
_SEPARABLE = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *((128, 1),) * 5, (256, 2), (256, 1))


def build_resnet8(image_size: int, num_classes: int) -> keras.Model:
    """Builds the ResNet for 32x32 images with fresh weights: 78,666 parameters for 10 classes.

    Args:
        image_size: height and width of the input in pixels; the input is (batch, image_size, image_size, 3).
        num_classes: length of the output, which is a softmax.
    """
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = _convolve(inputs, 16, 3, 1, "stem")
    for stage, filters in enumerate((16, 32, 64), start=1):
        stride, name = min(stage, 2), f"stage{stage}"
        y = _convolve(x, filters, 3, stride, f"{name}_1")
        y = _convolve(y, filters, 3, 1, f"{name}_2", relu=False)
        if stride > 1:  # as in the reference, without a batch norm
            shortcut = keras.layers.Conv2D(
                filters, 1, stride, "same", kernel_initializer="he_normal", name=f"{name}_shortcut"
            )
            x = shortcut(x)
        x = keras.layers.Add(name=f"{name}_add")([x, y])
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    return keras.Model(inputs, _classify(x, num_classes), name="resnet8")


def build_mobilenet_v1_025(image_size: int, num_classes: int) -> keras.Model:
    """Builds MobileNetV1 at width 0.25 with fresh weights: 221,794 parameters for 2 classes.

    keras.applications' MobileNet differs: it clips at 6, pads strides by layers of their own, has no biases and ends
    in a 1x1 convolution.

    Args: as for `build_resnet8`.
    """
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = _convolve(inputs, 8, 3, 2, "stem")
    for index, (filters, stride) in enumerate(_SEPARABLE, start=1):
        x = _convolve_separable(x, filters, stride, f"block{index}")
    return keras.Model(inputs, _classify(x, num_classes), name="mobilenet_v1_025")


def build_ds_cnn(num_windows: int, num_classes: int) -> keras.Model:
    """Builds the keyword spotter of Zhang et al. (arXiv 1711.07128) with fresh weights: 24,908 parameters, 12 classes.

    It averages all 25 rows that 49 windows leave, as the reference's published models do; its code of today rounds
    the half of 49 down and leaves the last row out.

    Args:
        num_windows: height of the input, one row for each window of sound; the input is (batch, num_windows, 10, 1),
            10 mel-frequency cepstral coefficients a row.
        num_classes: length of the output, which is a softmax.
    """
    inputs = keras.Input((num_windows, _KEYWORD_COEFFICIENTS, 1), name="cepstrum")
    x = _convolve(inputs, _KEYWORD_FILTERS, (10, 4), 2, "stem")
    x = keras.layers.Dropout(0.2, name="stem_dropout")(x)
    for index in range(1, 5):
        x = _convolve_separable(x, _KEYWORD_FILTERS, 1, f"block{index}")
    x = keras.layers.Dropout(0.4, name="dropout")(x)
    return keras.Model(inputs, _classify(x, num_classes), name="ds_cnn")


def _convolve(
    x: keras.KerasTensor,
    filters: int,
    kernel_size: int | tuple[int, int],
    stride: int,
    name: str,
    *,
    relu: bool = True,
) -> keras.KerasTensor:
    """Convolution, batch norm and, unless an addition follows, ReLU."""
    convolution = keras.layers.Conv2D(
        filters, kernel_size, stride, "same", kernel_initializer="he_normal", name=f"{name}_conv"
    )
    x = keras.layers.BatchNormalization(name=f"{name}_bn")(convolution(x))
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _convolve_separable(x: keras.KerasTensor, filters: int, stride: int, name: str) -> keras.KerasTensor:
    """3x3 depthwise with the stride, then 1x1, each with batch norm and ReLU."""
    depthwise = keras.layers.DepthwiseConv2D(
        3, stride, "same", depthwise_initializer="he_normal", name=f"{name}_depthwise_conv"
    )
    x = keras.layers.BatchNormalization(name=f"{name}_depthwise_bn")(depthwise(x))
    x = keras.layers.ReLU(name=f"{name}_depthwise_relu")(x)
    return _convolve(x, filters, 1, 1, f"{name}_pointwise")


def _classify(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Mean over the image, as an AVERAGE_POOL_2D in the file, then a dense layer with softmax."""
    x = keras.layers.AveragePooling2D(x.shape[1:3], name="average")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.layers.Dense(num_classes, activation="softmax", name="predictions")(x)
