"""The MobileNet (v1, Howard et al. 2017, arXiv 1704.04861) of timm's checkpoints; torchvision has none.

Source: `_gen_mobilenet_v1` of
https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/efficientnet.py. Against keras.applications:
PyTorch's padding and epsilon, and a dense classifier instead of a 1x1 convolution.
"""

import keras

from reflow_tf.models.zoo.torch_layers import classify, convolve, convolve_depthwise

_STEM_FILTERS = 32
# (blocks, filters) of each stage; the first block of every stage but the first has stride 2.
_STAGES = ((1, 64), (2, 128), (2, 256), (6, 512), (2, 1024))


def build_timm_mobilenet_v1(image_size: int, num_classes: int) -> keras.Model:
    """Builds the network (width 1.0) with fresh weights.

    Args:
        image_size: height and width of the input in pixels; the input is (batch, image_size, image_size, 3).
        num_classes: length of the output, which is a softmax.
    """
    inputs = keras.Input((image_size, image_size, 3), name="image")
    x = convolve(inputs, _STEM_FILTERS, 3, 2, "stem")
    x = keras.layers.ReLU(6.0, name="stem_relu")(x)
    for stage, (num_blocks, filters) in enumerate(_STAGES):
        for block in range(num_blocks):
            name, stride = f"stage{stage}_block{block}", 2 if stage > 0 and block == 0 else 1
            x = convolve_depthwise(x, 3, stride, f"{name}_depthwise")
            x = keras.layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
            x = convolve(x, filters, 1, 1, f"{name}_pointwise")
            x = keras.layers.ReLU(6.0, name=f"{name}_pointwise_relu")(x)
    return keras.Model(inputs, classify(x, num_classes), name="mobilenet_v1")


def name_torch_modules() -> dict[str, str]:
    """Keras layer -> timm module."""
    modules = {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    for stage, (num_blocks, _) in enumerate(_STAGES):
        for block in range(num_blocks):
            layer, module = f"stage{stage}_block{block}", f"blocks.{stage}.{block}"
            modules |= {
                f"{layer}_depthwise_conv": f"{module}.conv_dw",
                f"{layer}_depthwise_bn": f"{module}.bn1",
                f"{layer}_pointwise_conv": f"{module}.conv_pw",
                f"{layer}_pointwise_bn": f"{module}.bn2",
            }
    return modules | {"predictions": "classifier"}
