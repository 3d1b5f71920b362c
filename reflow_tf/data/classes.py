"""Which output of the network stands for which class."""

from pathlib import Path

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why

VOID = -1
"""Label of a pixel that counts for nothing."""
VOID_PIXEL = 255
"""How PASCAL VOC and Cityscapes spell it."""


def read_class_names(path: str, num_classes: int | None) -> tuple[str, ...]:
    """Reads the file of `--class_names`: UTF-8, one class a line, in the order of the network's outputs.

    Args:
        path: the file.
        num_classes: outputs of the network, or None if that is not known.

    Raises:
        InputError: if the file is missing, is not text, is empty, has an empty or a repeated line, or does not have one
            line for each output.
    """
    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--class_names must be a readable UTF-8 text file ({say_why(error)}). Received: {path}"
        ) from error
    names = [line.strip() for line in lines]
    if not any(names):
        raise InputError(f"--class_names must hold one class name a line, the file is empty. Received: {path}")
    first_line: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"--class_names must hold one class name a line, line {number} is empty. Received: {path}")
        if name in first_line:
            raise InputError(
                f"--class_names must name each class once, {name!r} is on lines {first_line[name]} and {number}. "
                f"Received: {path}"
            )
        first_line[name] = number
    if num_classes is not None and len(names) != num_classes:
        raise InputError(
            f"--class_names must have one line for each of the model's {num_classes} classes. "
            f"Received: {len(names)} lines in {path}"
        )
    return tuple(names)


def index_of_class(name: str, class_names: tuple[str, ...], where: str) -> int:
    """The output that stands for `name`. Raises InputError, naming the class and `where` it was found."""
    try:
        return class_names.index(name)
    except ValueError:
        raise InputError(f"every class of {where} must be a line of --class_names. Received: class {name!r}") from None


def check_labels(labels: np.ndarray, num_classes: int | None, where: str) -> np.ndarray:
    """Returns the labels as int64, of their shape; pixels of no class are VOID.

    Args:
        labels: integer class indices, (N,) or (N, *positions); in maps of pixels, (N, height, width, ...), VOID_PIXEL
            where the network has no such class.
        num_classes: outputs of the network; None skips the upper bound.
        where: the source's name, for the message.

    Raises:
        InputError: if a label is no output of the network, or if all images have the same one: a network is neither
            calibrated nor judged on a single class.
    """
    labels = labels.astype(np.int64)
    may_be_void = labels.ndim > 2 and num_classes is not None and num_classes <= VOID_PIXEL
    void = (labels == VOID_PIXEL) & may_be_void
    known = labels[~void]
    if not known.size:
        raise InputError(f"labels of {where} must name some class. Received: none, all of them {VOID_PIXEL}")
    low, high = int(known.min()), int(known.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        bound = "at least 0" if num_classes is None else f"in 0..{num_classes - 1}, the model's classes"
        raise InputError(f"labels of {where} must be {bound}. Received: smallest {low}, largest {high}")
    if low == high:
        raise InputError(f"{where} must hold images of at least two classes. Received: only class {low}")
    return np.where(void, VOID, labels)


def are_one_each(label_shape: tuple[int, ...], positions: tuple[int | None, ...]) -> bool:
    """Whether labels of one image, of this shape, are one for each prediction; axes of 1 do not count.

    Args:
        label_shape: without the axis of the images.
        positions: of the map that the network predicts; None for an axis of any extent.
    """
    if 0 in label_shape:
        return False
    have = [axis for axis in label_shape if axis != 1]
    wanted = [axis for axis in positions if axis != 1]
    if not have:
        return all(axis is None for axis in wanted)
    return len(have) == len(wanted) and all(want in (None, got) for want, got in zip(wanted, have, strict=True))


def describe_labels(positions: tuple[int | None, ...]) -> str:
    """The labels that one image needs, in words."""
    extents = ["any" if axis is None else str(axis) for axis in positions if axis != 1]
    return "one class index" if not extents else f"a map of class indices, {' x '.join(extents)},"
