"""What every command line of this package shares: flags in, one call, an exit code out."""

import io
import logging
import os
import re
import signal
import sys
import textwrap
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from absl import flags

from reflow_tf.choices import MOST_THREADS
from reflow_tf.errors import InputError
from reflow_tf.keras_backend import require_tensorflow
from reflow_tf.native_stderr import native_stderr_dropped

Config = TypeVar("Config")
Value = TypeVar("Value")

DONE, OWN_FAILURE, BAD_INPUT, UNMET = 0, 1, 2, 3

EXIT_CODES = "Exit codes: 0 done; 1 our own failure; 2 bad flag or input, or interrupted"

_INDENT = " " * 6
# What absl adds to the help of flags that may be repeated.
_OF_ABSL = ";\n    repeat this option"
# What absl says of a value that a flag's type does not take, before Python's words for it.
_ILLEGAL = re.compile(r"flag --(\w+)=(.*?): ", re.DOTALL)
_WANTED = {"int": "a whole number, such as 1000", "float": "a number, such as 0.5", "bool": "true or false"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def new_flags() -> flags.FlagValues:
    """The flags of one command line, apart from every other's: two command lines fit into one process."""
    own = flags.FlagValues()
    own.set_gnu_getopt()
    flags.DEFINE_bool("help", False, "Show this text and stop.", flag_values=own)
    return own


def run(
    read_config: Callable[[], Config],
    work: Callable[[Config], int],
    description: str | None,
    own: flags.FlagValues,
    argv: Sequence[str],
    *,
    tensorflow: bool = True,
    unmet: str | None = None,
    resumes: bool = False,
) -> int:
    """Parses the flags, does the work, and turns whatever happens into an exit code and one line on stderr.

    Args:
        read_config: makes a checked configuration of the parsed flags, without TensorFlow: bad flags answer at once.
        work: does what the configuration says and returns an exit code.
        description: first part of the help text; Python leaves docstrings out where it is told to.
        own: the flags of this command, from `new_flags`; the help text shows them in the order of their definition.
        argv: the command line, the program's name first.
        tensorflow: whether the work needs it; it takes seconds to start.
        unmet: what exit code 3 says of the result, for the help text; None if this command never gives it.
        resumes: whether the same command goes on where it was interrupted.
    """
    try:
        _parse(argv, own)
        if own["help"].value:
            with printing():
                print(format_help(description, own, unmet))
            return DONE
        config = read_config()
        # Pillow warns of photographs of 90 megapixels, which phones take; of those twice as large it raises.
        warnings.filterwarnings("ignore", message="Image size .+ exceeds limit")
        with _terminate_as_interrupt():
            if tensorflow:
                start_tensorflow()
            return work(config)
    except (InputError, OSError) as error:
        print(f"error: {_describe(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from there" if resumes else ""
        print(f"error: interrupted; results are written whole or not at all{goes_on}", file=sys.stderr)
        return BAD_INPUT
    except Exception:
        traceback.print_exc()
        print("error: this is a failure of reflow_tf itself, not of your input", file=sys.stderr)
        return OWN_FAILURE


@contextmanager
def printing() -> Iterator[None]:
    """The work is done by now: neither `| head` nor a terminal without umlauts turns it into a failure."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer goes nowhere; at its exit Python would complain of it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require(flag: flags.FlagHolder[Value | None]) -> Value:
    """The value of a flag that has no default; raises InputError where it was not given."""
    if not flag.value:
        raise InputError(f"--{flag.name} is needed; see --help. Received: none")
    return flag.value


def format_help(description: str | None, own: flags.FlagValues, unmet: str | None = None) -> str:
    """The help text: the description, each flag with its default, the exit codes."""
    lines = [textwrap.dedent(description or "").strip(), ""]
    for flag in (own[name] for name in own):
        default = "" if flag.default in (None, []) or flag.boolean else f" (default: {_spell(flag.default)})"
        lines.append(f"  --{flag.name}" + ("" if flag.boolean else "=" + flag.name.upper()))
        lines += textwrap.wrap(
            flag.help.partition(_OF_ABSL)[0] + default,
            100,
            initial_indent=_INDENT,
            subsequent_indent=_INDENT,
            break_on_hyphens=False,
        )
    lines += ["", "  --flagfile=FILE", "      Read flags from a file, one a line.", ""]
    lines += textwrap.wrap(EXIT_CODES + (f"; 3 {unmet}." if unmet else "."), 120, break_on_hyphens=False)
    return "\n".join(lines)


def _spell(default: object) -> object:
    """As it would be written on the command line."""
    return ",".join(map(str, default)) if isinstance(default, list) else default


def _parse(argv: Sequence[str], own: flags.FlagValues) -> None:
    own.unparse_flags()
    try:
        rest = own(list(argv))[1:]
    except (flags.Error, ValueError) as error:  # ValueError: --nooverwrite=1, or a flagfile that is no text
        if found := _ILLEGAL.match(str(error)):
            name, value = found.groups()
            raise InputError(f"--{name} must be {_WANTED[own[name].flag_type()]}. Received: {value}") from error
        reason = str(error).removeprefix("ERROR:: ").rstrip(" .?")
        received = getattr(error, "flagvalue", None) or " ".join(argv[1:])  # an unknown flag, or all of them
        raise InputError(f"{reason}; see --help. Received: {received}") from error
    if rest:
        raise InputError(f"Every argument must be a flag of the form --name=value. Received: {' '.join(rest)}")
    for name, value in own.flag_values_dict().items():
        if value == "":  # most likely an unset variable of a shell, not a wish for the default
            raise InputError(f"--{name} must have a value, or be left out. Received: --{name}=")
        if isinstance(value, str) and not value.isascii():
            _require_text(name, value)


def _require_text(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:  # the name of a file may be any bytes; a report may not
        raise InputError(f"--{name} must be valid UTF-8. Received: {value!a}") from error


def start_tensorflow() -> None:
    """Imports TensorFlow and finds its devices without the dozen lines that it logs on the way."""
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):  # of which TensorFlow dies where they are wrong
        if (value := os.environ.get(name, "0")) and not (value.isdecimal() and int(value) <= MOST_THREADS):
            raise InputError(f"{name} must be a number of threads, at most {MOST_THREADS}. Received: {value}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with native_stderr_dropped():
        require_tensorflow()
        import tensorflow as tf

        tf.config.list_logical_devices()
    # Each pass over the images is traced anew on purpose; nobody needs to be warned of it.
    tf.get_logger().setLevel(logging.ERROR)
    # What Keras thinks of a model (a softmax over one unit, the key of a dict) is no news to who trained it.
    warnings.filterwarnings("ignore", category=UserWarning, module="keras")


def _describe(error: Exception) -> str:
    """One line, whatever names of files are in it."""
    text = str(error)
    if not isinstance(error, InputError):
        text = f"the system refused to read or write. Received: {text}"
    return _CONTROL.sub(lambda character: repr(character[0])[1:-1], text)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Lets what a container or a batch system sends, and a terminal that closes, stop the work as Ctrl-C does."""

    def interrupt(signum: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    ending = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]  # nohup
    before = {each: signal.signal(each, interrupt) for each in ending}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
