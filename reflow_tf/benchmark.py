"""Files side by side in one runtime: what an inference costs, how much less than the baseline, and equal outputs."""

import contextlib
import dataclasses
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.export.flatbuffer import NUMPY_TYPES, parse
from reflow_tf.runtimes.aarch64.runtime import AArch64
from reflow_tf.runtimes.latency import Progress, Spread, compare, measure_interleaved, summarize
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.runtimes.runtime import Runtime, make_inputs
from reflow_tf.runtimes.web.browser import Browser
from reflow_tf.runtimes.web.runtime import Web

Result = TypeVar("Result")

# Float kernels of two machines add in another order; a wrong result is off by far more.
LARGEST_DIFFERENCE = 1e-3

_COMPARED_INPUTS = 2
# Chromium compiles WebAssembly twice, the second time what turns out to be used much: that must be over.
_WARM_UP = 20
_ROUNDS = 50
_X86 = {"x86_64", "amd64", "i386", "i686"}
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
class Measured:
    """What one file costs.

    Attributes:
        costs: of one inference, round by round, in the benchmark's unit.
        cost: their median and quartiles.
        speedup: baseline by file, round by round; None for the baseline, or without one.
        difference: largest absolute difference of an output from LiteRT's on this machine, on the same inputs, by the
            largest absolute output; None where LiteRT is the runtime.
        is_float: no integer arithmetic in it, so that the difference must be float noise.
        memory_bytes: as the runtime tells it; None if it does not.
    """

    label: str
    size_bytes: int
    costs: tuple[float, ...]
    cost: Spread
    speedup: Spread | None
    difference: float | None
    is_float: bool
    memory_bytes: int | None

    @property
    def differs(self) -> bool:
        """Whether the outputs are other ones than LiteRT's; NaN counts as other."""
        return self.difference is not None and self.is_float and not self.difference <= LARGEST_DIFFERENCE


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Files measured turn by turn in one runtime.

    Attributes:
        runtime: what ran them, with versions and settings.
        unit: of all costs: 'ms', or 'instructions', which are exact.
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
    progress: Progress = iter,
) -> Benchmark:
    """Measures files in turns, and compares the outputs of each with LiteRT's.

    Args:
        candidates: at least one.
        baseline: what the others are compared with; usually the dense file.
        runtime: a key of `RUNTIMES`.
        rounds: inferences of each file that count. None: 50 where time is measured, 1 where it is counted exactly.
        warm_up: rounds before them. None: 20 where time is measured, none where it is counted.
        threads: CPU threads of the runtime.
        progress: sees the rounds.

    Raises:
        InputError: the runtime is not there, or cannot run a file; 'litert' on a machine where XNNPACK has no sparse
            kernels, and a file that stores sparse weights.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"--runtime must be one of {', '.join(RUNTIMES)}. Received: {runtime}")
    everything = [*([baseline] if baseline else []), *candidates]
    expected = [_run_here(candidate) for candidate in everything]
    with contextlib.ExitStack() as stack:
        opened = RUNTIMES[runtime](everything, threads, stack)
        # The outputs come first: a wrong one costs no minutes of measuring.
        differences = [
            None if runtime == "litert" else _difference(one, outputs)
            for one, outputs in zip(opened, expected, strict=True)
        ]
        is_exact = opened[0].unit == "instructions"
        rounds = rounds or (1 if is_exact else _ROUNDS)
        warm_up = (0 if is_exact else _WARM_UP) if warm_up is None else warm_up
        costs = measure_interleaved(opened, rounds, warm_up, progress)
        measured = [
            _describe_file(candidate, own, difference, one.memory_bytes())
            for candidate, own, difference, one in zip(everything, costs, differences, opened, strict=True)
        ]
        name, unit = opened[0].name, opened[0].unit
    if baseline is None:
        return Benchmark(name, unit, threads, rounds, warm_up, None, tuple(measured))
    files = [
        dataclasses.replace(file, speedup=compare(costs[0], own))
        for file, own in zip(measured[1:], costs[1:], strict=True)
    ]
    return Benchmark(name, unit, threads, rounds, warm_up, measured[0], tuple(files))


def _describe_file(
    candidate: Candidate, costs: np.ndarray, difference: float | None, memory_bytes: int | None
) -> Measured:
    return Measured(
        label=candidate.label,
        size_bytes=len(candidate.content),
        costs=tuple(costs.tolist()),
        cost=summarize(costs),
        speedup=None,
        difference=difference,
        is_float=_is_float(candidate.content),
        memory_bytes=memory_bytes,
    )


def describe(found: Benchmark) -> dict[str, Any]:
    """Everything as plain JSON, the machine and its versions included."""
    described = dataclasses.asdict(found)
    return {
        "runtime": described.pop("runtime"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {platform.system()} {platform.release()}",
        **described,
    }


def _open_web(candidates: Sequence[Candidate], threads: int, stack: contextlib.ExitStack) -> list[Runtime]:
    browser = stack.enter_context(Browser(threads))
    return [_named(candidate, lambda content: Web(content, browser)) for candidate in candidates]


def _open_aarch64(candidates: Sequence[Candidate], threads: int, _: contextlib.ExitStack) -> list[Runtime]:
    if threads != 1:
        raise InputError(f"--threads must be 1 for --runtime=aarch64, which counts instructions. Received: {threads}")
    return [_named(candidate, AArch64) for candidate in candidates]


def _open_litert(candidates: Sequence[Candidate], threads: int, _: contextlib.ExitStack) -> list[Runtime]:
    """LiteRT on this machine, unless that would be a misleading figure.

    On x86 with AVX, XNNPACK leaves sparse weights to its dense kernels: xnn_is_chw_compatible_config,
    src/xnnpack/hardware-config.h:203-212 at 75db3c093, which src/subgraph.c:4711 asks.
    """
    if platform.machine().lower() in _X86:
        for candidate in candidates:
            if _stores_sparse(candidate.content):
                raise InputError(
                    f"--runtime=litert tells nothing of sparse files here: XNNPACK's sparse kernels are off on x86 "
                    f"CPUs with AVX, so a sparse file is as fast as a dense one; --runtime=web or aarch64 has them. "
                    f"Received: {candidate.label}, which stores sparse weights"
                )
    return [_named(candidate, lambda content: LiteRT(content, threads)) for candidate in candidates]


Opener = Callable[[Sequence[Candidate], int, contextlib.ExitStack], list[Runtime]]
RUNTIMES: Mapping[str, Opener] = {"web": _open_web, "aarch64": _open_aarch64, "litert": _open_litert}


def _named(candidate: Candidate, work: Callable[[bytes], Result]) -> Result:
    """Whatever is wrong with a file, the message says which."""
    try:
        return work(candidate.content)
    except InputError as error:
        raise InputError(f"{candidate.label}: {error}") from error


def _run_here(candidate: Candidate) -> np.ndarray:
    runtime = _named(candidate, LiteRT)
    return runtime.run(_compared_inputs(runtime))


def _difference(runtime: Runtime, expected: np.ndarray) -> float:
    outputs = runtime.run(_compared_inputs(runtime))
    absolute = float(np.abs(outputs - expected).max())
    return absolute and absolute / float(np.abs(expected).max())


def _compared_inputs(runtime: Runtime) -> np.ndarray:
    _, *sample = runtime.input_shape
    return make_inputs((_COMPARED_INPUTS, *sample), seed=1)


def _stores_sparse(content: bytes) -> bool:
    return any(tensor.sparsity is not None for graph in parse(content).subgraphs for tensor in graph.tensors)


def _is_float(content: bytes) -> bool:
    """Whether no tensor holds the small integers of a quantized network."""
    types = {NUMPY_TYPES.get(tensor.type) for graph in parse(content).subgraphs for tensor in graph.tensors}
    return not types & _QUANTIZED
