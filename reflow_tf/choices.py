"""The names that a user may choose from, and checks that something is one of them, or within its limits."""

import math
import numbers
import re
from collections.abc import Collection, Mapping

from reflow_tf.errors import InputError
from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.plan import is_number
from reflow_tf.targets.cortex_m import CortexM
from reflow_tf.targets.cpu import CPU
from reflow_tf.targets.ethos_u import EthosU
from reflow_tf.targets.storage import Storage
from reflow_tf.targets.target import HardwareTarget
from reflow_tf.targets.tflm import TFLM
from reflow_tf.targets.xnnpack import XNNPack
from reflow_tf.task import Task

TARGETS: Mapping[str, HardwareTarget] = {
    target.name: target for target in (XNNPack(), CPU(), Storage(), TFLM(), EthosU(), CortexM())
}
# 'auto' measures the network and so is no function of specs and scores alone; `sensitivity` does it.
ALLOCATION_NAMES = (*ALLOCATIONS, "auto")
# Names only: the table from names to functions, in `repair.chain`, imports Keras.
REPAIRS = ("none", "reflow", "woodfisher", "obs", "chita", "least_squares", "moments", "distill", "auto")
# These are no steps of a chain.
ALONE = ("none", "auto")
QUANTIZATIONS = ("none", "float16", "int8")
REWRITES = ("exact", "none")
# Whether exact rewriting adds zeros that change no output, so that a file runs sparse where that pays.
BALLASTS = ("auto", "off")
# Whether linear streams of channels keep the basis that training left.
BASES = ("auto", "kept")
# How a file stores weights that are mostly zeros: TFLite's sparse tensors, TFLM's bitmaps, or not at all.
STORAGES = ("sparse", "bitmap", "dense")
# Where the file is timed or its instructions are counted, if asked: what has the sparse kernels that x86 lacks.
BENCHMARKS = ("web", "aarch64")

# Beyond these the runtimes and the converter end without a word.
MOST_THREADS, MOST_IN_A_BATCH = 256, 65_536

_WORKERS = re.compile(r"[1-9][0-9]{0,3}|(?:tcp|tls)://.+:[0-9]{1,5}")

# The Cortex-Ms for which instructions are counted.
BOARDS = ("m3", "m4", "m7", "m55")
# The 64-bit ARM CPUs for which they are; the last has dot products of int8 and float16 arithmetic.
CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
# What an int8 file takes and gives: int8 as well, or float32 like the file that it replaces.
IOS = ("int8", "float")

# Found by what the file is to fit into; or by what the network and its data look like.
AUTO = "auto"
# Number formats of a file -> how --quantize spells them.
FORMATS = {"float32": "none", "float16": "float16", "int8": "int8"}
# What a network's outputs are taken for.
TASKS = (AUTO, *Task)
# As a sparsity: the zeros that the model came with.
EXISTING = "existing"
# Just over the two thirds above which XNNPACK turns to its sparse kernels.
DEFAULT_SPARSITY = 0.7


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises InputError unless the value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"--{name} must be one of {', '.join(choices)}. Received: {value}")


def check_between(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Raises InputError unless the value is None or a number from `least` to `most`."""
    if value is not None and not (is_number(value) and least <= value <= most):  # written so that NaN fails
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        received = value if is_number(value) else f"{value!r}, which is no number"
        raise InputError(f"--{name} must be {limits}. Received: {received}")


def check_whole(name: str, value: int | None, least: int) -> None:
    """Raises InputError unless the value is None or a whole number of at least `least`."""
    if value is not None and not (isinstance(value, numbers.Integral) and is_number(value) and value >= least):
        raise InputError(f"--{name} must be a whole number, at least {least}. Received: {value}")


def check_workers(workers: str | None, threads_per_worker: int | None) -> None:
    """Raises InputError unless these are what `JobConfig` says."""
    check_between("threads_per_worker", threads_per_worker, 1, MOST_THREADS)
    if workers is None:
        if threads_per_worker is not None:
            raise InputError(f"--threads_per_worker needs --workers. Received: {threads_per_worker}, and no --workers")
    elif not _WORKERS.fullmatch(workers):
        raise InputError(
            f"--workers must be a number of processes, at least 1, or tcp://HOST:PORT of a Dask scheduler. "
            f"Received: {workers}"
        )
