r"""Brings a runtime that is no Python package into the cache: LiteRT.js for a browser, or an emulated ARM machine.

python -m reflow_tf.tools.setup_runtime --runtime=aarch64

The cache is ~/.cache/reflow_tf, or $REFLOW_TF_CACHE; deleting that folder undoes every set-up. What the system's own
package manager must bring (a browser, QEMU) is named where it is missing.
"""

import pathlib
import sys
from collections.abc import Callable, Mapping

from absl import flags

from reflow_tf.choices import check_choice
from reflow_tf.tools import command_line

FLAGS = command_line.new_flags()

RUNTIME = flags.DEFINE_string(
    "runtime",
    None,
    "web (LiteRT.js for headless Chromium, 12 MB) or aarch64 (Debian's Python for 64-bit ARM and the wheels of "
    "ai-edge-litert and tflite-runtime, to be run by QEMU; 50 MB).",
    flag_values=FLAGS,
)


def read_config() -> str:
    """The runtime asked for; raises InputError."""
    runtime = command_line.require(RUNTIME)
    check_choice("runtime", runtime, tuple(SET_UPS))
    return runtime


def set_up(runtime: str) -> int:
    """Sets up what is not there yet and prints where it is; returns the exit code."""
    folder = SET_UPS[runtime]()
    with command_line.printing():
        print(f"{runtime} is set up in {folder}")
    return command_line.DONE


def _set_up_web() -> pathlib.Path:
    from reflow_tf.runtimes.web import browser, litertjs

    folder = litertjs.set_up()
    browser.require_parts()
    return folder


def _set_up_aarch64() -> pathlib.Path:
    from reflow_tf.runtimes.aarch64 import machine

    return machine.set_up()


SET_UPS: Mapping[str, Callable[[], pathlib.Path]] = {"web": _set_up_web, "aarch64": _set_up_aarch64}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(read_config, set_up, __doc__, FLAGS, sys.argv if argv is None else argv, tensorflow=False)


if __name__ == "__main__":
    sys.exit(main())
