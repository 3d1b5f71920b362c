"""The architectures that the tool knows by name, and what is known about each of them."""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import keras

from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.models.zoo import (
    efficientnet_lite,
    mlperf_tiny,
    resnet20,
    timm_mobilenet_v1,
    torchvision_mobilenet_v2,
    torchvision_regnet,
    torchvision_resnet,
)
from reflow_tf.models.zoo.bottlenecks import Stage
from reflow_tf.models.zoo.embedded import EmbeddedWeights
from reflow_tf.models.zoo.torch_layouts import TorchLayout


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network that can be built by name.

    Attributes:
        name: what `--model` calls it.
        build: (height, num_classes) -> network with fresh weights, softmax outputs; the width of its input equals the
            height, unless `preprocessing.size` says otherwise.
        preprocessing: what its reference evaluation feeds it; `size` is the default input size.
        num_classes: how many classes it has unless its weights say otherwise.
        download: () -> network with ImageNet weights, fetched by keras.applications; None where there are none.
        torch_layout: the PyTorch checkpoints it can be loaded from, if any.
        embedded: the weights trained on Fashion-MNIST that ship with the package, if any.
    """

    name: str
    build: Callable[[int, int], keras.Model]
    preprocessing: Preprocessing
    num_classes: int = 1000
    download: Callable[[], keras.Model] | None = None
    torch_layout: TorchLayout | None = None
    embedded: EmbeddedWeights | None = None

    @property
    def image_size(self) -> int:
        """Default height in pixels."""
        return self._size[0]

    @property
    def takes_images(self) -> bool:
        """Whether inputs are square, as images are resized to be; the keyword spotter's are windows x coefficients."""
        return self._size[0] == self._size[1]

    @property
    def _size(self) -> tuple[int, int]:
        assert self.preprocessing.size is not None  # every network of the zoo has one
        return self.preprocessing.size


def _from_applications(name: str, function: Callable[..., keras.Model], **facts: Any) -> Architecture:
    def build(image_size: int, num_classes: int) -> keras.Model:
        return function(input_shape=(image_size, image_size, 3), classes=num_classes, weights=None)

    return Architecture(name, build, download=functools.partial(function, weights="imagenet"), **facts)


def _build_half_mobilenet_v2(image_size: int, num_classes: int) -> keras.Model:
    return keras.applications.MobileNetV2(
        input_shape=(image_size, image_size, 3), alpha=0.5, classes=num_classes, weights=None
    )


def _describe_efficientnet_lite(name: str, scaling: efficientnet_lite.Scaling) -> Architecture:
    size = scaling.image_size
    # The reference evaluation cuts a centre crop that leaves 16 of (size + 32) pixels out on each side.
    preprocessing = Preprocessing((size, size), scaling="lite", resize="bicubic", crop_fraction=size / (size + 32))
    build = functools.partial(efficientnet_lite.build_efficientnet_lite, scaling)
    modules = efficientnet_lite.name_torch_modules(scaling)
    layout = TorchLayout("EfficientNet-PyTorch's " + name, modules, "_fc", build, preprocessing)
    return Architecture(name, build, preprocessing, torch_layout=layout)


def _describe_resnet20() -> Architecture:
    preprocessing = Preprocessing((32, 32), scaling="torch", crop_fraction=1.0)
    layout = TorchLayout(
        "akamaster's resnet20", resnet20.name_torch_modules(), "linear", resnet20.build_resnet20, preprocessing
    )
    return Architecture("resnet20", resnet20.build_resnet20, preprocessing, num_classes=10, torch_layout=layout)


_TORCHVISION = Preprocessing((224, 224), scaling="torch")  # the first weights that torchvision published of a network


def _lay_out_resnet(name: str, stages: tuple[Stage, ...], preprocessing: Preprocessing) -> TorchLayout:
    build = functools.partial(torchvision_resnet.build_torchvision_resnet, stages)
    modules = torchvision_resnet.name_torch_modules(stages)
    return TorchLayout("torchvision's " + name, modules, "fc", build, preprocessing)


def _describe_resnext(
    name: str, stages: tuple[Stage, ...], preprocessing: Preprocessing = _TORCHVISION
) -> Architecture:
    layout = _lay_out_resnet(name, stages, preprocessing)
    return Architecture(name, layout.build, preprocessing, torch_layout=layout)


def _describe_regnet(name: str, stages: tuple[Stage, ...]) -> Architecture:
    build = functools.partial(torchvision_regnet.build_torchvision_regnet, stages)
    modules = torchvision_regnet.name_torch_modules(stages)
    layout = TorchLayout("torchvision's " + name, modules, "fc", build, _TORCHVISION)
    return Architecture(name, build, _TORCHVISION, torch_layout=layout)


