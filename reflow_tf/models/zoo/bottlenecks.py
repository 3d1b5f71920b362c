"""The residual bottleneck that ResNet, ResNeXt and RegNet stack: 1x1, 3x3 (grouped or not), 1x1, and a shortcut.

The stride is the 3x3 convolution's, as in torchvision (He et al. 2015 and keras.applications: the first 1x1's). The
first block of a stage changes the shape, so its shortcut is a strided 1x1 convolution; the others' is the identity.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import keras

from reflow_tf.models.zoo.torch_layers import convolve


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of one shape.

    Attributes:
        num_blocks: how many.
        filters: channels of the stage's output.
        inner: channels of the 3x3 convolution.
        groups: groups of the 3x3 convolution.
        stride: of the first block; the others have 1.
    """

    num_blocks: int
    filters: int
    inner: int
    groups: int
    stride: int


def stack_stages(x: keras.KerasTensor, stages: Iterable[Stage]) -> keras.KerasTensor:
    """Runs the stages one after the other."""
    for number, stage in enumerate(stages, start=1):
        for block in range(stage.num_blocks):
            x = _apply_block(x, stage, f"stage{number}_block{block}", is_first=block == 0)
    return x


def _apply_block(inputs: keras.KerasTensor, stage: Stage, name: str, is_first: bool) -> keras.KerasTensor:
    stride = stage.stride if is_first else 1
    x = convolve(inputs, stage.inner, 1, 1, f"{name}_1")
    x = keras.layers.ReLU(name=f"{name}_1_relu")(x)
    x = convolve(x, stage.inner, 3, stride, f"{name}_2", groups=stage.groups)
    x = keras.layers.ReLU(name=f"{name}_2_relu")(x)
    x = convolve(x, stage.filters, 1, 1, f"{name}_3")
    shortcut = convolve(inputs, stage.filters, 1, stride, f"{name}_shortcut") if is_first else inputs
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def name_torch_modules(
    stages: Iterable[Stage], name_block: Callable[[int, int], str], parts: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Keras layer -> PyTorch module, for the stages' layers.

    Args:
        stages: as for `stack_stages`.
        name_block: (number of the stage from 1, index of the block from 0) -> PyTorch module of the block.
        parts: '1', '2', '3' and 'shortcut' -> the modules of its convolution and its batch norm, within the block.
    """
    modules: dict[str, str] = {}
    for number, stage in enumerate(stages, start=1):
        for block in range(stage.num_blocks):
            for part, (conv, norm) in parts.items():
                if part == "shortcut" and block > 0:
                    continue
                layer, module = f"stage{number}_block{block}_{part}", name_block(number, block)
                modules |= {f"{layer}_conv": f"{module}.{conv}", f"{layer}_bn": f"{module}.{norm}"}
    return modules
