"""The tool reads and writes TensorFlow variables, so Keras must run on TensorFlow."""

import os

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why


def require_tensorflow() -> None:
    """Checks which backend Keras runs on, before anything else imports Keras.

    Raises:
        InputError: it is not TensorFlow, or its packages are missing.
    """
    remedy = "unset KERAS_BACKEND, or set it (or `backend` in ~/.keras/keras.json) to tensorflow"
    wanted = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if wanted != "tensorflow":
        raise InputError(f"Keras must run on the tensorflow backend; {remedy}. Received: KERAS_BACKEND={wanted}")
    try:
        import keras
    except ImportError as error:
        raise InputError(f"Keras must run on the tensorflow backend; {remedy}. Received: {say_why(error)}") from error
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"Keras must run on the tensorflow backend; {remedy}. Received: {keras.backend.backend()}")
