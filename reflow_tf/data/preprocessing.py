"""How one decoded image becomes what a network was trained to see: channels, size, centre crop, scaling.

The resize follows torchvision's reference evaluation (`Resize` then `CenterCrop`, on Pillow images): the side that
limits is resized to `round(size / crop_fraction)`, the other side keeps the aspect ratio (rounded down), and the crop
starts at `round((resized - size) / 2)`, Python's rounding. Pillow's filters are antialiased when an image shrinks.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from reflow_tf.errors import InputError

# Of one channel of a pixel in 0..255.
_FORMULAS = {
    "tf": "pixel / 127.5 - 1",
    "torch": "(pixel / 255 - mean) / std, with the means 0.485, 0.456, 0.406 and the stds 0.229, 0.224, 0.225 of red, "
    "green and blue",
    "caffe": "pixel - mean, the channels in the order blue, green, red, with the means 103.939, 116.779, 123.68",
    "lite": "(pixel - 127) / 128",
    "unit": "pixel / 255",
    "none": "pixel",
}
SCALINGS: tuple[str, ...] = tuple(_FORMULAS)
RESIZES: tuple[str, ...] = ("bilinear", "bicubic")

# keras.applications.imagenet_utils: the constants of the published ImageNet weights.
_TORCH_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_TORCH_STD = np.array([0.229, 0.224, 0.225], np.float32)
_CAFFE_MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's mode 'L'


@dataclass(frozen=True)
class Preprocessing:
    """A function from one image (H, W, C) in 0..255 to one network input (height, width, channels), float32.

    Attributes:
        size: (height, width) the network wants; None leaves images as they are.
        channels: the channels the network wants. 3: grey images are repeated to RGB; 1: RGB images are turned grey.
        scaling: 'tf' x/127.5-1; 'torch' (x/255-mean)/std; 'caffe' BGR minus mean; 'lite' (x-127)/128; 'unit'
            x/255; 'none'; or means and stds of one's own for the formula of 'torch', 'MEAN,MEAN,MEAN/STD,STD,STD', one
            for each channel or one for all.
        resize: 'bilinear' or 'bicubic'.
        unit: what one input is, for sentences.
        crop_fraction: share of the resized short side that the centre crop keeps, in (0, 1]; 1.0 crops no margin.

    Raises:
        InputError: for an unknown scaling or resize, a size or crop fraction out of range, or a scaling with
            per-channel constants on a network that does not take three channels.
    """

    unit: ClassVar[str] = "image"

    size: tuple[int, int] | None
    channels: int = 3
    scaling: str = "none"
    resize: str = "bilinear"
    crop_fraction: float = 0.875

    def __post_init__(self) -> None:
        check_scaling(self.scaling)
        if self.resize not in RESIZES:
            raise InputError(f"resize must be one of {', '.join(RESIZES)}. Received: {self.resize!r}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise InputError(f"image size must be (height, width), both at least 1. Received: {self.size!r}")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"crop_fraction must be in (0, 1]. Received: {self.crop_fraction!r}")
        if self.channels < 1:
            raise InputError(f"channels must be at least 1. Received: {self.channels!r}")
        if (own := _read_own(self.scaling)) is not None and any(len(each) not in (1, self.channels) for each in own):
            raise InputError(
                f"preprocess must have one mean and one std, or one for each of {self.channels} channels. "
                f"Received: {self.scaling}"
            )
        if self.scaling in ("torch", "caffe") and self.channels != 3:
            raise InputError(
                f"preprocess {self.scaling!r} has one constant for each of red, green and blue, so the network must "
                f"take 3 channels. Received: {self.channels} channels"
            )

    @property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """(height, width, channels) of the network's input; None where images are left as large as they are."""
        return None if self.size is None else (*self.size, self.channels)

    @property
    def formula(self) -> str:
        """What `scaling` makes of a pixel in 0..255, in words that C can follow: 'pixel / 127.5 - 1'."""
        if (own := _read_own(self.scaling)) is None:
            return _FORMULAS[self.scaling]
        mean, std = (", ".join(f"{value:g}" for value in each) for each in own)
        return f"(pixel / 255 - mean) / std, with the mean {mean} and the std {std}, channel by channel"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Turns one image into one network input.

        Args:
            image: (H, W, C) or (H, W); uint8, or float in the same 0..255 range.

        Returns:
            float32, (height, width, channels) with the height and width of `size`, or the image's own.

        Raises:
            InputError: if the image is not of rank 2 or 3, or its channels cannot become the network's.
        """
        image = _match_channels(_as_hwc(image), self.channels)
        if self.size is not None:
            image = _fit(image, self.size, self.resize, self.crop_fraction)
        return _scale(image, self.scaling)


def check_scaling(scaling: str) -> None:
    """Raises InputError unless it is one of SCALINGS, or means and stds as `Preprocessing` takes them."""
    if scaling not in SCALINGS and _read_own(scaling) is None:
        raise InputError(
            f"--preprocess must be auto, {', '.join(SCALINGS)}, or means and stds such as "
            f"0.49,0.48,0.45/0.25,0.24,0.26. Received: {scaling}"
        )


@functools.lru_cache(maxsize=8)
def _read_own(scaling: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Means and stds, of which none is 0 or less; None where the text is none of them."""
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in scaling.split("/"))
    except ValueError:  # no numbers, or not two lists of them
        return None
    return (mean, std) if np.isfinite([*mean, *std]).all() and min(std) > 0 else None


