"""A job as the flags that make it again."""

import dataclasses

from reflow_tf.config import PruneConfig
from reflow_tf.job_config import JobConfig


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
