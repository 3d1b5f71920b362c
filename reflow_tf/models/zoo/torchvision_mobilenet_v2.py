"""The MobileNetV2 that torchvision's weights belong to: keras.applications' layers, PyTorch's padding and epsilon.

Source: https://github.com/pytorch/vision/blob/main/torchvision/models/mobilenetv2.py. Two things differ from
keras.applications: stride-2 convolutions pad 1 pixel on all four sides (Keras: only below and to the right), and batch
normalization adds 1e-5 (Keras: 1e-3) to the variance.
"""

from typing import Any

import keras

BATCH_NORM_EPSILON = 1e-5
_NUM_BLOCKS = 17


def build_torchvision_mobilenet_v2(image_size: int, num_classes: int) -> keras.Model:
    """Builds the network (width 1.0) with fresh weights.

    Args:
        image_size: height and width of the input in pixels; the input is (batch, image_size, image_size, 3).
        num_classes: length of the output, which is a softmax.
    """
    stock = keras.applications.MobileNetV2(
        input_shape=(image_size, image_size, 3), alpha=1.0, weights=None, classes=num_classes
    )
    return keras.models.clone_model(stock, clone_function=_clone_layer, call_function=_call_layer)


def _clone_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        config["epsilon"] = BATCH_NORM_EPSILON
    elif isinstance(layer, keras.layers.ZeroPadding2D):
        config["padding"] = (1, 1)
    elif layer.name == "Conv1":
        config["padding"] = "valid"
    return layer.__class__.from_config(config)


def _call_layer(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
    if layer.name == "Conv1":  # the only stride-2 convolution that has no ZeroPadding2D before it
        return layer(keras.layers.ZeroPadding2D(1, name="Conv1_pad")(*args), **kwargs)
    return layer(*args, **kwargs)


def name_torch_modules() -> dict[str, str]:
    """Keras layer -> torchvision module."""
    modules = {
        "Conv1": "features.0.0",
        "bn_Conv1": "features.0.1",
        "expanded_conv_depthwise": "features.1.conv.0.0",
        "expanded_conv_depthwise_BN": "features.1.conv.0.1",
        "expanded_conv_project": "features.1.conv.1",
        "expanded_conv_project_BN": "features.1.conv.2",
    }
    for block in range(1, _NUM_BLOCKS):
        module = f"features.{block + 1}.conv"
        modules |= {
            f"block_{block}_expand": f"{module}.0.0",
            f"block_{block}_expand_BN": f"{module}.0.1",
            f"block_{block}_depthwise": f"{module}.1.0",
            f"block_{block}_depthwise_BN": f"{module}.1.1",
            f"block_{block}_project": f"{module}.2",
            f"block_{block}_project_BN": f"{module}.3",
        }
    return modules | {"Conv_1": "features.18.0", "Conv_1_bn": "features.18.1", "predictions": "classifier.1"}
