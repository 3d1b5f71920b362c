"""Documents that a later run of the same command reads back and goes on from: plain JSON of a known version."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why


def to_json(document: dict[str, Any]) -> str:
    """The document as text."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(
    text: bytes, name: str, maker: str, version: int, keys: Mapping[str, Any], of_cells: Collection[str]
) -> dict[str, Any]:
    """The inverse of `to_json`.

    Args:
        text: of the file.
        name: of the file, for the message.
        maker: what wrote it: 'run'.
        version: that it must have, under 'version'.
        keys: that it must have, besides, and the type of what each holds.
        of_cells: that each of its "cells" must have.

    Raises:
        InputError: the text is no document of this kind and version.
    """
    try:
        document = json.loads(text)
        if document["version"] != version:
            raise ValueError(f"version {document['version']}")
        if odd := [key for key, kind in keys.items() if not isinstance(document[key], kind)]:
            raise ValueError(f"{odd[0]} is something else")
        for cell in document["cells"]:
            if missing := [key for key in of_cells if key not in cell]:
                raise ValueError(f"a cell has no {missing[0]}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # no JSON, no UTF-8, or something else
        raise InputError(
            f"{name} must be what an earlier {maker} wrote; --overwrite starts anew. Received: {text[:60]!r} "
            f"({say_why(error)})"
        ) from error
    return document
