"""Layers and functions of the user's own, made known to Keras from a module that the user names.

The model file is still read in Keras's safe mode, whatever module is imported.
"""

import inspect
from types import ModuleType

import keras

from reflow_tf.errors import InputError
from reflow_tf.user_code import import_module


def register(source: str) -> None:
    """Makes objects of a module known to Keras under their names, for this process.

    Args:
        source: 'MODULE', every layer and function that the module itself defines; or 'MODULE:NAME,NAME', these. It is
            looked for where Python looks, and in the current folder.

    Raises:
        InputError: the module cannot be imported; it has no such object, or none; it is no such text.
    """
    name, colon, listed = source.partition(":")
    wanted = [part.strip() for part in listed.split(",")] if colon else []
    if not name.strip() or not all(wanted):
        raise InputError(f"--custom_objects must be MODULE or MODULE:NAME,NAME. Received: {source}")
    module = import_module(name.strip(), "--custom_objects", source)
    if not wanted:
        wanted = [key for key, value in vars(module).items() if _is_own(value, module)]
    if not wanted:
        raise InputError(f"--custom_objects must name a module with objects of its own. Received: {source}")
    if missing := [each for each in wanted if not callable(getattr(module, each, None))]:
        raise InputError(
            f"--custom_objects must name classes or functions of {name}, which has no {missing[0]}. Received: {source}"
        )
    keras.saving.get_custom_objects().update({each: getattr(module, each) for each in wanted})


def _is_own(value: object, module: ModuleType) -> bool:
    is_object = inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, keras.layers.Layer))
    return is_object and getattr(value, "__module__", None) == module.__name__
