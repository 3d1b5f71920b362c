r"""Measures .tflite files side by side in a runtime that has XNNPACK's sparse kernels, and checks their outputs.

python -m reflow_tf.tools.benchmark --model=reflow_out/mobilenet_v2/model.tflite --baseline=dense.tflite --runtime=web

web: LiteRT.js in a headless Chromium; milliseconds. aarch64: LiteRT for ARM under QEMU; numbers of instructions, to
within 5,000, which are not time. litert: LiteRT on this machine; milliseconds of dense files.

The files take turns, so that what else the machine does falls on all of them, and the ratio is taken round by round; an
idle machine is needed all the same. Outputs are compared with LiteRT's on this machine: exit code 3 if those of a float
file differ by more than 1e-3 of the largest output (0.1 where the file allows float16 arithmetic).
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

from absl import flags

from reflow_tf.choices import CPUS, MOST_THREADS, check_between, check_choice
from reflow_tf.jobs.benchmark import RUNTIMES, Benchmark, Candidate, Measured, describe, measure_files
from reflow_tf.report.progress import track
from reflow_tf.runtimes.latency import Spread
from reflow_tf.runtimes.litert import read_tflite
from reflow_tf.tools import command_line
from reflow_tf.tools.output_file import check_output, write_json

FLAGS = command_line.new_flags()

MODEL = flags.DEFINE_multi_string(
    "model", None, "The path of a .tflite file; may be given several times.", flag_values=FLAGS
)
BASELINE = flags.DEFINE_string(
    "baseline", None, "The path of the .tflite file that the others are compared with.", flag_values=FLAGS
)
RUNTIME = flags.DEFINE_string("runtime", "web", f"{', '.join(RUNTIMES)}.", flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer(
    "rounds",
    None,
    "Inferences of each file that count. Default: 50. Not for aarch64, which counts once.",
    flag_values=FLAGS,
)
WARM_UP = flags.DEFINE_integer(
    "warm_up", None, "Inferences of each file before those. Default: 20. Not for aarch64.", flag_values=FLAGS
)
THREADS = flags.DEFINE_integer("threads", 1, "CPU threads of the runtime.", flag_values=FLAGS)
CPU = flags.DEFINE_string(
    "cpu",
    None,
    f"For --runtime=aarch64: what is emulated, of {', '.join(CPUS)}. Default: {CPUS[-1]}.",
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the results, every single one.", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class Job:
    """What to measure; the flags.

    Raises:
        InputError: a number is out of its range.
    """

    candidates: tuple[Candidate, ...]
    baseline: Candidate | None
    runtime: str
    rounds: int | None
    warm_up: int | None
    threads: int
    cpu: str | None
    output: pathlib.Path | None

    def __post_init__(self) -> None:
        check_choice("runtime", self.runtime, RUNTIMES)
        check_between("rounds", self.rounds, 1)
        check_between("warm_up", self.warm_up, 0)
        check_between("threads", self.threads, 1, MOST_THREADS)
        if self.cpu is not None:
            check_choice("cpu", self.cpu, CPUS)


def read_config() -> Job:
    """The parsed flags and the files that they name; raises InputError."""
    return Job(
        candidates=tuple(map(_read_file, command_line.require(MODEL))),
        baseline=_read_file(BASELINE.value) if BASELINE.value else None,
        runtime=RUNTIME.value,
        rounds=ROUNDS.value,
        warm_up=WARM_UP.value,
        threads=THREADS.value,
        cpu=CPU.value,
        output=check_output(OUTPUT.value, [*command_line.require(MODEL), BASELINE.value]) if OUTPUT.value else None,
    )


def _read_file(path: str) -> Candidate:
    return Candidate(path, read_tflite(os.path.expanduser(path)))


def benchmark(job: Job) -> int:
    """Measures, prints the table and writes the JSON; returns the exit code."""
    found = measure_files(
        job.candidates,
        job.baseline,
        runtime=job.runtime,
        rounds=job.rounds,
        warm_up=job.warm_up,
        threads=job.threads,
        cpu=job.cpu,
        progress=_show_rounds,
    )
    if job.output:
        write_json(job.output, describe(found))
    with command_line.printing():
        print("\n".join(format_table(found)))
    wrong = [file for file in found.all_files if file.differs]
    if wrong:
        received = ", ".join(
            f"{file.label} is off by {file.difference:.2g} of the largest ({file.tolerance:g} is rounding)"
            for file in wrong
        )
        print(
            f"error: the outputs must be LiteRT's but for rounding. Received: {received}",
            file=sys.stderr,
        )
    return command_line.UNMET if wrong else command_line.DONE


def _show_rounds(rounds: Iterable[int]) -> Iterator[int]:
    with track(rounds, "Measuring") as tracked:
        yield from tracked


def format_table(found: Benchmark) -> list[str]:
    """The lines that a person reads: a head, and for each file its cost, how often it is cheaper, and its outputs."""
    is_exact = found.unit == "instructions"
    heading = ("", "cost", "quartiles", "fewer" if is_exact else "faster", "quartiles", "difference")
    rows: list[tuple[str, ...]] = [heading, *(_format_row(file, found) for file in found.all_files)]
    if is_exact:
        rows = [tuple(cell for cell, title in zip(row, heading, strict=True) if title != "quartiles") for row in rows]
        about = "million instructions an inference, counted"
    else:
        about = f"{found.unit} an inference, median of {found.rounds} after {found.warm_up} of warm-up"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return [found.runtime, about, "", *lines]


def _format_row(file: Measured, found: Benchmark) -> tuple[str, ...]:
    scale = 1e-6 if found.unit == "instructions" else 1
    faster = ("baseline", "") if file is found.baseline else ("", "")
    if file.speedup:
        faster = _format_spread(file.speedup, 1, "x")
    difference = "" if file.difference is None else f"{file.difference:.1e}"
    return file.label, *_format_spread(file.cost, scale, ""), *faster, difference


def _format_spread(spread: Spread, scale: float, suffix: str) -> tuple[str, str]:
    median, low, high = (f"{value * scale:,.2f}{suffix}" for value in dataclasses.astuple(spread))
    return median, f"{low} to {high}"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(
        read_config,
        benchmark,
        __doc__,
        FLAGS,
        sys.argv if argv is None else argv,
        tensorflow=False,
        unmet="outputs differ from LiteRT's",
    )


if __name__ == "__main__":
    sys.exit(main())
