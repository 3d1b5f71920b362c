"""What every command line of this package shares: flags in, one call, an exit code out."""

import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import flags

from reflow_tf.errors import InputError
from reflow_tf.keras_backend import require_tensorflow
from reflow_tf.native_stderr import native_stderr_dropped

Config = TypeVar("Config")

DONE, OWN_FAILURE, BAD_INPUT, OVER_BUDGET = 0, 1, 2, 3

EXIT_CODES = "Exit codes: 0 done; 1 our own failure; 2 bad flag or input, or interrupted; 3 over a limit that you set."

HELP = flags.DEFINE_bool("help", False, "Show this text and stop.")


def run(
    read_config: Callable[[], Config],
    work: Callable[[Config], int],
    description: str,
    holders: Sequence[flags.FlagHolder],
    argv: Sequence[str],
) -> int:
    """Parses the flags, does the work, and turns whatever happens into an exit code and one line on stderr.

    Args:
        read_config: makes a checked configuration of the parsed flags, without TensorFlow: bad flags answer at once.
        work: does what the configuration says and returns an exit code.
        description: first part of the help text.
        holders: the flags that this command has, in the order in which the help text shows them.
        argv: the command line, the program's name first.
    """
    try:
        _parse(argv)
        if HELP.value:
            print(format_help(description, holders))
            return DONE
        signal.signal(signal.SIGTERM, _interrupt)
        config = read_config()
        _start_tensorflow()
        return work(config)
    except (InputError, flags.Error, OSError) as error:
        print(f"error: {_describe(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return BAD_INPUT
    except Exception:
        traceback.print_exc()
        print("error: this is a failure of reflow_tf itself, not of your input", file=sys.stderr)
        return OWN_FAILURE


def format_help(description: str, holders: Sequence[flags.FlagHolder]) -> str:
    """The help text: the description, each flag with its default, the exit codes."""
    lines = [textwrap.dedent(description).strip(), ""]
    for holder in (*holders, HELP):
        flag = flags.FLAGS[holder.name]
        default = "" if flag.default in (None, False) else f" (default: {flag.default})"
        lines.append(f"  --{flag.name}" + ("" if flag.boolean else "=" + flag.name.upper()))
        lines += textwrap.wrap(flag.help + default, 100, initial_indent="      ", subsequent_indent="      ")
    lines += ["", "  --flagfile=FILE", "      Read flags from a file, one a line.", "", EXIT_CODES]
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> None:
    flags.FLAGS.unparse_flags()
    rest = flags.FLAGS(list(argv))[1:]
    if rest:
        raise InputError(f"Every argument must be a flag of the form --name=value. Received: {' '.join(rest)}")


def _start_tensorflow() -> None:
    """Imports TensorFlow and finds its devices without the dozen lines that it logs on the way."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with native_stderr_dropped():
        require_tensorflow()
        import tensorflow as tf

        tf.config.list_logical_devices()


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, InputError):
        return f"the system refused to read or write: {error}"
    return str(error)


def _interrupt(signum, frame) -> None:
    raise KeyboardInterrupt
