"""The weights that ship with the package, trained on Fashion-MNIST by tools/train_fashion_mnist.py."""

import dataclasses
import importlib.resources
import importlib.resources.abc
import json
from collections.abc import Callable

import keras

from reflow_tf.data.preprocessing import Preprocessing

NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class EmbeddedWeights:
    """A network whose trained weights are files of the package.

    Attributes:
        name: of the files, without their suffixes.
        build: (image_size, num_classes) -> the network that was trained, with fresh weights.
    """

    name: str
    build: Callable[[int, int], keras.Model]

    @property
    def weights_file(self) -> str:
        """What Keras saved."""
        return f"{self.name}.weights.h5"

    @property
    def card_file(self) -> str:
        """What the training script wrote down beside the weights."""
        return f"{self.name}.json"


@dataclasses.dataclass(frozen=True)
class Card:
    """What one must know of the training to use the weights.

    Attributes:
        image_size: height and width in pixels of the last training phase.
        preprocess: scaling of the pixels, one of `SCALINGS`.
    """

    image_size: int
    preprocess: str


def locate_weights() -> importlib.resources.abc.Traversable:
    """The folder inside the package that holds the weights and their cards."""
    return importlib.resources.files("reflow_tf.models.zoo") / "weights"


def read_card(weights: EmbeddedWeights) -> Card:
    """Reads the card. A missing card means a broken installation: FileNotFoundError."""
    content = json.loads((locate_weights() / weights.card_file).read_text(encoding="utf-8"))
    return Card(int(content["image_size"]), str(content["preprocess"]))


def build_embedded(weights: EmbeddedWeights, image_size: int | None) -> tuple[keras.Model, Preprocessing]:
    """Builds the network, with its trained weights, at `image_size` (None: the size it was trained at)."""
    card = read_card(weights)
    size = image_size or card.image_size
    model = weights.build(size, NUM_CLASSES)
    with importlib.resources.as_file(locate_weights() / weights.weights_file) as path:
        model.load_weights(path)
    return model, Preprocessing((size, size), scaling=card.preprocess, crop_fraction=1.0)
