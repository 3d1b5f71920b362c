"""ResNet-50 (He et al. 2015) and ResNeXt (Xie et al. 2016, arXiv 1611.05431), as torchvision lays them out.

Source: https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py. Against keras.applications' ResNet50:
the stride is the 3x3 convolution's (called ResNet v1.5), convolutions have no bias, and padding is PyTorch's.
"""

import keras

from reflow_tf.models.zoo import bottlenecks
from reflow_tf.models.zoo.bottlenecks import Stage
from reflow_tf.models.zoo.torch_layers import classify, convolve

_EXPANSION = 4  # filters of a block, in planes
_PARTS = {
    "1": ("conv1", "bn1"),
    "2": ("conv2", "bn2"),
    "3": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}


def list_stages(num_blocks: tuple[int, ...], groups: int, group_width: int) -> tuple[Stage, ...]:
    """The stages of a ResNeXt-{depth} {groups}x{group_width}d; 1x64d is ResNet.

    Args:
        num_blocks: of each stage.
        groups: of the 3x3 convolutions, called cardinality in the paper.
        group_width: channels of one group in the first stage; each stage doubles it.
    """
    return tuple(
        Stage(count, 64 * _EXPANSION * 2**index, groups * group_width * 2**index, groups, 2 if index else 1)
        for index, count in enumerate(num_blocks)
    )


RESNET50 = list_stages((3, 4, 6, 3), 1, 64)
RESNEXT50_32X4D = list_stages((3, 4, 6, 3), 32, 4)
RESNEXT101_32X8D = list_stages((3, 4, 23, 3), 32, 8)
RESNEXT101_64X4D = list_stages((3, 4, 23, 3), 64, 4)


def build_torchvision_resnet(stages: tuple[Stage, ...], image_size: int, num_classes: int) -> keras.Model:
    """Builds the network with fresh weights.

    Args:
        stages: one of the constants of this module.
        image_size: height and width of the input in pixels; the input is (batch, image_size, image_size, 3).
        num_classes: length of the output, which is a softmax.
    """
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = convolve(inputs, 64, 7, 2, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    # PyTorch pads with minus infinity. After ReLU zeros do the same: no window is all padding, and nothing is below 0.
    x = keras.layers.ZeroPadding2D(1, name="pool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool")(x)
    x = bottlenecks.stack_stages(x, stages)
    return keras.Model(inputs, classify(x, num_classes), name="resnext" if stages[0].groups > 1 else "resnet")


def name_torch_modules(stages: tuple[Stage, ...]) -> dict[str, str]:
    """Keras layer -> torchvision module."""
    blocks = bottlenecks.name_torch_modules(stages, lambda stage, block: f"layer{stage}.{block}", _PARTS)
    return {"stem_conv": "conv1", "stem_bn": "bn1", **blocks, "predictions": "fc"}
