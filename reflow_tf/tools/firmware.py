r"""Writes a folder of C from an int8 .tflite file, with a program that proves it under QEMU.

python -m reflow_tf.tools.firmware --model=reflow_out/resnet8/model.tflite --data=fashion_mnist

A file of --target=cortex_m becomes C99 without dependencies, with a main.c that runs it on a few of your inputs, a
Makefile and a README. A file of --target=tflm becomes a C array with a README.
"""

import sys

from absl import flags

from reflow_tf.choices import BOARDS, check_choice
from reflow_tf.tools import command_line
from reflow_tf.tools.folder_job import FolderFlags, FolderJob

FLAGS = command_line.new_flags()
_FOLDER = FolderFlags(FLAGS, "The path of an int8 .tflite file.", "firmware")
BOARD = flags.DEFINE_string(
    "board", "m4", f"What the Makefile builds for and runs on: {', '.join(BOARDS)}.", flag_values=FLAGS
)


def read_config() -> FolderJob:
    """The parsed flags as a checked configuration; raises InputError."""
    check_choice("board", BOARD.value, BOARDS)
    return _FOLDER.read()


def write(job: FolderJob) -> int:
    """Writes the folder and says what to do with it; returns the exit code."""
    from reflow_tf.jobs.firmware.packing import (
        write_firmware,  # Keras takes seconds to import: bad flags answer before it
    )

    folder = write_firmware(
        job.source, job.output_dir, board=BOARD.value, num_inputs=job.num_inputs, overwrite=job.overwrite
    )
    with command_line.printing():
        print(f"{folder} is ready: follow its README.md")
    return command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(read_config, write, __doc__, FLAGS, sys.argv if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