def _as_hwc(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3:
        raise InputError(f"an image must have shape (height, width, channels). Received: shape {image.shape}")
    return image if image.dtype == np.uint8 else image.astype(np.float32)


def _match_channels(image: np.ndarray, channels: int) -> np.ndarray:
    have = image.shape[-1]
    if have == channels:
        return image
    if have == 1 and channels == 3:
        return np.repeat(image, 3, axis=-1)
    if have == 3 and channels == 1:
        if image.dtype == np.uint8:
            return np.asarray(Image.fromarray(image).convert("L"))[..., None]
        return (image @ _LUMA)[..., None]
    raise InputError(f"an image must have the network's {channels} channels. Received: {have} channels")


def _fit(image: np.ndarray, size: tuple[int, int], resize: str, crop_fraction: float) -> np.ndarray:
    """Resizes so that the image just covers `size / crop_fraction`, then takes the centre."""
    height, width = image.shape[:2]
    covered = (round(size[0] / crop_fraction), round(size[1] / crop_fraction))
    # The side with the larger factor limits; integers compare exactly where factors would round.
    if covered[0] * width >= covered[1] * height:
        resized = (covered[0], max(covered[1], covered[0] * width // height))
    else:
        resized = (max(covered[0], covered[1] * height // width), covered[1])
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    return _resize(image, resized, resize)[top : top + size[0], left : left + size[1]]


def _resize(image: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    resample = Image.Resampling.BICUBIC if resize == "bicubic" else Image.Resampling.BILINEAR
    wanted = (size[1], size[0])  # Pillow counts width first
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).resize(wanted, resample))
    # Pillow has no image of n channels or of n floats: one plane at a time.
    planes = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])]
    return np.stack([np.asarray(plane.resize(wanted, resample)) for plane in planes], axis=-1)


def _scale(image: np.ndarray, scaling: str) -> np.ndarray:
    """Applies the formula of `scaling` in float32, in the order of operations of keras.applications."""
    x = image.astype(np.float32)
    if (own := _read_own(scaling)) is not None:
        mean, std = (np.array(each, np.float32) for each in own)
        return np.asarray((x / np.float32(255) - mean) / std)
    match scaling:
        case "tf":
            return x / np.float32(127.5) - np.float32(1)
        case "torch":
            return (x / np.float32(255) - _TORCH_MEAN) / _TORCH_STD
        case "caffe":
            return x[..., ::-1] - _CAFFE_MEAN_BGR
        case "lite":
            return (x - np.float32(127)) / np.float32(128)
        case "unit":
            return x / np.float32(255)
        case _:
            return x