_TIMM_MOBILENET_V1 = TorchLayout(
    title="timm's mobilenetv1_100",
    modules=timm_mobilenet_v1.name_torch_modules(),
    classifier="classifier",
    build=timm_mobilenet_v1.build_timm_mobilenet_v1,
    preprocessing=Preprocessing((224, 224), scaling="tf", resize="bicubic"),
)
_TORCHVISION_MOBILENET_V2 = TorchLayout(
    title="torchvision's mobilenet_v2",
    modules=torchvision_mobilenet_v2.name_torch_modules(),
    classifier="classifier.1",
    build=torchvision_mobilenet_v2.build_torchvision_mobilenet_v2,
    preprocessing=_TORCHVISION,
)
_IN_MODEL = Preprocessing((224, 224), scaling="none")  # the network begins with Rescaling


def _describe_mlperf_tiny() -> tuple[Architecture, ...]:
    """The reference trains on the bytes of CIFAR-10, on visual wake words / 255, and on the cepstrum as it comes."""
    resnet8 = Preprocessing((32, 32), scaling="none", crop_fraction=1.0)
    mobilenet = Preprocessing((96, 96), scaling="unit", crop_fraction=1.0)
    ds_cnn = Preprocessing((49, 10), channels=1, scaling="none", crop_fraction=1.0)
    build_resnet8, build_mobilenet = mlperf_tiny.build_resnet8, mlperf_tiny.build_mobilenet_v1_025
    return (
        Architecture(
            "resnet8",
            build_resnet8,
            resnet8,
            num_classes=10,
            embedded=EmbeddedWeights("resnet8_fashion_mnist", build_resnet8),
        ),
        Architecture(
            "mobilenet_v1_025",
            build_mobilenet,
            mobilenet,
            num_classes=2,
            embedded=EmbeddedWeights("mobilenet_v1_025_fashion_mnist", build_mobilenet),
        ),
        Architecture("ds_cnn", mlperf_tiny.build_ds_cnn, ds_cnn, num_classes=12),
    )


_ALL = (
    _from_applications(
        "mobilenet",
        keras.applications.MobileNet,
        preprocessing=Preprocessing((224, 224), scaling="tf"),
        torch_layout=_TIMM_MOBILENET_V1,
    ),
    _from_applications(
        "mobilenet_v2",
        keras.applications.MobileNetV2,
        preprocessing=Preprocessing((224, 224), scaling="tf"),
        torch_layout=_TORCHVISION_MOBILENET_V2,
        embedded=EmbeddedWeights("mobilenet_v2_fashion_mnist", _build_half_mobilenet_v2),
    ),
    _from_applications("mobilenet_v3_small", keras.applications.MobileNetV3Small, preprocessing=_IN_MODEL),
    _from_applications("mobilenet_v3_large", keras.applications.MobileNetV3Large, preprocessing=_IN_MODEL),
    _from_applications(
        "efficientnet_b0",
        keras.applications.EfficientNetB0,
        preprocessing=dataclasses.replace(_IN_MODEL, resize="bicubic"),
    ),
    _describe_efficientnet_lite("efficientnet_lite0", efficientnet_lite.LITE0),
    _describe_efficientnet_lite("efficientnet_lite1", efficientnet_lite.LITE1),
    _describe_efficientnet_lite("efficientnet_lite2", efficientnet_lite.LITE2),
    _from_applications(
        "resnet50",
        keras.applications.ResNet50,
        preprocessing=Preprocessing((224, 224), scaling="caffe"),
        torch_layout=_lay_out_resnet("resnet50", torchvision_resnet.RESNET50, _TORCHVISION),
    ),
    _describe_resnet20(),
    _describe_resnext("resnext50_32x4d", torchvision_resnet.RESNEXT50_32X4D),
    _describe_resnext("resnext101_32x8d", torchvision_resnet.RESNEXT101_32X8D),
    # Its only weights were trained by torchvision's later recipe, whose evaluation resizes to 232 instead of 256.
    _describe_resnext(
        "resnext101_64x4d",
        torchvision_resnet.RESNEXT101_64X4D,
        dataclasses.replace(_TORCHVISION, crop_fraction=224 / 232),
    ),
    *(_describe_regnet(name, stages) for name, stages in torchvision_regnet.REGNETS_X.items()),
    *_describe_mlperf_tiny(),
)

ARCHITECTURES: Mapping[str, Architecture] = types.MappingProxyType({item.name: item for item in _ALL})
