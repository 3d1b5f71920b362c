r"""Writes a folder that checks and times a .tflite file on a Raspberry Pi or an Android phone.

python -m reflow_tf.tools.device_kit --model=reflow_out/mobilenet_v2/model.tflite --data=photos

The folder holds the file, a few of your inputs as the network takes them, the outputs that are expected, a script that
needs nothing but numpy and ai_edge_litert or tflite_runtime, and a README that says how to run it.
"""

import sys

from absl import flags

from reflow_tf.tools import command_line
from reflow_tf.tools.folder_job import FolderFlags, FolderJob

FLAGS = command_line.new_flags()
_FOLDER = FolderFlags(FLAGS, "The path of a .tflite file.", "device_kit")
BASELINE = flags.DEFINE_string(
    "baseline", None, "Another .tflite file, to be timed in turns with the model.", flag_values=FLAGS
)


def write(job: FolderJob) -> int:
    """Writes the folder and says what to do with it; returns the exit code."""
    from reflow_tf.jobs.device_kit import write_device_kit  # Keras takes seconds to import: bad flags answer before it

    folder = write_device_kit(
        job.source, job.output_dir, baseline=BASELINE.value, num_inputs=job.num_inputs, overwrite=job.overwrite
    )
    with command_line.printing():
        print(f"{folder} is ready: copy it to the device and follow its README.md")
    return command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(_FOLDER.read, write, __doc__, FLAGS, sys.argv if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
