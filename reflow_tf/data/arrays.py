"""Inputs in arrays: `x` (N, H, W, C), and labels `y` (N,), or (N, *positions) for maps of classes, if any.

For networks with several inputs, one array for each, `x_NAME` or `x_0`, `x_1` in their order. For networks that take no
images, `x` (N, *shape) has the shape that the network takes. Images must already have the network's size and channels;
only the scaling is still applied. What a metric of the user's own takes beside outputs is `y`, or `y_NAME` for each
output, of any kind.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import numpy as np

from reflow_tf.data.as_stored import AsStored, Part, Preparation, spell_batch
from reflow_tf.data.classes import are_one_each, check_labels, describe_labels
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import ImageSource, Labels, SourceRequest, Targets
from reflow_tf.errors import InputError

OF_OUTPUT = "y_"
_CHUNK = 256  # images looked at together for NaN: bounds the temporary memory


class ArraySource(ImageSource):
    """Inputs of one array; where they come from is a class of its own.

    Attributes:
        place_name: where the array is from, for error messages.
        images: (N, H, W, C), uint8 or float; for networks that take no images (N, *shape), any real type.
    """

    only_images = False

    def __init__(self, place_name: str, images: np.ndarray, labels: np.ndarray | None, targets: Targets | None = None):
        self.place_name = place_name
        self.images = images
        self.labels = labels
        self._targets = targets

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], request: SourceRequest, place_name: str) -> Self:
        """The source of arrays `x`, which is there, or `x_...` and perhaps `y`, once they are known to fit.

        Raises:
            InputError: one of several inputs is missing; `x` has another rank, size, channels or type than the network
                needs, or NaN or infinite values; `y` has another length, is not of integers, or holds labels that are
                no output of the network.
        """
        prepared = request.preprocessing
        if isinstance(prepared, AsStored) and prepared.parts:
            images = _join_parts(arrays, prepared.parts, place_name)
        elif isinstance(prepared, AsStored):
            images = arrays["x"]
            _check_samples(images, prepared, place_name)
        else:
            images = arrays["x"]
            _check_images(images, prepared, place_name)
        labels = _read_labels(arrays.get("y"), len(images), request, place_name)
        return cls(place_name, images, labels, _find_targets(arrays))

    @property
    def targets(self) -> Targets | None:
        return self._targets

    def __len__(self) -> int:
        return len(self.images)

    def name_of(self, index: int) -> str:
        return f"x[{index}] of {self.place_name}"

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def fingerprint(self) -> bytes:
        """All numbers, hashed once."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> bytes:
        content = hashlib.blake2b(digest_size=16)
        for array in (self.images, *(() if self.labels is None else (self.labels,))):
            content.update(str((array.dtype, array.shape)).encode())
            for start in range(0, len(array), _CHUNK):
                content.update(np.ascontiguousarray(array[start : start + _CHUNK]).data)
        return content.digest()

    def adapt(self, preprocessing: Preparation) -> Preparation:
        if isinstance(preprocessing, AsStored):
            return replace(preprocessing, shape=self.images.shape[1:])
        return replace(preprocessing, size=None)


def name_inputs(request: SourceRequest) -> list[str]:
    """The names that arrays of inputs may have."""
    prepared = request.preprocessing
    if not (isinstance(prepared, AsStored) and prepared.parts):
        return ["x"]
    return [*(f"x_{part.name}" for part in prepared.parts), *(f"x_{place}" for place in range(len(prepared.parts)))]


def is_read(name: str, request: SourceRequest) -> bool:
    """Whether an array of this name is looked at; any others are none of ours."""
    return name == "y" or name.startswith(OF_OUTPUT) or name in name_inputs(request)


def _find_targets(arrays: Mapping[str, np.ndarray]) -> Targets | None:
    of_outputs = {name[len(OF_OUTPUT) :]: array for name, array in arrays.items() if name.startswith(OF_OUTPUT)}
    return arrays.get("y", of_outputs or None)


def _join_parts(arrays: Mapping[str, np.ndarray], parts: Sequence[Part], path: str) -> np.ndarray:
    """Rows of numbers (N, numbers) float32, of `x_NAME` for each input or, in their order, `x_0`, `x_1`."""
    found: list[np.ndarray] = []
    for place, part in enumerate(parts):
        array = arrays.get(f"x_{part.name}", arrays.get(f"x_{place}"))
        if array is None:
            wanted = ", ".join(f"x_{each.name}" for each in parts)
            raise InputError(
                f"data for a network with several inputs must hold each of them: {wanted}. "
                f"Received: no x_{part.name} and no x_{place} in {path}"
            )
        _check_part(array, part, len(found[0]) if found else len(array), path)
        found.append(array.reshape(len(array), -1).astype(np.float32))
    return np.concatenate(found, axis=1)


