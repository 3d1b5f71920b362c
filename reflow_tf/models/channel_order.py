"""Layers that compute channels first, as trained on a GPU, where TensorFlow may have no such convolution.

Keras turns pooling, depthwise and separable layers around by itself, and gives grouped and 3-D convolutions to XLA; the
others it leaves to TensorFlow. On a CPU, TensorFlow has them only in oneDNN, which is not on every machine.
"""

import functools

import keras
import numpy as np
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.walking import PlacedLayer, walk

CHANNELS_FIRST = "channels_first"

_CONVOLUTIONS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D),
)


def check_channel_order(model: keras.Model) -> None:
    """Refuses a model with a layer that TensorFlow cannot compute on this machine because its channels come first.

    Raises:
        InputError: names the first such layer; or the model was never built.
    """
    for placed, kind in _find_convolutions(model):
        is_grouped = getattr(placed.layer, "groups", 1) > 1  # XLA computes it
        if not is_grouped and not _is_computed(kind.__name__):
            raise InputError(
                f"Convolutions must have their channels last: TensorFlow has no other {kind.__name__} on this machine. "
                f"{REMEDY}. Received: layer {placed.path!r} with data_format='{CHANNELS_FIRST}'"
            )


REMEDY = (
    "Build the model with data_format='channels_last' (batch norms with axis=-1) and give it the same weights: kernels "
    "have one layout for both"
)


def name_channels_first(model: keras.Model) -> str | None:
    """The path of the first convolution whose channels come first; None if there is none."""
    return next((placed.path for placed, _ in _find_convolutions(model)), None)


def _find_convolutions(model: keras.Model) -> list[tuple[PlacedLayer, type[keras.Layer]]]:
    found = []
    for placed in walk(model):
        kind = next((kind for kind in _CONVOLUTIONS if isinstance(placed.layer, kind)), None)
        if kind is not None and placed.layer.data_format == CHANNELS_FIRST:
            found.append((placed, kind))
    return found


@functools.cache
def _is_computed(name: str) -> bool:
    """Whether TensorFlow computes the smallest layer of this class of Keras with its channels first."""
    kind = getattr(layers, name)
    rank = int(name.partition("D")[0][-1])
    steps = (1,) if "LSTM" in name else ()
    try:
        kind(1, 1, data_format=CHANNELS_FIRST)(np.zeros((1, *steps, 1, *(1 for _ in range(rank))), np.float32))
    except Exception:  # whatever it raises, it does not compute it
        return False
    return True
