"""A folder that proves a file on a device: the file, real inputs, expected outputs, a script, and how to run it."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from reflow_tf.choices import check_between
from reflow_tf.errors import InputError
from reflow_tf.export.constants import has_bitmaps
from reflow_tf.export.flatbuffer import parse
from reflow_tf.export.half_precision import allows_float16, stores_sparse
from reflow_tf.export.operators import read_operators
from reflow_tf.job_config import EvaluateConfig
from reflow_tf.jobs.benchmark import choose_tolerance
from reflow_tf.jobs.finished import draw_inputs
from reflow_tf.report.folder import Content, OutputFolder
from reflow_tf.runtimes import device_script
from reflow_tf.runtimes.litert import LiteRT, load_tflite, read_tflite

_FILES = frozenset(("model.tflite", "data.npz", "run.py", "README.md"))


def write_device_kit(
    source: EvaluateConfig,
    output_dir: str,
    *,
    baseline: str | None = None,
    num_inputs: int = 4,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes the folder, or nothing of it, and returns its path.

    Args:
        source: the .tflite file and the images; they are prepared as for its evaluation.
        output_dir: the folder.
        baseline: path of another .tflite file, to be timed in turns with the first.
        num_inputs: images, spread evenly over all.
        overwrite: whether a folder that an earlier call wrote may be replaced.

    Raises:
        InputError: a file or the data cannot be used, there are too few images, or the folder cannot be written.
    """
    check_between("num_inputs", num_inputs, 1)
    folder = OutputFolder(output_dir, _FILES, overwrite, optional=frozenset((device_script.BASELINE,)))
    folder.require_outside({"model": source.model, "data": source.data, "baseline": baseline})
    content = read_tflite(pathlib.Path(source.model).expanduser())
    if has_bitmaps(content):
        raise InputError(
            f"A device kit runs files in LiteRT, and this one is for TFLM: firmware takes it. Received: {source.model}"
        )
    runtime = load_tflite(pathlib.Path(source.model).expanduser(), num_threads=1)
    inputs = draw_inputs(source, runtime, read_operators(content), num_inputs)
    files: dict[str, Content] = {
        "model.tflite": content,
        "run.py": pathlib.Path(device_script.__file__).read_text(encoding="utf-8"),
        "README.md": describe(runtime, num_inputs, baseline is not None, content),
    }
    arrays = {"inputs": inputs, "outputs": runtime.run(inputs)}
    if not np.isfinite(arrays["outputs"]).all():
        raise InputError(
            f"--model must give finite outputs, to be checked against. Received: {source.model}, NaN or inf"
        )
    if baseline:
        files[device_script.BASELINE] = read_tflite(pathlib.Path(baseline).expanduser())
        arrays["baseline_outputs"] = _load_baseline(baseline, runtime.input_shape).run(inputs)
    files["data.npz"] = _pack(arrays)
    folder.write(files)
    return folder.path


def _load_baseline(path: str, input_shape: tuple[int, ...]) -> LiteRT:
    baseline = load_tflite(pathlib.Path(path).expanduser(), num_threads=1)
    if baseline.input_shape != input_shape:
        raise InputError(
            f"--baseline must take inputs of the model's shape {input_shape}. Received: {baseline.input_shape}"
        )
    return baseline


def _pack(arrays: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def describe(runtime: LiteRT, num_inputs: int, has_baseline: bool, content: bytes) -> str:
    """The README of the folder."""
    baseline, in_float16 = device_script.BASELINE, allows_float16(content)
    tolerance = choose_tolerance(content) or device_script.INTEGER_TOLERANCE
    arithmetic = _IN_FLOAT16 if in_float16 else _NEVER_IN_FLOAT16 if stores_sparse(parse(content)) else ""
    return _README.format(
        input_shape="x".join(map(str, runtime.input_shape)),
        output_shape="x".join(map(str, runtime.output_shape)),
        num_inputs=num_inputs,
        expected=runtime.name,
        tolerance=f"{tolerance:g}",
        arithmetic=arithmetic,
        baseline=f" --baseline={baseline}" if has_baseline else "",
        files=" ".join(sorted(_FILES | {baseline} if has_baseline else _FILES)),
        baseline_file=f"| {baseline} | another file, to be timed in turns with the first |\n" if has_baseline else "",
    )


_IN_FLOAT16 = """
The file lets CPUs compute in float16 that can (ARMv8.2 and newer: a Raspberry Pi 5, phones since 2018). There outputs
differ more, and no more than that is checked; elsewhere it computes in float32.
"""
_NEVER_IN_FLOAT16 = """
**Never force float16 arithmetic on this file** (`TFLITE_XNNPACK_DELEGATE_FLAG_FORCE_FP16`, or `--xnnpack_force_fp16` of
a benchmark): it stores weights sparse, which XNNPACK then reads in the wrong type, and gives NaN or crashes.
"""

_README = """\
# Is this file right, and how fast is it, on your device?

| file | what it is |
|---|---|
| model.tflite | the network: {input_shape} in, {output_shape} out |
{baseline_file}\
| data.npz | {num_inputs} real inputs, as the network takes them, and the outputs that {expected} gave for them |
| run.py | checks the outputs (largest difference at most {tolerance} of the largest output), then times the file |

`run.py` needs Python 3.9 or newer, numpy, and ai-edge-litert or tflite-runtime. It exits with 0 if the outputs agree
and with 1 if they do not. `python run.py --help` lists its flags; `--json` is for scripts.

A 64-bit system is needed for sparse weights to be fast: `uname -m` must say `aarch64`.
{arithmetic}
## Raspberry Pi (64-bit Raspberry Pi OS), or any other ARM Linux

Copy this folder there (`scp -r . pi@raspberrypi.local:kit`), then on the Pi:

    cd kit
    python3 -m venv venv
    . venv/bin/activate
    pip install 'ai-edge-litert==1.4.0'      # Python 3.9 to 3.12; with Python 3.13: pip install ai-edge-litert
    python run.py{baseline}

Numbers worth keeping need a quiet device: nothing else running, a cooler, and `vcgencmd get_throttled` at `0x0`.

## Android phone (64-bit) over adb, nothing to install on it

The ARM wheels are made for Debian's C library and not for Android's, so they travel with a Python of their own. On the
computer, once `python -m reflow_tf.tools.setup_runtime --runtime=aarch64` has printed its FOLDER:

    tar -C FOLDER -czf python.tgz root/lib root/usr/lib root/usr/bin/python3.11 wheels     # 45 MB
    adb shell mkdir -p /data/local/tmp/kit
    adb push python.tgz {files} /data/local/tmp/kit
    adb shell
    cd /data/local/tmp/kit && tar -xzf python.tgz
    LIBRARIES=$PWD/root/lib/aarch64-linux-gnu:$PWD/root/usr/lib/aarch64-linux-gnu
    PYTHONPATH=$PWD/wheels ./root/lib/ld-linux-aarch64.so.1 --library-path $LIBRARIES \\
        root/usr/bin/python3.11 -S run.py{baseline}

`taskset 80` before the last command keeps it on the eighth core, a big one on many phones: a thread that wanders
between big and small cores gives two numbers. Let the phone cool down, and keep its screen on.

## What was tested

The file, the script and both runtimes (ai-edge-litert 1.4.0, tflite-runtime 2.14.0), and the Python that is sent to a
phone, under QEMU's emulation of a 64-bit ARM CPU: right outputs, fewer instructions. No Raspberry Pi and no
phone was at hand. Under the emulation, milliseconds and memory mean nothing; on the device they are what you are after.
"""