def _check_part(array: np.ndarray, part: Part, num_samples: int, path: str) -> None:
    name = f"x_{part.name}"
    if array.shape != (num_samples, *part.shape):
        raise InputError(
            f"{name} must have the shape that the network takes, {spell_batch(part.shape)}, with as many samples as "
            f"the other inputs. Received: shape {array.shape} in {path}"
        )
    _check_samples(array, AsStored(part.shape), path, name)
    if "int" in part.dtype and not np.array_equal(array, np.rint(array)):
        raise InputError(f"{name} must hold whole numbers, {part.dtype}. Received: {array.dtype} with others in {path}")


def _check_images(images: np.ndarray, preprocessing: Preprocessing, path: str) -> None:
    if images.ndim != 4:
        raise InputError(
            f"x must have shape (images, height, width, channels). Received: shape {images.shape} in {path}"
        )
    if len(images) == 0:
        raise InputError(f"x must hold at least one image. Received: shape {images.shape} in {path}")
    if images.size == 0:
        raise InputError(f"x must hold images of at least one pixel. Received: shape {images.shape} in {path}")
    if images.dtype.kind not in "iuf":
        raise InputError(f"x must be of integers or floats. Received: {images.dtype} in {path}")
    size, channels = preprocessing.size, preprocessing.channels
    if images.shape[3] != channels or (size is not None and images.shape[1:3] != tuple(size)):
        wanted = ("any", "any") if size is None else size
        raise InputError(
            f"x must already have the network's height {wanted[0]}, width {wanted[1]} and {channels} channels "
            f"(arrays are not resized). Received: shape {images.shape} in {path}"
        )
    _check_finite(images, path)


def _check_samples(samples: np.ndarray, wanted: AsStored, path: str, name: str = "x") -> None:
    if samples.ndim < 1 or not wanted.fits(samples.shape[1:]):
        raise InputError(
            f"{name} must have the shape that the network takes, {spell_batch(wanted.shape)} (it takes no images of "
            f"height, width and channels, so nothing is resized or scaled). Received: shape {samples.shape} in {path}"
        )
    if samples.size == 0:
        raise InputError(f"{name} must hold at least one sample. Received: shape {samples.shape} in {path}")
    if samples.dtype.kind not in "biuf":
        raise InputError(f"{name} must be of real numbers. Received: {samples.dtype} in {path}")
    _check_finite(samples, path, name)


def _check_finite(inputs: np.ndarray, path: str, name: str = "x") -> None:
    """As float32, which is what the network sees."""
    if inputs.dtype.kind in "bui":
        return
    for start in range(0, len(inputs), _CHUNK):
        with np.errstate(over="ignore"):
            chunk = inputs[start : start + _CHUNK].astype(np.float32)
        finite = np.isfinite(chunk).all(axis=tuple(range(1, inputs.ndim)))
        if not finite.all():
            place = f"{name}[{start + finite.argmin()}]"
            raise InputError(f"{name} must be finite. Received: NaN or infinity in {place} of {path}")


def _read_labels(labels: np.ndarray | None, num_images: int, request: SourceRequest, path: str) -> np.ndarray | None:
    if labels is None or request.labels is Labels.NONE:
        return None
    if request.labels is Labels.PERHAPS and labels.dtype.kind not in "bui":
        return None
    return _check_y(labels, num_images, request, path)


def _check_y(labels: np.ndarray, num_images: int, request: SourceRequest, path: str) -> np.ndarray:
    if labels.shape[:1] != (num_images,) or not are_one_each(labels.shape[1:], request.positions):
        others = ["or --task=fidelity, which leaves it alone"] if request.labels is Labels.PERHAPS else []
        if labels.shape[1:] == (*request.positions, request.num_classes):
            others.append("or --task=multi_label, where each output is a label that is on or off")
        otherwise = f" ({'; '.join(others)})" if others else ""
        raise InputError(
            f"y must hold {describe_labels(request.positions)} for each of the {num_images} "
            f"{request.preprocessing.unit}s of x{otherwise}. Received: shape {labels.shape} in {path}"
        )
    if labels.dtype.kind not in "bui" and not (labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels))):
        raise InputError(f"y must hold integer class indices. Received: {labels.dtype} in {path}")
    if labels.size == num_images:
        labels = labels.reshape(-1)
    return check_labels(labels, request.num_classes, f"y of {path}")
