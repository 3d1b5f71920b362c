r"""Finds the file to ship: every honest candidate, made and measured on a device, side by side.

python -m reflow_tf.tools.frontier --model=resnet8 --device=cortex_m4
python -m reflow_tf.tools.frontier --model=my_model.keras --data=photos/ --preprocess=torch --device=phone,browser

Candidates are the plain conversions that anyone gets (float32, float16, int8), then narrower networks, sparse ones, and
both, in the number formats that the device runs. What cannot win is not made, and why is said. Files are chosen by what
they are expected to lose on calibration images that none was fitted to; scores are those on the evaluation images.

Writes frontier.json and frontier.html into --output_dir anew after each candidate, each candidate into a folder of its
own, as reflow_tf.tools.prune would, and the recommended one into best/, with what proves it on the device: a device
kit, or C for a microcontroller. Of several devices each has such a folder of its own in --output_dir, and what they
share is made once. The same command goes on where it was interrupted.

Of a .tflite file there is nothing to prune: candidates are the file as it is, without its zeros, and with float16
arithmetic, and nothing is fitted to images.
"""

import sys

from absl import flags

from reflow_tf import __version__
from reflow_tf.choices import REPAIRS
from reflow_tf.config import PruneConfig
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.frontier.devices import DEVICES, find_devices
from reflow_tf.jobs.frontier.request import DEFAULT_REPAIR, Search, require_budgets
from reflow_tf.report.frontier import format_table, headline
from reflow_tf.report.wording import SPACE
from reflow_tf.tools import command_line
from reflow_tf.tools.shared_flags import JobFlags, define_memory_budget, define_overwrite, define_task, name_model

FLAGS = command_line.new_flags()

JOB = JobFlags(FLAGS, ".keras, Keras .h5 or .tflite")
DEVICE = flags.DEFINE_list(
    "device",
    None,
    "Where the file is to run, one device or several with commas: "
    + "; ".join(f"{name}: {device.description}" for name, device in DEVICES.items())
    + ".",
    flag_values=FLAGS,
)
MAX_ACCURACY_DROP = flags.DEFINE_float(
    "max_accuracy_drop",
    1.0,
    "Percentage points that the recommended file may be expected to lose against the dense network.",
    flag_values=FLAGS,
)
REPAIR = flags.DEFINE_string(
    "repair",
    DEFAULT_REPAIR,
    f"What restores pruned candidates, in this order, with commas: {', '.join(REPAIRS)}. auto takes longer.",
    flag_values=FLAGS,
)
MINUTES = flags.DEFINE_float(
    "minutes",
    None,
    "After so many minutes no further candidate is begun; what was not tried is named. Default: all are tried.",
    flag_values=FLAGS,
)
FLASH_BUDGET = flags.DEFINE_integer(
    "flash_budget", None, "For microcontrollers: bytes of flash that the file may take.", flag_values=FLAGS
)
RAM_BUDGET = flags.DEFINE_integer(
    "ram_budget", None, "For microcontrollers: bytes of RAM that it may need.", flag_values=FLAGS
)
TASK = define_task(FLAGS)
MEMORY_BUDGET = define_memory_budget(FLAGS)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the results go. Default: ./reflow_out/<model>-<device>.", flag_values=FLAGS
)
OVERWRITE = define_overwrite(FLAGS, "Start anew in an --output_dir that holds an earlier search.")


def read_config() -> Search:
    """The parsed flags; raises InputError."""
    given = JOB.read()
    devices = find_devices(command_line.require(DEVICE))
    require_budgets(devices, FLASH_BUDGET.value, RAM_BUDGET.value)
    name = "-".join([name_model(given["model"]), *(device.name for device in devices)])
    target = devices[0].dense_target
    job = JobConfig(
        **given,
        output_dir=OUTPUT_DIR.value or f"reflow_out/{name}",
        prune=PruneConfig(
            target=target, sparsity=0.0, repair="none", memory_budget=MEMORY_BUDGET.value, task=TASK.value
        ),
        overwrite=OVERWRITE.value,
        flash_budget=FLASH_BUDGET.value,
        ram_budget=RAM_BUDGET.value,
    )
    return Search(job, devices, MAX_ACCURACY_DROP.value, REPAIR.value, MINUTES.value, __version__)


def search(given: Search) -> int:
    """Searches and prints the table; returns the exit code."""
    from reflow_tf.jobs.frontier.search import run  # TensorFlow takes seconds to import: bad flags answer before it

    found = run(given, sys.argv)
    with command_line.printing():
        for device in given.devices:
            if device.name in found.documents:
                print("\n".join(format_table(found.documents[device.name])))
                print(f"\nWrote {given.job_on(device).output_dir}: open frontier.html in a browser.\n")
    documents = found.documents.values()
    unmet = [document for document in documents if not (document["answer"] and document["answer"]["recommended"])]
    for told in (*(headline(document).replace(SPACE, " ") for document in unmet), *map(str, found.failures[:-1])):
        print(f"error: {told}", file=sys.stderr)
    if found.failures:
        raise found.failures[-1]
    return command_line.UNMET if unmet else command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(
        read_config,
        search,
        __doc__,
        FLAGS,
        sys.argv if argv is None else argv,
        unmet="no file fits --flash_budget and --ram_budget and is expected to lose as little as --max_accuracy_drop",
        resumes=True,
    )


if __name__ == "__main__":
    sys.exit(main())
