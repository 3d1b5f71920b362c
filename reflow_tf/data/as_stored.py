"""How an array that is no image becomes what a network takes: not at all, but for its type.

Vectors, series, spectra: nothing is known of their numbers, so nothing is scaled, resized or cut.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.errors import InputError

IMAGE_RANK = 3  # height, width, channels


class Part(NamedTuple):
    """One of several inputs of a network.

    Attributes:
        name: as Keras names it.
        shape: of one sample.
        dtype: as the network takes it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class AsStored:
    """A function from one array of the network's own shape to the same as float32.

    Attributes:
        shape: of one input; None for an axis of any extent.
        parts: the inputs of a network with several, which are one row of numbers, (numbers,); () for a single one.
        unit: what one input is, for sentences.
        formula: what is made of a number, in words that C can follow.
    """

    unit: ClassVar[str] = "sample"
    formula: ClassVar[str] = "the number as it is in your data"

    shape: tuple[int | None, ...]
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if not all(axis is None or (isinstance(axis, int) and axis > 0) for axis in self.shape):
            raise InputError(f"a shape must be of whole numbers of at least 1, or None. Received: {self.shape!r}")

    @property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """The shape; None where it leaves an axis open."""
        fixed = tuple(axis for axis in self.shape if axis is not None)
        return fixed if len(fixed) == len(self.shape) else None

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Returns the array as float32."""
        return array.astype(np.float32)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the network takes inputs of this shape."""
        return len(shape) == len(self.shape) and all(
            want in (None, got) for want, got in zip(self.shape, shape, strict=True)
        )


Preparation = Preprocessing | AsStored
"""What is done to one stored input before the network sees it."""


def spell_batch(shape: tuple[int | None, ...]) -> str:
    """(640,) -> '(n, 640)', the shape of n inputs; an open axis is spelled 'any'."""
    return f"({', '.join(['n', *('any' if axis is None else str(axis) for axis in shape)])})"
