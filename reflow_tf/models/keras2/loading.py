"""A whole model that Keras 2 saved, as a model of Keras 3 that computes the same."""

import pathlib

import keras

from reflow_tf.errors import InputError
from reflow_tf.models.keras2.files import read_config
from reflow_tf.models.keras2.refusal import Untranslatable
from reflow_tf.models.keras2.translation import translate_model
from reflow_tf.models.keras2.weights import load_weights


def load_keras2(path: pathlib.Path, version: str) -> keras.Model:
    """Loads the model. Nothing in the file is run as code.

    Args:
        path: a complete `.keras` archive or HDF5 file, or the folder of a SavedModel with Keras's layers.
        version: the Keras version that saved it.

    Raises:
        InputError: something in it has no equal in Keras 3, or weights that do not fit its configuration.
        OSError, zipfile.BadZipFile, tf.errors.OpError: damaged file.
        Exception: whatever Keras 3 raises for a network that it cannot build.
    """
    try:
        translation = translate_model(read_config(path))
        model = keras.saving.deserialize_keras_object(translation.config, safe_mode=True)
        load_weights(model, translation.saved, path)
    except Untranslatable as reason:
        raise InputError(
            f"--model must be what Keras 3 can load; in this file of Keras {version}, {reason}. Received: {path}"
        ) from reason
    return model
