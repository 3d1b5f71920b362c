"""What a run was made with: versions and machine."""

import os
import platform
from importlib import metadata
from typing import Any


def describe_environment() -> dict[str, Any]:
    """In the layout of report/schema.json."""
    names = ("tensorflow", "keras", "numpy", "ai_edge_litert", "reflow_tf")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
        "platform": platform.platform(),
        "num_cpus": len(os.sched_getaffinity(0)),
    }
