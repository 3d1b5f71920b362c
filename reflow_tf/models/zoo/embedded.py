"""The weights that ship with the package: a MobileNetV2 trained on Fashion-MNIST by tools/train_fashion_mnist.py."""

import dataclasses
import importlib.resources
import importlib.resources.abc
import json

import keras

from reflow_tf.data.preprocessing import Preprocessing

WEIGHTS_FILE = "mobilenet_v2_fashion_mnist.weights.h5"
CARD_FILE = "mobilenet_v2_fashion_mnist.json"
NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Card:
    """What the training script wrote down beside the weights.

    Attributes:
        width: MobileNetV2's width multiplier.
        image_size: height and width in pixels of the last training phase.
        preprocess: scaling of the pixels, one of `SCALINGS`.
    """

    width: float
    image_size: int
    preprocess: str


def locate_weights() -> importlib.resources.abc.Traversable:
    """The folder inside the package that holds the weights and their card."""
    return importlib.resources.files("reflow_tf.models.zoo") / "weights"


def read_card() -> Card:
    """Reads the card. A missing card means a broken installation: FileNotFoundError."""
    content = json.loads((locate_weights() / CARD_FILE).read_text(encoding="utf-8"))
    return Card(float(content["width"]), int(content["image_size"]), str(content["preprocess"]))


def build_embedded(image_size: int | None) -> tuple[keras.Model, Preprocessing]:
    """Builds the network, with its trained weights, at `image_size` (None: the size it was trained at)."""
    card = read_card()
    size = image_size or card.image_size
    model = keras.applications.MobileNetV2(
        input_shape=(size, size, 3), alpha=card.width, weights=None, classes=NUM_CLASSES
    )
    with importlib.resources.as_file(locate_weights() / WEIGHTS_FILE) as path:
        model.load_weights(path)
    return model, Preprocessing((size, size), scaling=card.preprocess, crop_fraction=1.0)
