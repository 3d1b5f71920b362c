"""Functions and modules of the user's own.

Importing a module runs it. That happens where a flag names it, and never because of what a file says.
"""

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why


def import_module(name: str, what: str, received: str) -> ModuleType:
    """A module, looked for where Python looks, and in the current folder.

    Args:
        name: of the module.
        what: names it, as the flag does.
        received: the value of that.

    Raises:
        InputError: it cannot be imported.
    """
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the module raises while it runs
        raise InputError(
            f"{what} must name a module that Python can import ({say_why(error)}). Received: {received}"
        ) from error


def find_function(text: str, what: str) -> Callable[..., Any]:
    """The function of 'MODULE:FUNCTION'.

    Args:
        text: that.
        what: names it, as the flag does.

    Raises:
        InputError: it is no such text; the module cannot be imported, or has no such function.
    """
    name, _, attribute = text.partition(":")
    if not name.strip() or not attribute.strip().isidentifier():
        raise InputError(f"{what} must be MODULE:FUNCTION. Received: {text}")
    function = getattr(import_module(name.strip(), what, text), attribute.strip(), None)
    if not callable(function):
        raise InputError(f"{what} must name a function of {name}, which has no {attribute}. Received: {text}")
    found: Callable[..., Any] = function
    return found
