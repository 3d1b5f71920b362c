"""ResNet-20 for 32x32 images: the CIFAR-10 network of He et al. 2015, section 4.2, with parameter-free shortcuts.

Layout and padding follow https://github.com/akamaster/pytorch_resnet_cifar10, whose weights the pruning literature
uses: where a stage halves the image, the shortcut takes every second pixel and pads the new channels with zeros,
half of them before and half after (option A).
"""

import keras

from reflow_tf.models.zoo.torch_layers import classify, convolve

_STAGE_FILTERS = (16, 32, 64)
_BLOCKS_PER_STAGE = 3


def build_resnet20(image_size: int, num_classes: int) -> keras.Model:
    """Builds the network with fresh weights: 0.27 million parameters for 10 classes.

    Args:
        image_size: height and width of the input in pixels; the input is (batch, image_size, image_size, 3).
        num_classes: length of the output, which is a softmax.
    """
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = convolve(inputs, 16, 3, 1, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage, filters in enumerate(_STAGE_FILTERS, start=1):
        for block in range(_BLOCKS_PER_STAGE):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _apply_block(x, filters, stride, f"stage{stage}_block{block}")
    return keras.Model(inputs, classify(x, num_classes), name="resnet20")


def _apply_block(inputs: keras.KerasTensor, filters: int, stride: int, name: str) -> keras.KerasTensor:
    x = convolve(inputs, filters, 3, stride, f"{name}_1")
    x = keras.layers.ReLU(name=f"{name}_1_relu")(x)
    x = convolve(x, filters, 3, 1, f"{name}_2")
    shortcut = inputs if stride == 1 else _halve(inputs, filters, name)
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _halve(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
    """Every second pixel, channels padded with zeros up to `filters`."""
    x = keras.layers.AveragePooling2D(1, 2, name=f"{name}_subsample")(x)
    before = (filters - x.shape[-1]) // 2
    after = filters - x.shape[-1] - before
    # ZeroPadding2D with channels_first pads the last two axes: here (width, channels), so this pads channels alone.
    padding = ((0, 0), (before, after))
    return keras.layers.ZeroPadding2D(padding, data_format="channels_first", name=f"{name}_pad_channels")(x)


def name_torch_modules() -> dict[str, str]:
    """Keras layer -> module, as akamaster's repository names them."""
    modules = {"stem_conv": "conv1", "stem_bn": "bn1"}
    for stage in range(1, len(_STAGE_FILTERS) + 1):
        for block in range(_BLOCKS_PER_STAGE):
            for index in (1, 2):
                layer, module = f"stage{stage}_block{block}_{index}", f"layer{stage}.{block}"
                modules |= {f"{layer}_conv": f"{module}.conv{index}", f"{layer}_bn": f"{module}.bn{index}"}
    return modules | {"predictions": "linear"}
