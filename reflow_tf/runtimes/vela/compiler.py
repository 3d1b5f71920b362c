"""Vela run on one file, in a process of its own: a damaged file can end that process.

What it reports lies in a summary of one row and, with `--enable-debug-db`, in tables about every operator
(ethosu/vela/stats_writer.py of ethos-u-vela 5.2.0).
"""

import csv
import dataclasses
import functools
import importlib
import io
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence

from reflow_tf.errors import InputError, failure_of
from reflow_tf.foreign import say_why
from reflow_tf.targets.ethos_u import ACCELERATORS

Row = Mapping[str, str]

_OLDEST = (5, 2)  # the tables have these columns from then on
_IGNORES_SPARSE = "contains sparsity information"
_BITMAP_OPERATOR = b"TFLM_DECODE"  # Vela would leave it to the CPU and take what it computes for activations


@dataclasses.dataclass(frozen=True)
class Report:
    """What Vela said about one file.

    Attributes:
        version: of Vela.
        summary: the one row about the whole network.
        tables: name -> rows; 'source' are the operators of the file, 'perf' and 'perf_debug' what became of them.
        file_size_bytes: of the .tflite file that Vela wrote, for the device.
    """

    version: str
    summary: Row
    tables: Mapping[str, Sequence[Row]]
    file_size_bytes: int


def require_vela() -> str:
    """The version of Vela.

    Raises:
        InputError: it is not installed, or too old to report what is read here.
    """
    try:
        version = str(importlib.import_module("ethosu.vela").__version__)
    except ImportError as error:
        raise InputError(
            f"Arm's compiler for Ethos-U is needed: pip install '.[vela]' in the clone (ethos-u-vela 5.2.0). "
            f"Received: {say_why(error)}"
        ) from error
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _OLDEST:
        raise InputError(f"ethos-u-vela must be 5.2 or newer: pip install '.[vela]' in the clone. Received: {version}")
    return version


def run_vela(content: bytes, accelerator: str, system_config: str | None, memory_mode: str | None) -> Report:
    """Compiles a file and reads what Vela reports.

    Args:
        content: a .tflite file with dense weights.
        accelerator: one of `ACCELERATORS`.
        system_config: a section of Vela's Arm/vela.ini: clock, memories and their speed; None: what Vela takes.
        memory_mode: another one: what lies in which memory; None: what Vela takes.

    Raises:
        InputError: Vela is missing or fails, its last words in the message, or the weights are not dense.
    """
    if accelerator not in ACCELERATORS:
        raise InputError(f"The accelerator must be one of {', '.join(ACCELERATORS)}. Received: {accelerator}")
    version = require_vela()
    if _BITMAP_OPERATOR in content:
        raise _not_dense("weights stored as TFLM's bitmaps")
    options = {"accelerator-config": accelerator, "system-config": system_config, "memory-mode": memory_mode}
    with tempfile.TemporaryDirectory(prefix="reflow_tf.") as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(content)
        flags = [f"--{option}={value}" for option, value in options.items() if value is not None]
        said = _call([*flags, "--enable-debug-db", "--output-dir=out", "model.tflite"], folder)
        if _IGNORES_SPARSE in said:
            raise _not_dense("weights stored as sparse tensors, whose zeros Vela ignores")
        return _read_report(folder / "out", version)


def _call(arguments: Sequence[str], folder: pathlib.Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ethosu.vela", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode and _IGNORES_SPARSE not in done.stdout:
        code = done.returncode
        end = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        said = _last_words(done.stdout)
        raise failure_of(code, f"Vela must be able to compile the file. Received: {said} ({end})")
    return done.stdout


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Warning: ")]
    if not lines:
        return "a file that it says nothing about"
    return say_why(
        re.sub(r"^(vela: error: |[\w.]+(Error|Exception): )", "", lines[-1]).strip("'").removeprefix("Error: ")
    )


def _not_dense(received: str) -> InputError:
    return InputError(f"Vela compresses zeros by itself: the file must store its weights dense. Received: {received}")


def _read_report(folder: pathlib.Path, version: str) -> Report:
    (summary,) = folder.glob("model_summary_*.csv")
    rows = functools.partial(csv.DictReader, strict=True)
    root = xml.etree.ElementTree.parse(folder / "model_debug.xml").getroot()
    return Report(
        version=version,
        summary=next(iter(rows(io.StringIO(summary.read_text())))),
        tables={table.attrib["name"]: list(rows(io.StringIO((table.text or "").strip()))) for table in root},
        file_size_bytes=(folder / "model_vela.tflite").stat().st_size,
    )
