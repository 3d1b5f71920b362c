"""A job as the flags that make it again."""

import dataclasses
from collections.abc import Sequence

from reflow_tf.config import PruneConfig
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.frontier.contract import FILE

FLAGS = "flags.txt"
"""In a candidate's folder: the flags that make its like, a line each, as --flagfile takes them."""


def spell(job: JobConfig) -> list[str]:
    """The flags of `reflow_tf.tools.prune` that make a job again, as lines of a --flagfile."""
    spelled = []
    for given, defaults in ((job, JobConfig("", "")), (job.prune, PruneConfig())):
        for field in dataclasses.fields(given):
            value = getattr(given, field.name)
            if field.name == "prune" or value == getattr(defaults, field.name):
                continue
            if isinstance(value, bool):
                spelled.append(f"--{'' if value else 'no'}{field.name}")
            else:
                spelled.append(f"--{field.name}={','.join(value) if isinstance(value, tuple) else value}")
    return spelled


def name_place(command: Sequence[str], given: str, name: str) -> list[str]:
    """A candidate's flags with a place of its own, for its folder is there already; [] where nothing is to be made.

    Args:
        command: the flags.
        given: NETWORK, which `reflow_tf.tools.prune` takes, or FILE, which `reflow_tf.tools.rewrite` does.
        name: of the candidate on its device.
    """
    if not command:
        return []
    if given == FILE:
        return [*command, f"--output={name}.tflite"]
    return [*(flag for flag in command if not flag.startswith("--output_dir=")), f"--output_dir=reflow_out/{name}"]
