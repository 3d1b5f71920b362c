"""The one exception that says: what you gave me cannot be used."""


class InputError(ValueError):
    """A bad flag, file, model or image. The message says what was required, where, and ends in `Received: ...`.

    Command lines turn it into one line on stderr and exit code 2. Every other exception is our own failure.
    """
