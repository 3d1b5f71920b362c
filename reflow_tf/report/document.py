"""The report as a document: one dict that the schema admits, and its text."""

import json
import math
import re
from functools import cache
from importlib import resources
from typing import Any

import jsonschema

SCHEMA_VERSION = "12"

Report = dict[str, Any]
"""Plain JSON in the layout of schema.json: dict, list, str, int, float, bool, None."""

# A list of numbers on lines of its own. A line break cannot occur inside of a JSON string, so no text is touched.
_NUMBERS_OVER_LINES = re.compile(r"\[\n\s+((?:[-+.\deE]+,\n\s+)*[-+.\deE]+)\n\s+\]")


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the report, as a dict; treat it as read-only."""
    return json.loads(resources.files("reflow_tf.report").joinpath("schema.json").read_text(encoding="utf-8"))


def validate(report: Report) -> None:
    """Checks a report against the schema.

    Raises:
        ValueError: The report breaks the schema, or holds NaN, infinity or anything but plain JSON; the message names
            the place. This is our own failure, never the user's, so it is not an InputError.
    """
    _require_plain_json(report, "report")
    validator = jsonschema.Draft202012Validator(schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(report))
    if error is not None:
        place = "report" + "".join(f"[{step!r}]" for step in error.absolute_path)
        raise ValueError(f"The report breaks its schema at {place}: {_shortened(error.message)}")


def to_json(report: Report) -> str:
    """The validated report as text: keys sorted, two spaces of indentation, lists of numbers on one line.

    Equal reports give equal text, so two runs can be compared with diff.

    Raises:
        ValueError: As `validate`.
    """
    validate(report)
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return _NUMBERS_OVER_LINES.sub(lambda numbers: f"[{' '.join(numbers[1].split())}]", text) + "\n"


def _require_plain_json(value: Any, place: str) -> None:
    """Finds what the schema cannot: NaN, infinity, and NumPy scalars, which jsonschema takes for numbers."""
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain_json(item, f"{place}[{key!r}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_plain_json(item, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"A finite number is required at {place}. Received: {value}")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"Plain JSON is required at {place}. Received: {value!r} of type {type(value).__name__}")


def _shortened(message: str, limit: int = 300) -> str:
    return message if len(message) <= limit else f"{message[: limit // 2]} … {message[-limit // 2 :]}"
