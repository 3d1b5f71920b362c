"""What every source of images can do, so that a new kind of source is a sibling and not a special case.

A source holds decoded-on-demand images in a fixed order. To add one: write a class that derives from `ImageSource` in a
module of its own and name it in `loading.SOURCES`.
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np

from reflow_tf.data.as_stored import Preparation


@dataclass(frozen=True)
class SourceRequest:
    """What the person asked for and what the network needs; a source checks itself against it when it is opened.

    Attributes:
        text: the value of `--data` or `--eval_data`.
        preprocessing: what the network wants to see.
        num_classes: length of the network's last axis; None if it is not known.
        class_names: the names in the order of the network's outputs; None without `--class_names`.
        positions: the output's axes between the first and the last, where the network predicts a map of classes; None
            for an axis of any extent.
    """

    text: str
    preprocessing: Preparation
    num_classes: int | None
    class_names: tuple[str, ...] | None
    positions: tuple[int | None, ...] = ()


class ImageSource(Protocol):
    """Images in a fixed order. `image`, `digest` and `size_of` are called from several threads at once.

    Attributes:
        only_images: whether it has nothing for networks that take no images.
        labels: int64 (N,), the index of each image's class among the network's outputs, or (N, *positions), one at each
            position of a map; None if there are no labels.
    """

    only_images: ClassVar[bool] = True
    labels: np.ndarray | None

    @classmethod
    def accepts(cls, text: str) -> bool:
        """Whether `text`, the value of a flag, names this kind of source."""
        ...

    @classmethod
    def open(cls, request: SourceRequest) -> Self:
        """Opens the source. Raises InputError if it does not fit the request."""
        ...

    def __len__(self) -> int: ...

    def name_of(self, index: int) -> str:
        """The image's name, for error messages."""
        ...

    def image(self, index: int) -> np.ndarray:
        """The decoded image, (H, W, C), uint8 or float. Raises InputError, naming it, if it cannot be decoded."""
        ...

    def digest(self, index: int) -> bytes:
        """A hash of the content; equal for equal images within this kind of source."""
        return pixel_digest(self.image(index))

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width), without decoding where the format allows it."""
        height, width = self.image(index).shape[:2]
        return height, width

    def adapt(self, preprocessing: Preparation) -> Preparation:
        """The part of `preprocessing` that this source's inputs still need; axes that it left open are fixed."""
        return preprocessing

    def held_out(self) -> "ImageSource | None":
        """The official evaluation split that belongs to this source, if it has one."""
        return None


def pixel_digest(image: np.ndarray) -> bytes:
    """Hashes the values that a network would see, whatever they were stored as.

    uint8 and float of the same values hash alike, and so do a grey image and its RGB repetition.

    Args:
        image: (H, W, C), any numeric dtype.
    """
    if image.shape[-1] == 3 and np.array_equal(image, np.broadcast_to(image[..., :1], image.shape)):
        image = image[..., :1]
    content = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    content.update(np.ascontiguousarray(image, np.float32).data)
    return content.digest()
