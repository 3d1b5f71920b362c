"""The one exception that says: what you gave me cannot be used."""

import signal


class InputError(ValueError):
    """A bad flag, file, model or image. The message says what was required, where, and ends in `Received: ...`.

    Command lines turn it into one line on stderr and exit code 2. Every other exception is our own failure.
    """


class Breakdown(InputError):
    """What does the work went away, or has no room: that says nothing of the file or network that it was about.

    Who tries one thing after the other ends here, and does not take it for an answer.
    """


def failure_of(code: int, message: str) -> InputError:
    """What to raise where another program ended with this exit code, which is not 0.

    The kernel kills (SIGKILL) what takes the last of the memory, whatever it was given.
    """
    return Breakdown(message) if code in (-signal.SIGKILL, 128 + signal.SIGKILL) else InputError(message)
