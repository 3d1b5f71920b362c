"""RegNetX (Radosavovic et al. 2020, arXiv 2003.13678), as torchvision lays it out.

Source: https://github.com/pytorch/vision/blob/main/torchvision/models/regnet.py. RegNetX has no squeeze-and-excitation
and a bottleneck ratio of 1: all convolutions of a stage have the same width.
"""

import types
from collections.abc import Mapping

import keras

from reflow_tf.models.zoo import bottlenecks
from reflow_tf.models.zoo.bottlenecks import Stage
from reflow_tf.models.zoo.torch_layers import classify, convolve

_STEM_FILTERS = 32
_PARTS = {
    "1": ("f.a.0", "f.a.1"),
    "2": ("f.b.0", "f.b.1"),
    "3": ("f.c.0", "f.c.1"),
    "shortcut": ("proj.0", "proj.1"),
}


def list_stages(group_width: int, num_blocks: tuple[int, ...], widths: tuple[int, ...]) -> tuple[Stage, ...]:
    """The stages of one member.

    Args:
        group_width: channels of one group of the 3x3 convolutions; a narrower stage is one group.
        num_blocks: of each stage.
        widths: channels of each stage.
    """
    return tuple(
        Stage(count, width, width, width // min(group_width, width), 2)
        for count, width in zip(num_blocks, widths, strict=True)
    )


# Name -> stages. The paper gives depth, w_0, w_a and w_m, from which its equations (2) to (4) make these numbers.
REGNETS_X: Mapping[str, tuple[Stage, ...]] = types.MappingProxyType(
    {
        "regnet_x_400mf": list_stages(16, (1, 2, 7, 12), (32, 64, 160, 400)),
        "regnet_x_800mf": list_stages(16, (1, 3, 7, 5), (64, 128, 288, 672)),
        "regnet_x_1_6gf": list_stages(24, (2, 4, 10, 2), (72, 168, 408, 912)),
        "regnet_x_3_2gf": list_stages(48, (2, 6, 15, 2), (96, 192, 432, 1008)),
        "regnet_x_8gf": list_stages(120, (2, 5, 15, 1), (80, 240, 720, 1920)),
        "regnet_x_16gf": list_stages(128, (2, 6, 13, 1), (256, 512, 896, 2048)),
        "regnet_x_32gf": list_stages(168, (2, 7, 13, 1), (336, 672, 1344, 2520)),
    }
)


def build_torchvision_regnet(stages: tuple[Stage, ...], image_size: int, num_classes: int) -> keras.Model:
    """Builds the network with fresh weights.

    Args:
        stages: an entry of `REGNETS_X`.
        image_size: height and width of the input in pixels; the input is (batch, image_size, image_size, 3).
        num_classes: length of the output, which is a softmax.
    """
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = convolve(inputs, _STEM_FILTERS, 3, 2, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    x = bottlenecks.stack_stages(x, stages)
    return keras.Model(inputs, classify(x, num_classes), name="regnet_x")


def name_torch_modules(stages: tuple[Stage, ...]) -> dict[str, str]:
    """Keras layer -> torchvision module."""
    blocks = bottlenecks.name_torch_modules(
        stages, lambda stage, block: f"trunk_output.block{stage}.block{stage}-{block}", _PARTS
    )
    return {"stem_conv": "stem.0", "stem_bn": "stem.1", **blocks, "predictions": "fc"}
