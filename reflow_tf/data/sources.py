"""What every source of images can do, so that a new kind of source is a sibling and not a special case.

A source holds decoded-on-demand images in a fixed order. To add one: write a class that derives from `ImageSource` in a
module of its own and name it in `loading.SOURCES`.
"""

import enum
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from reflow_tf.data.as_stored import Preparation
from reflow_tf.errors import InputError


class Labels(enum.Enum):
    """What is to be read of what a source has beside its inputs.

    Attributes:
        CLASSES: one class for each prediction; anything else is an error.
        PERHAPS: the same, unless y of an .npz is of numbers that are no integers: then it is left alone.
        NONE: nothing.
    """

    CLASSES = enum.auto()
    PERHAPS = enum.auto()
    NONE = enum.auto()


Targets = np.ndarray | Mapping[str, np.ndarray]
"""(N, ...), or one such array for each output."""


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
        labels: which labels are wanted.
    """

    text: str
    preprocessing: Preparation
    num_classes: int | None
    class_names: tuple[str, ...] | None
    positions: tuple[int | None, ...] = ()
    labels: Labels = Labels.CLASSES


class ImageSource(Protocol):
    """Images in a fixed order. `image`, `digest` and `size_of` are called from several threads at once.

    Attributes:
        only_images: whether it has nothing for networks that take no images.
        labels: int64 (N,), the index of each image's class among the network's outputs, or (N, *positions), one at each
            position of a map; None if there are no labels.
        classes: where the network names no classes and the data does: (N,), as the data numbers them.
        place: where it was opened from, by `remember`; pickled, a source is its place, and none of its images.
    """

    only_images: ClassVar[bool] = True
    labels: np.ndarray | None
    classes: np.ndarray | None = None
    place: "Place | None" = None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.place is None:
            raise TypeError(f"{type(self).__name__} was not opened from anywhere, so that nobody else can open it")
        return reopen, (self.place, len(self), self.fingerprint())

    @property
    def targets(self) -> "Targets | None":
        """What there is beside the inputs, of any kind, as a metric of the user's own takes it."""
        return self.classes if self.labels is None else self.labels

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

    def fingerprint(self) -> bytes:
        """By which it is told from another source at the same place, in another process or at another time."""
        return self.digest(0)

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


@dataclass(frozen=True)
class Place:
    """Where a source is, for whoever opens it in another process or on another machine.

    Attributes:
        kind: of source.
        request: with which it is opened.
        held_out: whether it is the evaluation split that belongs to that.
    """

    kind: type[ImageSource]
    request: SourceRequest
    held_out: bool = False


def remember(source: ImageSource, place: Place) -> ImageSource:
    """The same source, which now knows where it was opened from, whatever folder is the current one there."""
    path = os.path.abspath(os.path.expanduser(place.request.text))
    source.place = replace(place, request=replace(place.request, text=path)) if os.path.exists(path) else place
    return source


@functools.lru_cache(maxsize=4)  # a worker opens one once, whatever is done with its images
def _open_place(place: Place) -> ImageSource:
    opened = place.kind.open(place.request)
    source = opened.held_out() if place.held_out else opened
    assert source is not None
    return remember(source, place)


def reopen(place: Place, num_images: int, fingerprint: bytes) -> ImageSource:
    """The source at this place, once it is known to hold what it held where it was pickled.

    Raises:
        InputError: it is not there, or holds other images.
    """
    source = _open_place(place)
    if (len(source), source.fingerprint()) != (num_images, fingerprint):
        _open_place.cache_clear()  # a worker may outlive what it opened
        source = _open_place(place)
    if (len(source), source.fingerprint()) != (num_images, fingerprint):
        raise InputError(
            f"data must hold the same images wherever it is read, {num_images} of them. "
            f"Received: {len(source)}{'' if len(source) != num_images else ' others'} at {place.request.text}"
        )
    return source


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
