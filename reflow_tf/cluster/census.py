"""Who the workers are: what they run, and on what machines."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from reflow_tf.errors import InputError

PACKAGES = ("reflow_tf", "tensorflow", "keras", "numpy")


@dataclasses.dataclass(frozen=True)
class Resident:
    """One worker.

    Attributes:
        versions: package -> its version, and what of ours is not the same code; None where it is missing.
        machine: on which it is.
        num_cores: of that.
        memory: of that, bytes.
    """

    versions: Mapping[str, str | None]
    machine: str
    num_cores: int
    memory: int


def make_probe() -> Callable[[], dict[str, Any]]:
    """A function that describes the process in which it is called, which may not have this package, or another one.

    It is made inside another one so that it is sent as code and not by its name.
    """
    packages = PACKAGES

    def probe() -> dict[str, Any]:
        import contextlib
        import hashlib
        import importlib.metadata
        import importlib.util
        import os
        import pathlib
        import platform

        versions: dict[str, str | None] = {}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
        found, memory = importlib.util.find_spec("reflow_tf"), 0
        if found is None or found.origin is None:
            versions["reflow_tf"] = None
        else:
            code = hashlib.sha256()
            folder = pathlib.Path(found.origin).parent
            for path in sorted(folder.rglob("*.py")):
                code.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
            version = getattr(importlib.import_module(packages[0]), "__version__", None)
            versions["reflow_tf"] = f"{version} (code {code.hexdigest()[:8]})"
            with contextlib.suppress(ImportError, AttributeError):  # another version, which is refused for that
                memory = importlib.import_module("reflow_tf.crew").find_memory()
        cores = len(os.sched_getaffinity(0))
        return {"versions": versions, "machine": platform.node(), "num_cores": cores, "memory": memory}

    return probe


@functools.cache
def describe_here() -> Resident:
    """What the process itself is; its code is what it began with."""
    return Resident(**make_probe()())


def survey(client: Any) -> dict[str, Resident]:
    """Address of each worker of a client of Dask -> what it is."""
    return {address: Resident(**found) for address, found in client.run(make_probe()).items()}


def require_same_versions(residents: Mapping[str, Resident], here: Resident) -> None:
    """Results are the same only where the code is.

    Raises:
        InputError: a worker has another version of a package.
    """
    for address, resident in residents.items():
        for package in PACKAGES:
            mine, other = here.versions[package], resident.versions[package]
            if mine != other:
                raise InputError(
                    f"Workers must have the {package} of this process, {mine}, or results would not be the same. "
                    f"Received: {other or 'none'} at {address}"
                )


def count_crowding(residents: Mapping[str, Resident]) -> int:
    """How many workers share a machine, at most."""
    return max(Counter(resident.machine for resident in residents.values()).values())
