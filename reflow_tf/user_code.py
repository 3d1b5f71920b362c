"""Functions and modules of the user's own.

Importing a module runs it. That happens where a flag names it, and never because of what a file says.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why


@contextlib.contextmanager
def blamed(requirement: str, received: str) -> Iterator[None]:
    """Whatever the user's code raises in the block, `sys.exit` as well, is an error in words.

    Args:
        requirement: what it should have done.
        received: the value of the flag that names it.

    Raises:
        InputError: it raised something.
    """
    try:
        yield
    except SystemExit as error:
        raise InputError(f"{requirement} (it ends the program, by sys.exit). Received: {received}") from error
    except Exception as error:
        raise InputError(f"{requirement} ({say_why(error)}). Received: {received}") from error


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
    with blamed(f"{what} must name a module that Python can import", received):
        return importlib.import_module(name)


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
