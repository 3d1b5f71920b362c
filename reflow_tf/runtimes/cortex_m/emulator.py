"""QEMU runs an image on samples; its plugin says how many instructions were executed, and in which functions."""

import collections
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reflow_tf.errors import Breakdown, failure_of
from reflow_tf.runtimes import installation
from reflow_tf.runtimes.cortex_m.toolchain import Image, data_file

_GCC_OPTIONS = ("-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden")
_QEMU_OPTIONS = ("-display", "none", "-serial", "none", "-monitor", "none", "-no-reboot")
_STARTING_SECONDS, _SECONDS_PER_SAMPLE = 60, 20
# Of main.c: what stands around the model's function, between the two marks.
_AROUND = {"count_begin", "count_one", "count_end"}


@dataclass(frozen=True)
class Execution:
    """What a program did.

    Attributes:
        outputs: int8 (n, output bytes).
        stack_bytes: how far the stack reached, below what main() uses.
        profiles: of each sample, function -> instructions executed in it; empty if nobody counted.
    """

    outputs: np.ndarray
    stack_bytes: int
    profiles: Sequence[Mapping[str, int]]


def emulator_name(image: Image) -> str:
    """'QEMU', its version, and the board and CPU that it plays."""
    version = installation.call(["qemu-system-arm", "--version"], "Asking QEMU for its version")
    return f"QEMU {version.split('version ')[1].split()[0]} as {image.board.machine} ({image.board.cpu})"


def execute(image: Image, samples: np.ndarray, num_output_bytes: int, count: bool = False) -> Execution:
    """Runs an image on samples, one after the other.

    Args:
        image: to run.
        samples: int8 (n, input bytes).
        num_output_bytes: of one output.
        count: whether to count instructions, which takes longer.

    Raises:
        InputError: the program crashed, or did not come to its end; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="reflow_tf.") as name:
        folder = pathlib.Path(name)
        (folder / "image.elf").write_bytes(image.elf)
        (folder / "inputs.bin").write_bytes(np.ascontiguousarray(samples, np.int8).tobytes())
        plugin = _compile_plugin(image, folder) if count else []
        _run(image, plugin, len(samples), folder)
        outputs = np.frombuffer((folder / "outputs.bin").read_bytes(), np.int8).reshape(len(samples), num_output_bytes)
        (used,) = np.frombuffer((folder / "stack.bin").read_bytes(), "<u4")
        profiles = _read_profiles(image, (folder / "counted").read_text()) if count else []
    return Execution(outputs.copy(), int(used), profiles)


def _run(image: Image, plugin: Sequence[str], num_samples: int, folder: pathlib.Path) -> None:
    command = ["qemu-system-arm", "-M", image.board.machine, *_QEMU_OPTIONS, *plugin]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", "image.elf"]
    seconds = _STARTING_SECONDS + _SECONDS_PER_SAMPLE * num_samples
    must = f"The program must come to its end on {image.board.machine} ({image.board.cpu})"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise Breakdown(f"{must}. Received: nothing after {seconds} seconds for {num_samples} samples") from error
    if done.returncode:
        said = " | ".join((done.stderr + done.stdout).strip().splitlines()[:4])
        text = f"{must}. Received: exit code {done.returncode}; {_name_places(image, said)}"
        raise failure_of(done.returncode, text)


def _name_places(image: Image, said: str) -> str:
    """Adds the names of functions to the addresses that the fault handler gave."""

    def name(found: re.Match[str]) -> str:
        address = int(found[1], 16)
        function = image.function_at(address)
        known = function is not None and address <= function.address + function.size_bytes
        return f"{found[0]} ({function.name})" if function is not None and known else found[0]

    return re.sub(r"\b(?:pc|lr) 0x([0-9a-f]{8})", name, said).strip()


def _compile_plugin(image: Image, folder: pathlib.Path) -> list[str]:
    """The options of QEMU for counting into a file `counted`."""
    source, plugin = folder / "count_instructions.c", folder / "count_instructions.so"
    source.write_bytes(data_file(source.name))
    installation.call(["gcc", *_GCC_OPTIONS, "-o", plugin, source], "Compiling QEMU's plugin", folder)
    marks = ",".join(f"{mark}={image.address_of(f'count_{mark}'):x}" for mark in ("begin", "end"))
    return ["-plugin", f"file={plugin},{marks}", "-d", "plugin", "-D", "counted"]


def _read_profiles(image: Image, counted: str) -> list[Mapping[str, int]]:
    profiles: list[Mapping[str, int]] = []
    current: collections.Counter[str] = collections.Counter()
    for line in counted.splitlines():
        if line == "end":
            profiles.append(dict(current.most_common()))
            current = collections.Counter()
            continue
        address, executed = line.split()
        function = image.function_at(int(address, 16))
        name = address if function is None else function.name
        if name not in _AROUND:
            current[name] += int(executed)
    return profiles
