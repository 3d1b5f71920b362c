"""The zoo's networks against PyTorch's own, with the same weights: records PyTorch's logits, and compares with them.

Recording needs PyTorch in an environment of its own, and nothing of this project but NumPy and absl:

    pip install torch==2.13.0 numpy absl-py pillow pyyaml safetensors huggingface_hub
    pip install --no-deps torchvision==0.28.0 timm==1.0.31
    python tools/torch_logits.py --record=tests/models/zoo/torch_logits.json

Comparing needs this project and no PyTorch; `tests/models/zoo/test_torch_logits.py` does it for the smaller networks,
and this command for any:

    python tools/torch_logits.py --record=/tmp/large.json --networks=resnext101_32x8d,regnet_x_32gf  # PyTorch's side
    python tools/torch_logits.py --compare=/tmp/large.json                                           # this side

No weights travel: both sides draw them from the tensors' names and shapes. They are not trained ones, which would prove
no more: every tensor and every operator takes part in the logits either way.
"""

import json
import math
import pathlib
import sys
import tempfile
import types
import zlib

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("record", None, "File to write: what PyTorch computes.")
flags.DEFINE_string("compare", None, "File of --record to compare the zoo with; exit code 1 where it differs.")
flags.DEFINE_list("networks", None, "Which to record; all that CI compares, if left out.")

NUM_CLASSES = 10
NUM_IMAGES = 3
IMAGE_SIZE = 56  # halved, even and odd sizes both occur: TF's SAME and PyTorch's padding part ways at the even ones
MOST_RELATIVE_DIFFERENCE = 1e-4
IN_CI = (
    *("mobilenet", "mobilenet_v2", "resnet20", "resnet50", "resnext50_32x4d"),
    *("regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf"),
)


def draw(name, shape):
    """One tensor of a checkpoint, drawn from its name: signals neither explode nor fade over a hundred layers."""
    if name.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    # RandomState and not Generator: NEP 19 freezes its streams for good.
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        low, high = 0.5, 1.5  # uneven, so that a permutation shows
    elif len(shape) == 1 and name.endswith("weight"):
        low, high = 0.8, 1.2
    elif len(shape) == 1:
        low, high = -0.2, 0.2
    else:
        high = math.sqrt(6 / math.prod(shape[1:]))  # He et al. 2015: the variance is 2 / fan-in
        low = -high
    return rng.uniform(low, high, shape).astype(np.float32)


def draw_images(image_size):
    """(images, height, width, 3): coarse squares under fine noise, so that the images differ after pooling too."""
    rng = np.random.RandomState(4)
    coarse = rng.uniform(-2, 2, (NUM_IMAGES, 4, 4, 3)).repeat(-(-image_size // 4), 1).repeat(-(-image_size // 4), 2)
    fine = rng.uniform(-1, 1, (NUM_IMAGES, image_size, image_size, 3))
    return (coarse[:, :image_size, :image_size] + fine).astype(np.float32)


def record(name):
    """What PyTorch's own network says of itself: shapes of its state dict, and its logits."""
    import torch

    network = build_in_torch(name).eval()
    shapes = {tensor: list(value.shape) for tensor, value in network.state_dict().items()}
    network.load_state_dict({tensor: torch.from_numpy(draw(tensor, shape)) for tensor, shape in shapes.items()})
    with torch.no_grad():
        logits = network(torch.from_numpy(draw_images(IMAGE_SIZE)).permute(0, 3, 1, 2))
    return {"image_size": IMAGE_SIZE, "shapes": shapes, "logits": np.float64(logits.numpy()).tolist()}


def build_in_torch(name):
    if name == "resnet20":
        return build_akamaster_resnet20()
    # torchvision's compiled operators are for the PyTorch with CUDA; the networks need none of them.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    import timm
    import torchvision

    if name == "mobilenet":
        return timm.create_model("mobilenetv1_100", num_classes=NUM_CLASSES)
    return torchvision.models.get_model(name, num_classes=NUM_CLASSES)


def build_akamaster_resnet20():
    """The network of https://github.com/akamaster/pytorch_resnet_cifar10, which no package has, with its names."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, channels, filters):
            super().__init__()
            self.stride = 1 if channels == filters else 2
            self.conv1 = nn.Conv2d(channels, filters, 3, self.stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(filters)
            self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(filters)

        def forward(self, x):
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            if self.stride == 2:
                quarter = y.shape[1] // 4
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
            return functional.relu(x + y)

    class ResNet20(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
            self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
            self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
            self.linear = nn.Linear(64, NUM_CLASSES)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
            return self.linear(x.mean((2, 3)))

    return ResNet20()


def load_in_keras(name, recorded, folder):
    """The zoo's network, its weights imported from a `.safetensors` file as a user would, its outputs logits."""
    import keras
    from safetensors.numpy import save_file

    from reflow_tf.models.loading import load_model

    path = pathlib.Path(folder) / f"{name}.safetensors"
    save_file({tensor: draw(tensor, shape) for tensor, shape in recorded["shapes"].items()}, path)
    model = load_model(name, weights=str(path), image_size=recorded["image_size"]).model
    path.unlink()
    model.layers[-1].activation = keras.activations.linear  # instead of softmax
    return model


def measure_difference(model, recorded, images):
    """Largest difference of a logit, relative to the most that any logit differs from one image to another.

    That is stricter than relative to the largest logit: a part of the logits that no image changes counts for nothing.
    """
    expected = np.array(recorded["logits"])
    actual = np.asarray(model(images, training=False), np.float64)
    return float(np.abs(actual - expected).max() / np.ptp(expected, axis=0).max())


def write_json(networks, path):
    """One line for each network."""
    lines = [f"{json.dumps(name)}: {json.dumps(recorded)}" for name, recorded in networks.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(_):
    if FLAGS.record:
        networks = {}
        for name in FLAGS.networks or IN_CI:
            networks[name] = record(name)
            print(f"{name}: recorded", flush=True)
        write_json(networks, pathlib.Path(FLAGS.record))
    if FLAGS.compare:
        differences = {}
        for name, recorded in json.loads(pathlib.Path(FLAGS.compare).read_text()).items():
            with tempfile.TemporaryDirectory() as folder:
                model = load_in_keras(name, recorded, folder)
            differences[name] = measure_difference(model, recorded, draw_images(recorded["image_size"]))
            print(f"{name}: {differences[name]:.1e}", flush=True)
        return int(max(differences.values()) > MOST_RELATIVE_DIFFERENCE)
    return 0


if __name__ == "__main__":
    app.run(main)
