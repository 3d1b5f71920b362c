r"""Writes a folder of C from an int8 .tflite file, with a program that proves it under QEMU.

python -m reflow_tf.tools.firmware --model=reflow_out/resnet8/model.tflite --data=fashion_mnist

A file of --target=cortex_m becomes C99 without dependencies, with a main.c that runs it on a few of your images, a
Makefile and a README. A file of --target=tflm becomes a C array with a README.
"""

import dataclasses
import sys

from absl import flags

from reflow_tf.config import BOARDS, EvaluateConfig, check_between, check_choice
from reflow_tf.errors import InputError
from reflow_tf.tools import command_line

FLAGS = command_line.new_flags()

MODEL = flags.DEFINE_string("model", None, "The path of an int8 .tflite file.", flag_values=FLAGS)
DATA = flags.DEFINE_string(
    "data",
    None,
    "Images, with labels or without: fashion_mnist, a folder, an .npz with x, or tfds:NAME[:SPLIT]. They are prepared "
    "as the config.json beside the file says, which the pruning tool writes.",
    flag_values=FLAGS,
)
NUM_INPUTS = flags.DEFINE_integer("num_inputs", 4, "Images, drawn evenly from all.", flag_values=FLAGS)
PREPROCESS = flags.DEFINE_string(
    "preprocess", "auto", "Scaling of the pixels, as for the evaluation tool.", flag_values=FLAGS
)
BOARD = flags.DEFINE_string(
    "board", "m4", f"What the Makefile builds for and runs on: {', '.join(BOARDS)}.", flag_values=FLAGS
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "firmware", "The folder to write; it must not exist yet.", flag_values=FLAGS
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a folder that this tool wrote.", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class Job:
    """What to write, and where."""

    source: EvaluateConfig
    output_dir: str
    board: str
    num_inputs: int
    overwrite: bool

    def __post_init__(self) -> None:
        check_between("num_inputs", self.num_inputs, 1)
        check_choice("board", self.board, BOARDS)
        if not self.source.model.endswith(".tflite"):
            raise InputError(f"--model must be a .tflite file. Received: {self.source.model}")


def read_config() -> Job:
    """The parsed flags as a checked configuration; raises InputError."""
    source = EvaluateConfig(command_line.require(MODEL), command_line.require(DATA), preprocess=PREPROCESS.value)
    return Job(source, OUTPUT_DIR.value, BOARD.value, NUM_INPUTS.value, OVERWRITE.value)


def write(job: Job) -> int:
    """Writes the folder and says what to do with it; returns the exit code."""
    from reflow_tf.firmware.packing import write_firmware  # Keras takes seconds to import: bad flags answer before it

    folder = write_firmware(
        job.source, job.output_dir, board=job.board, num_inputs=job.num_inputs, overwrite=job.overwrite
    )
    with command_line.printing():
        print(f"{folder} is ready: follow its README.md")
    return command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(read_config, write, __doc__, FLAGS, sys.argv if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
