"""Files side by side in one runtime: what an inference costs, how much less than the baseline, and equal outputs."""

import contextlib
import dataclasses
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.export.flatbuffer import NUMPY_TYPES, parse
from reflow_tf.export.half_precision import allows_float16, stores_sparse
from reflow_tf.runtimes.aarch64.cpus import DEFAULT_CPU
from reflow_tf.runtimes.aarch64.machine import find_machine
from reflow_tf.runtimes.aarch64.runtime import AArch64
from reflow_tf.runtimes.device_script import FLOAT16_TOLERANCE, RELATIVE_TOLERANCE, has_sparse_kernels
from reflow_tf.runtimes.latency import Progress, Spread, compare, measure_interleaved, summarize
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.runtimes.runtime import Runtime
from reflow_tf.runtimes.web.browser import Browser, require_parts
from reflow_tf.runtimes.web.litertjs import installed_folder
from reflow_tf.runtimes.web.runtime import Web

Result = TypeVar("Result")

_COMPARED_INPUTS = 2
# Chromium compiles WebAssembly twice, the second time what turns out to be used much: that must be over.
_WARM_UP = 20
_ROUNDS = 50
_QUANTIZED = {np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16)}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A file to measure.

    Attributes:
        label: what a person calls it.
        content: the .tflite file.
    """

    label: str
    content: bytes


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where files are measured, as far as a runtime leaves a choice.

    Attributes:
        threads: of the CPU.
        cpu: which one is emulated, where one is.
    """

    threads: int
    cpu: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one file costs.

    Attributes:
        costs: of one inference, round by round, in the benchmark's unit.
        cost: their median and quartiles.
        speedup: baseline by file, round by round; None for the baseline, or without one.
        difference: largest absolute difference of an output from LiteRT's on this machine, on the same inputs, by the
            largest absolute output: infinite where all of LiteRT's are 0 and these are not; None where LiteRT is the
            runtime.
        tolerance: the most that rounding explains of it: little in float32, more where the file allows float16
            arithmetic; None with integer arithmetic in it, where any difference may be rounding.
        memory_bytes: as the runtime tells it; None if it does not.
    """

    label: str
    size_bytes: int
    costs: tuple[float, ...]
    cost: Spread
    speedup: Spread | None
    difference: float | None
    tolerance: float | None
    memory_bytes: int | None

    @property
    def differs(self) -> bool:
        """Whether the outputs are other ones than LiteRT's; NaN counts as other."""
        if self.difference is None or self.tolerance is None:
            return False
        return not self.difference <= self.tolerance

    def describe_difference(self) -> dict[str, Any]:
        """`difference` and `differs` as plain JSON, which has no infinity and no NaN: such a difference is null."""
        is_number = self.difference is not None and math.isfinite(self.difference)
        return {"difference": self.difference if is_number else None, "differs": self.differs}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Files measured turn by turn in one runtime.

    Attributes:
        runtime: what ran them, with versions and settings.
        unit: of all costs: 'ms', or 'instructions'.
        warm_up: rounds before those that count.
        files: in the order asked for, the baseline not among them.
    """

    runtime: str
    unit: str
    threads: int
    rounds: int
    warm_up: int
    baseline: Measured | None
    files: tuple[Measured, ...]

    @property
    def all_files(self) -> tuple[Measured, ...]:
        """The baseline first, if there is one."""
        return (*([self.baseline] if self.baseline else []), *self.files)


def measure_files(
    candidates: Sequence[Candidate],
    baseline: Candidate | None = None,
    *,
    runtime: str,
    rounds: int | None = None,
    warm_up: int | None = None,
    threads: int = 1,
    cpu: str | None = None,
    progress: Progress = iter,
) -> Benchmark:
    """Measures files in turns, and compares the outputs of each with LiteRT's.

    Args:
        candidates: at least one.
        baseline: what the others are compared with; usually the dense file.
        runtime: a key of `RUNTIMES`.
        rounds: inferences of each file that count; None: 50. Not for instructions, which are counted once.
        warm_up: rounds before them; None: 20. Not for instructions.
        threads: CPU threads of the runtime.
        cpu: for 'aarch64': what is emulated, of `runtimes.aarch64.cpus.CPUS`; None: a Cortex-A76.
        progress: sees the rounds.

    Raises:
        InputError: the runtime is not there, or cannot run a file; rounds or warm-up where instructions are counted; a
            CPU for what emulates none; 'litert' on a machine where XNNPACK has no sparse kernels, and a file that
            stores sparse weights.
    """
    _check_name(runtime)
    if cpu is not None and runtime != "aarch64":
        raise InputError(f"--cpu needs --runtime=aarch64, which emulates one. Received: {runtime}, {cpu}")
    everything = [*([baseline] if baseline else []), *candidates]
    expected = None if runtime == "litert" else [_run_here(candidate) for candidate in everything]
    with contextlib.ExitStack() as stack:
        opened = RUNTIMES[runtime](everything, Machine(threads, cpu or DEFAULT_CPU), stack)
        shapes = {one.input_shape for one in opened}
        if len(shapes) > 1:
            raise InputError(
                f"Files that are measured side by side must take inputs of one shape. "
                f"Received: {', '.join(map(str, sorted(shapes)))}"
            )
        turns = _choose_turns(opened[0].unit, rounds, warm_up)
        # The outputs come first: a wrong one costs no minutes of measuring.
        differences = [None] * len(opened) if expected is None else list(map(_difference, opened, expected))
        costs = measure_interleaved(opened, *turns, progress)
        files = tuple(map(_describe_file, everything, costs, differences, opened))
        found = Benchmark(opened[0].name, opened[0].unit, threads, *turns, None, files)
    return _compare_with_first(found) if baseline else found


def require_runtime(name: str) -> None:
    """Checks, without starting anything, that what a runtime consists of is on this machine.

    Args:
        name: a key of `RUNTIMES`.

    Raises:
        InputError: there is no such runtime, or it lacks a program, a package or its set-up; the message says what
            brings it.
    """
    _check_name(name)
    if name == "web":
        require_parts()
        installed_folder()
    elif name == "aarch64":
        find_machine()


def _check_name(runtime: str) -> None:
    if runtime not in RUNTIMES:
        raise InputError(f"The runtime must be one of {', '.join(RUNTIMES)}. Received: {runtime}")


def _choose_turns(unit: str, rounds: int | None, warm_up: int | None) -> tuple[int, int]:
    """How many rounds count, and how many come before them; instructions are the same in every round."""
    if unit != "instructions":
        return _ROUNDS if rounds is None else rounds, _WARM_UP if warm_up is None else warm_up
    for name, given in (("rounds", rounds), ("warm_up", warm_up)):
        if given is not None:
            raise InputError(f"--{name} must be left out where instructions are counted, once. Received: {given}")
    return 1, 0


def _compare_with_first(found: Benchmark) -> Benchmark:
    """The first file as the baseline of the others."""
    first, *others = found.files
    baseline = np.array(first.costs)
    files = [dataclasses.replace(file, speedup=compare(baseline, np.array(file.costs))) for file in others]
    return dataclasses.replace(found, baseline=first, files=tuple(files))


def _describe_file(candidate: Candidate, costs: np.ndarray, difference: float | None, runtime: Runtime) -> Measured:
    return Measured(
        label=candidate.label,
        size_bytes=len(candidate.content),
        costs=tuple(costs.tolist()),
        cost=summarize(costs),
        speedup=None,
        difference=difference,
        tolerance=choose_tolerance(candidate.content),
        memory_bytes=runtime.memory_bytes(),
    )


def describe(found: Benchmark) -> dict[str, Any]:
    """Everything as plain JSON, the machine and its versions included."""
    return {
        "runtime": found.runtime,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {platform.system()} {platform.release()}",
        "unit": found.unit,
        "threads": found.threads,
        "rounds": found.rounds,
        "warm_up": found.warm_up,
        "baseline": found.baseline and _describe_measured(found.baseline),
        "files": [_describe_measured(file) for file in found.files],
    }


def _describe_measured(file: Measured) -> dict[str, Any]:
    return dataclasses.asdict(file) | file.describe_difference()


def _open_web(candidates: Sequence[Candidate], machine: Machine, stack: contextlib.ExitStack) -> list[Runtime]:
    browser = stack.enter_context(Browser(machine.threads))
    return [_named(candidate, lambda content: Web(content, browser)) for candidate in candidates]


def _open_aarch64(candidates: Sequence[Candidate], machine: Machine, _: contextlib.ExitStack) -> list[Runtime]:
    if machine.threads != 1:
        raise InputError(
            f"--threads must be 1 for --runtime=aarch64, which counts instructions. Received: {machine.threads}"
        )
    return [_named(candidate, lambda content: AArch64(content, cpu=machine.cpu)) for candidate in candidates]


def _open_litert(candidates: Sequence[Candidate], machine: Machine, _: contextlib.ExitStack) -> list[Runtime]:
    """LiteRT on this machine, unless that would be a misleading figure.

    On x86 with AVX, XNNPACK leaves sparse weights to its dense kernels: xnn_is_chw_compatible_config,
    src/xnnpack/hardware-config.h:203-212 at 75db3c093, which src/subgraph.c:4711 asks.
    """
    if not has_sparse_kernels():
        for candidate in candidates:
            if stores_sparse(parse(candidate.content)):
                raise InputError(
                    f"--runtime=litert tells nothing of sparse files here: XNNPACK's sparse kernels are off on x86 "
                    f"CPUs with AVX, so a sparse file is as fast as a dense one; --runtime=web or aarch64 has them. "
                    f"Received: {candidate.label}, which stores sparse weights"
                )
    return [_named(candidate, lambda content: LiteRT(content, machine.threads)) for candidate in candidates]


Opener = Callable[[Sequence[Candidate], Machine, contextlib.ExitStack], list[Runtime]]
RUNTIMES: Mapping[str, Opener] = {"web": _open_web, "aarch64": _open_aarch64, "litert": _open_litert}


def _named(candidate: Candidate, work: Callable[[bytes], Result]) -> Result:
    """Whatever is wrong with a file, the message says which."""
    try:
        return work(candidate.content)
    except InputError as error:
        raise InputError(f"{candidate.label}: {error}") from error


def _run_here(candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and what LiteRT gives for them on this machine."""
    runtime = _named(candidate, LiteRT)
    inputs = runtime.make_inputs(_COMPARED_INPUTS, seed=1)
    return inputs, runtime.run(inputs)


def _difference(runtime: Runtime, known: tuple[np.ndarray, np.ndarray]) -> float:
    inputs, expected = known
    outputs = runtime.run(inputs)
    absolute = float(np.abs(outputs - expected).max())
    largest = float(np.abs(expected).max())
    return absolute and (absolute / largest if largest else math.inf)


def choose_tolerance(content: bytes) -> float | None:
    """Of `Measured`; a tensor with small integers is one of a quantized network."""
    types = {NUMPY_TYPES.get(tensor.type) for graph in parse(content).subgraphs for tensor in graph.tensors}
    if types & _QUANTIZED:
        return None
    return FLOAT16_TOLERANCE if allows_float16(content) else RELATIVE_TOLERANCE
