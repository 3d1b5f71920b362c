"""The same network and weights on images of another size."""

import keras

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why


def resize_input(model: keras.Model, image_size: int, *, like: keras.Model | None = None) -> keras.Model:
    """Copies a model with 4-axis input onto an input of (batch, image_size, image_size, channels).

    Args:
        model: a Functional or Sequential model; it is left as it is.
        image_size: height and width in pixels.
        like: the same architecture built for `image_size`: its ZeroPadding2D are taken over, because
            keras.applications chooses them by whether the size is odd or even.

    Raises:
        InputError: a model that is neither Functional nor Sequential, or one that cannot take this size.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        source = like.get_layer(layer.name) if like and isinstance(layer, keras.layers.ZeroPadding2D) else layer
        return layer.__class__.from_config(source.get_config())

    old = model.inputs[0]
    inputs = keras.Input((image_size, image_size, old.shape[-1]), dtype=old.dtype, name=old.name)
    try:
        copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
        copy.set_weights(model.get_weights())
    except ValueError as error:
        raise InputError(
            f"--image_size must be one that the model can take ({say_why(error)}). Received: {image_size}"
        ) from error
    return copy
