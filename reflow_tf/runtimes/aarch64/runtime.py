"""A .tflite file in the runtimes that 64-bit ARM devices embed, on an emulated CPU."""

import functools
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from reflow_tf.errors import InputError, failure_of
from reflow_tf.foreign import say_why
from reflow_tf.runtimes import device_script
from reflow_tf.runtimes.aarch64.cpus import DEFAULT_CPU
from reflow_tf.runtimes.aarch64.cycles import Estimate, estimate, find_tools, read_trace
from reflow_tf.runtimes.aarch64.machine import find_machine
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.runtimes.runtime import check_batch

WHEELS = {"ai-edge-litert==1.4.0": "ai_edge_litert", "tflite-runtime==2.14.0": "tflite_runtime"}
DEFAULT_WHEEL = "ai-edge-litert==1.4.0"

_WARM_UP, _ROUNDS = 2, 2
# What the first runs allocate and look up stays, and then every inference executes the same instructions. Around it,
# Python 3.11 goes on rewriting its byte code for a dozen runs, which is a matter of a thousand instructions.
LARGEST_SPREAD = 5000


class AArch64:
    """A .tflite file in an ARM wheel, one thread, XNNPACK delegate included.

    Its cost is a number of instructions, known to within `LARGEST_SPREAD`, and not a time: an emulator's milliseconds
    say nothing of a device's. The guest runs the script of the device kit.

    Args:
        content: a .tflite file.
        wheel: which runtime, of `WHEELS`.
        cpu: which CPU is emulated, of `cpus.CPUS`. What it lacks the runtime does without.

    Raises:
        InputError: no .tflite file that LiteRT takes, or the machine is not set up; the message says how to.
    """

    unit = "instructions"

    def __init__(self, content: bytes, wheel: str = DEFAULT_WHEEL, cpu: str = DEFAULT_CPU):
        if wheel not in WHEELS:
            raise InputError(f"The wheel must be one of {', '.join(WHEELS)}. Received: {wheel}")
        described = LiteRT(content, num_threads=1)
        self._content = content
        self._wheel = wheel
        self._machine = find_machine(cpu)
        self._shapes = described.input_shape, described.output_shape
        self.num_inputs, self.output_sizes = described.num_inputs, described.output_sizes
        self._sample = described.make_inputs()

    @property
    def name(self) -> str:
        """The wheel and the machine, with their versions."""
        return f"{self._wheel.replace('==', ' ')}, {self._machine.name}"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(batch, *sample), fixed by the file."""
        return self._shapes[0]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(batch, *output), fixed by the file."""
        return self._shapes[1]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Computes float32 outputs (n, *output) of float32 samples (n, *sample).

        Raises:
            InputError: no samples, samples of another shape than the file takes, or the runtime refuses the file.
        """
        check_batch(batch, self.input_shape)
        with self._kit(batch) as folder:
            outputs = folder / "outputs.npy"
            self._run_script(folder, f"--save_outputs={outputs}", "--rounds=0")
            return np.load(outputs, allow_pickle=False)

    def measure(self) -> float:
        """Instructions that one inference executes, a few thousand of Python around it included.

        The smaller count of two inferences, which may be `LARGEST_SPREAD` apart, after two that warm up; counted once,
        however often it is asked for.

        Raises:
            InputError: the runtime refuses the file.
        """
        return float(self._num_instructions)

    def estimate(self, threads: int = 1) -> Estimate:
        """Cycles that one inference takes on a board with such a CPU, by a model of it: see `cycles`.

        Args:
            threads: that share the work.

        Raises:
            InputError: the runtime refuses the file, or llvm-mca is not installed.
        """
        find_tools()
        return estimate(read_trace(self._count(watches=True)), self._machine.cpu, threads)

    def memory_bytes(self) -> int | None:
        """None: the memory of this process is mostly the emulator's."""
        return None

    @functools.cached_property
    def _num_instructions(self) -> int:
        marks = [int(line) for line in self._count(watches=False).split()]
        counts = [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]
        if len(counts) != _ROUNDS or max(counts) - min(counts) > LARGEST_SPREAD:
            raise RuntimeError(
                f"{_ROUNDS} inferences must execute the same instructions to within {LARGEST_SPREAD}. "
                f"Received: {counts}"
            )
        return min(counts)

    def _count(self, watches: bool) -> str:
        """What the emulator wrote about inferences, each between two marks."""
        with self._kit(self._sample) as folder:
            counted = folder / "counted"
            flags = "--marks", f"--warm_up={_WARM_UP}", f"--rounds={_ROUNDS}"
            self._run_script(folder, *flags, counted=counted, watches=watches)
            return counted.read_text()

    @contextmanager
    def _kit(self, inputs: np.ndarray) -> Iterator[pathlib.Path]:
        """A folder as the device kit's, without expected outputs."""
        with tempfile.TemporaryDirectory(prefix="reflow_tf.") as name:
            folder = pathlib.Path(name)
            shutil.copyfile(device_script.__file__, folder / "run.py")
            (folder / "model.tflite").write_bytes(self._content)
            np.savez(folder / "data.npz", inputs=inputs.astype(np.float32))
            yield folder

    def _run_script(
        self, folder: pathlib.Path, *flags: str, counted: pathlib.Path | None = None, watches: bool = False
    ) -> None:
        runtime = f"--runtime={WHEELS[self._wheel]}"
        done = self._machine.python([str(folder / "run.py"), runtime, "--json", *flags], folder, counted, watches)
        if done.returncode:
            reason = say_why("\n".join(done.stderr.strip().splitlines()[-3:]))
            raise failure_of(
                done.returncode,
                f"{self._wheel} must take the file. Received: {len(self._content)} bytes; {reason} "
                f"(exit code {done.returncode})",
            )
