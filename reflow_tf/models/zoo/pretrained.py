"""An architecture plus the weights that were asked for: embedded, downloaded, random, or from a file."""

import dataclasses
import pathlib

import keras

from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.models.precision import built_with
from reflow_tf.models.zoo import embedded, keras_weights, torch_layouts
from reflow_tf.models.zoo.architectures import ARCHITECTURES, Architecture
from reflow_tf.models.zoo.resizing import resize_input

FASHION_MNIST = "fashion_mnist"
IMAGENET = "imagenet"
RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """A network of the zoo, ready for inference.

    Attributes:
        model: the network.
        preprocessing: what these weights were trained with.
        default_data: name of embedded data that these weights know, if any.
    """

    model: keras.Model
    preprocessing: Preprocessing
    default_data: str | None = None


@built_with("float32")
def build_pretrained(architecture: Architecture, weights: str | None, image_size: int | None) -> PretrainedModel:
    """Builds `architecture` with `weights`, in float32.

    Args:
        architecture: an entry of `ARCHITECTURES`.
        weights: 'fashion_mnist', 'imagenet', 'random', a path, or None: the best that there is without a file.
        image_size: height and width in pixels; None: what the weights were trained at.

    Raises:
        InputError: weights that do not exist, cannot be read or do not fit; an image size the network cannot take.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"--image_size must be at least 1 pixel. Received: {image_size}")
    if image_size is not None and not architecture.takes_images:
        raise InputError(
            f"--image_size is for networks that take images; {architecture.name} takes inputs of shape "
            f"{architecture.preprocessing.size}. Received: {image_size}"
        )
    weights = weights or choose_weights(architecture)
    try:
        if weights == FASHION_MNIST:
            return _build_fashion_mnist(architecture, image_size)
        if weights == IMAGENET:
            return _build_imagenet(architecture, image_size)
        if weights == RANDOM:
            model = architecture.build(image_size or architecture.image_size, architecture.num_classes)
            return PretrainedModel(model, _fit_size(architecture.preprocessing, image_size))
        return _build_from_file(architecture, weights, image_size)
    except InputError:
        raise
    except ValueError as error:
        if image_size is None:
            raise  # at its default size every architecture builds: this one is our own failure
        raise InputError(
            f"--image_size must be one that {architecture.name} can take ({say_why(error)}). Received: {image_size}"
        ) from error


def choose_weights(architecture: Architecture) -> str:
    """The weights that come without being named; raises InputError where there are none."""
    if architecture.embedded is not None:
        return FASHION_MNIST
    if architecture.download is not None:
        return IMAGENET
    raise InputError(
        f"{architecture.name} has no weights that come by themselves: --weights=random or a path is required. "
        "Received: no --weights"
    )


def _fit_size(preprocessing: Preprocessing, image_size: int | None) -> Preprocessing:
    return preprocessing if image_size is None else dataclasses.replace(preprocessing, size=(image_size, image_size))


def _build_fashion_mnist(architecture: Architecture, image_size: int | None) -> PretrainedModel:
    if architecture.embedded is None:
        names = [name for name, other in ARCHITECTURES.items() if other.embedded]
        raise InputError(f"--weights=fashion_mnist is embedded for {', '.join(names)}. Received: {architecture.name}")
    return PretrainedModel(*embedded.build_embedded(architecture.embedded, image_size), default_data=FASHION_MNIST)


def _build_imagenet(architecture: Architecture, image_size: int | None) -> PretrainedModel:
    if architecture.download is None:
        raise InputError(
            f"--weights=imagenet is what keras.applications has; for {architecture.name}, --weights=random or a path "
            "is required. Received: imagenet"
        )
    try:
        model = architecture.download()
    except MemoryError:
        raise
    except Exception as error:  # keras.utils.get_file raises a bare Exception when a download fails
        raise InputError(
            f"--weights=imagenet needs the network for its first download, which failed ({say_why(error)}); "
            f"--weights=random or a path needs none. Received: {architecture.name}"
        ) from error
    if image_size is not None and image_size != architecture.image_size:
        model = resize_input(model, image_size, like=architecture.build(image_size, architecture.num_classes))
    return PretrainedModel(model, _fit_size(architecture.preprocessing, image_size))


def _build_from_file(architecture: Architecture, weights: str, image_size: int | None) -> PretrainedModel:
    path = pathlib.Path(weights)
    suffixes = keras_weights.SUFFIXES + torch_layouts.SUFFIXES
    if not path.name.endswith(suffixes):
        raise InputError(
            f"--weights must be {FASHION_MNIST}, {IMAGENET}, {RANDOM}, or a path that ends in {', '.join(suffixes)}. "
            f"Received: {weights}"
        )
    if not path.is_file():
        raise InputError(f"--weights must be an existing file. Received: {weights}")
    if path.suffix in torch_layouts.SUFFIXES:
        return _build_from_torch(architecture, path, image_size)
    model = keras_weights.build_from_keras_weights(architecture, path, image_size or architecture.image_size)
    return PretrainedModel(model, _fit_size(architecture.preprocessing, image_size))


def _build_from_torch(architecture: Architecture, path: pathlib.Path, image_size: int | None) -> PretrainedModel:
    layout = architecture.torch_layout
    if layout is None:
        names = [name for name, other in ARCHITECTURES.items() if other.torch_layout]
        raise InputError(
            f"PyTorch weights can be loaded into {', '.join(names)}. Received: {path} for {architecture.name}"
        )
    state = torch_layouts.read_state_dict(path)
    num_classes = torch_layouts.read_num_classes(state, layout, path)
    model = layout.build(image_size or architecture.image_size, num_classes)
    torch_layouts.assign_state_dict(model, state, layout, path)
    return PretrainedModel(model, _fit_size(layout.preprocessing, image_size))
