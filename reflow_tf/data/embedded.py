"""The Fashion-MNIST images inside the package: 28x28 grey, 10 classes, both official splits."""

from dataclasses import replace
from importlib import resources
from typing import Self

import numpy as np

from reflow_tf.data.as_stored import Preparation
from reflow_tf.data.classes import check_labels
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import ImageSource, Labels, SourceRequest

NAME = "fashion_mnist"


class EmbeddedSource(ImageSource):
    """One of the two parts: 'calibration' (from the training split) or 'evaluation' (from the test split)."""

    def __init__(self, part: str, num_classes: int | None = None, labelled: bool = True):
        self.part = part
        self.num_classes, self.labelled = num_classes, labelled
        with resources.files("reflow_tf.data").joinpath("fashion_mnist", "images.npz").open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            self.images = archive[f"x_{part}"]
            self.classes = archive[f"y_{part}"]
            self.labels = check_labels(self.classes, num_classes, NAME) if labelled else None

    @classmethod
    def accepts(cls, text: str) -> bool:
        return text == NAME

    @classmethod
    def open(cls, request: SourceRequest) -> Self:
        """Opens the calibration part; the evaluation part is its `held_out()`.

        Raises:
            InputError: if the network has fewer than 10 classes.
        """
        return cls("calibration", request.num_classes, request.labels is not Labels.NONE)

    def __len__(self) -> int:
        return len(self.images)

    def name_of(self, index: int) -> str:
        return f"{self.part} image {index} of {NAME}"

    def image(self, index: int) -> np.ndarray:
        return self.images[index][..., None]

    def adapt(self, preprocessing: Preparation) -> Preparation:
        assert isinstance(preprocessing, Preprocessing)  # only_images
        # The garment fills the whole frame: a margin to crop, as photographs have it, would cut it.
        return replace(preprocessing, crop_fraction=1.0)

    def held_out(self) -> ImageSource | None:
        return EmbeddedSource("evaluation", self.num_classes, self.labelled) if self.part == "calibration" else None
