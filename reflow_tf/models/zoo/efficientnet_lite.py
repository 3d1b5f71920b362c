"""EfficientNet-Lite: EfficientNet without squeeze-excite and swish, so that every operator is one a phone runs fast.

Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Against EfficientNet: ReLU6
for swish, no squeeze-and-excitation, and the stem (32), the head (1280), and the depth of the first and of the last
stage stay as they are when the network is scaled.
"""

import dataclasses
import math

import keras

STEM_FILTERS = 32
HEAD_FILTERS = 1280
BATCH_NORM_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One member of the family.

    Attributes:
        width: multiplier of the blocks' filters.
        depth: multiplier of the blocks in a stage, first and last stage excepted.
        image_size: height and width in pixels that the reference weights were trained for.
        dropout: share of features that the classifier drops during training.
    """

    width: float
    depth: float
    image_size: int
    dropout: float


LITE0 = Scaling(1.0, 1.0, 224, 0.2)
LITE1 = Scaling(1.0, 1.1, 240, 0.2)
LITE2 = Scaling(1.1, 1.2, 260, 0.3)


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted residual: 1x1 expansion (where `expansion` > 1), depthwise, 1x1 projection."""

    name: str
    kernel_size: int
    stride: int
    expansion: int
    filters: int


# (kernel size, stride of the first block, expansion, filters, blocks) of EfficientNet-B0's seven stages.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def round_filters(filters: int, width: float) -> int:
    """Scales `filters`, rounded to a multiple of 8 that is at least 90 % of the scaled number."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def list_blocks(scaling: Scaling) -> tuple[Block, ...]:
    """The blocks in the order in which they run."""
    blocks = []
    for stage, (kernel_size, stride, expansion, filters, repeats) in enumerate(_STAGES, start=1):
        is_scaled = 1 < stage < len(_STAGES)
        for index in range(math.ceil(repeats * scaling.depth) if is_scaled else repeats):
            name = f"block{stage}{chr(ord('a') + index)}"
            filters_out = round_filters(filters, scaling.width)
            blocks.append(Block(name, kernel_size, stride if index == 0 else 1, expansion, filters_out))
    return tuple(blocks)


def build_efficientnet_lite(scaling: Scaling, image_size: int, num_classes: int) -> keras.Model:
    """Builds the network with fresh weights.

    Args:
        scaling: the member of the family.
        image_size: height and width of the input in pixels; the input is (batch, image_size, image_size, 3).
        num_classes: length of the output, which is a softmax.
    """
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.Conv2D(STEM_FILTERS, 3, 2, "same", use_bias=False, name="stem_conv")(inputs)
    x = _normalize(x, "stem")
    for block in list_blocks(scaling):
        x = _apply_block(x, block)
    x = keras.layers.Conv2D(HEAD_FILTERS, 1, use_bias=False, name="head_conv")(x)
    x = _normalize(x, "head")
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    x = keras.layers.Dropout(scaling.dropout, name="dropout")(x)
    outputs = keras.layers.Dense(num_classes, activation="softmax", name="predictions")(x)
    return keras.Model(inputs, outputs, name="efficientnet_lite")


def _normalize(x: keras.KerasTensor, name: str, activation: bool = True) -> keras.KerasTensor:
    x = keras.layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x


def _apply_block(inputs: keras.KerasTensor, block: Block) -> keras.KerasTensor:
    filters_in, x = inputs.shape[-1], inputs
    if block.expansion > 1:
        x = keras.layers.Conv2D(filters_in * block.expansion, 1, use_bias=False, name=f"{block.name}_expand_conv")(x)
        x = _normalize(x, f"{block.name}_expand")
    x = keras.layers.DepthwiseConv2D(
        block.kernel_size, block.stride, "same", use_bias=False, name=f"{block.name}_depthwise_conv"
    )(x)
    x = _normalize(x, f"{block.name}_depthwise")
    x = keras.layers.Conv2D(block.filters, 1, use_bias=False, name=f"{block.name}_project_conv")(x)
    x = _normalize(x, f"{block.name}_project", activation=False)
    if block.stride == 1 and filters_in == block.filters:
        return keras.layers.Add(name=f"{block.name}_add")([inputs, x])
    return x


def name_torch_modules(scaling: Scaling) -> dict[str, str]:
    """Keras layer -> module, as https://github.com/lukemelas/EfficientNet-PyTorch names them."""
    modules = {"stem_conv": "_conv_stem", "stem_bn": "_bn0"}
    for index, block in enumerate(list_blocks(scaling)):
        if block.expansion > 1:
            modules[f"{block.name}_expand_conv"] = f"_blocks.{index}._expand_conv"
            modules[f"{block.name}_expand_bn"] = f"_blocks.{index}._bn0"
        modules[f"{block.name}_depthwise_conv"] = f"_blocks.{index}._depthwise_conv"
        modules[f"{block.name}_depthwise_bn"] = f"_blocks.{index}._bn1"
        modules[f"{block.name}_project_conv"] = f"_blocks.{index}._project_conv"
        modules[f"{block.name}_project_bn"] = f"_blocks.{index}._bn2"
    return modules | {"head_conv": "_conv_head", "head_bn": "_bn1", "predictions": "_fc"}
