"""Checks and times a .tflite file on the device itself.

    python3 run.py                                        # outputs right? how long does one inference take?
    python3 run.py --baseline=dense.tflite --threads=4    # and against another file, in turns

Needs Python 3.9 or newer, numpy, and ai_edge_litert or tflite_runtime. Beside it lie model.tflite and data.npz with
`inputs` and, computed by LiteRT on the machine that made the folder, `outputs` and, if there is a baseline.tflite, its
`baseline_outputs`. Exit code 0: the outputs agree; 1: they do not.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from typing import Any, Callable  # noqa: UP035, collections.abc.Callable is not subscriptable in every Python 3.9

import numpy as np

RUNTIMES = ("ai_edge_litert", "tflite_runtime")
BASELINE = "baseline.tflite"

# XNNPACK leaves sparse weights to its dense kernels there, if the CPU has AVX: src/xnnpack/hardware-config.h. In lower
# case: Windows says AMD64.
_NO_SPARSE_KERNELS = ("x86_64", "amd64", "i386", "i486", "i586", "i686", "x86")

# The same float32 network on another kind of CPU sums in another order: about 1e-6. A wrong kernel is off by far more.
RELATIVE_TOLERANCE = 1e-3
# In float16, for files that allow it: measured over MobileNetV2, 2e-2. What overflows gives NaN.
FLOAT16_TOLERANCE = 0.1
_ALLOWS_FLOAT16 = b"fp16accfp16"  # the metadata that does
# Integer networks round at every layer, and CPUs and versions do not all round alike: a residual network between
# ai-edge-litert on x86 and tflite-runtime 2.14 on ARM, 0.032, five steps of its output.
INTEGER_TOLERANCE = 0.1
_INTEGERS = ("int8", "uint8", "int16")


def find_runtime(name: str) -> Any:
    """The module whose `Interpreter` runs the files: the one asked for, or whichever is installed."""
    reasons = []
    for candidate in RUNTIMES if name == "auto" else (name,):
        try:
            return importlib.import_module(candidate + ".interpreter")
        except ImportError as error:
            reasons.append(f"{candidate}: {error}")
    sys.exit(f"No runtime: pip install ai-edge-litert. ({'; '.join(reasons)})")


def load(runtime: Any, path: str, num_threads: int) -> Any:
    """An interpreter, ready to run."""
    interpreter = runtime.Interpreter(model_path=path, num_threads=num_threads)
    interpreter.allocate_tensors()
    return interpreter


def compute(interpreter: Any, inputs: np.ndarray) -> np.ndarray:
    """Float32 outputs of float32 inputs, in pieces of the file's own batch; the last piece is filled up with zeros."""
    given, results = interpreter.get_input_details(), interpreter.get_output_details()
    step, outputs = int(given[0]["shape"][0]), []
    for start in range(0, len(inputs), step):
        part = inputs[start : start + step]
        piece = np.zeros((step, *inputs.shape[1:]), np.float32)
        piece[: len(part)] = part
        for details, values in zip(given, to_types(piece, given)):  # noqa: B905, strict is of Python 3.10
            interpreter.set_tensor(details["index"], values)
        interpreter.invoke()
        found = [interpreter.get_tensor(details["index"]) for details in results]
        outputs.append(to_floats(found, results)[: len(part)])
    return np.concatenate(outputs)


def join(outputs: list[np.ndarray]) -> np.ndarray:
    """Several outputs as one, a row an input; a single one as it is."""
    if len(outputs) == 1:
        return outputs[0]
    return np.concatenate([output.reshape(len(output), -1) for output in outputs], axis=1)


def split(batch: np.ndarray, given: list[Any]) -> list[np.ndarray]:
    """What each input takes of a batch, which has several in one row; a single one all of it."""
    if len(given) == 1:
        return [batch]
    sizes = [int(np.prod(details["shape"][1:])) for details in given]
    parts = np.split(batch, np.cumsum(sizes)[:-1], axis=1)
    return [part.reshape(len(part), *details["shape"][1:]) for part, details in zip(parts, given)]  # noqa: B905


def to_types(batch: np.ndarray, given: list[Any]) -> list[np.ndarray]:
    """A batch as the inputs of a file take it."""
    return [to_type(part, details) for part, details in zip(split(batch, given), given)]  # noqa: B905


def to_floats(outputs: list[np.ndarray], results: list[Any]) -> np.ndarray:
    """What the outputs of a file gave, as one array of float32."""
    return join([to_float(values, details) for values, details in zip(outputs, results)])  # noqa: B905


def to_type(values: np.ndarray, details: Any) -> np.ndarray:
    """Float32 as the file takes it; integers through their scale and zero point."""
    dtype = np.dtype(details["dtype"])
    if dtype.kind in "fb":
        return values.astype(dtype)
    scale, zero_point = details["quantization"]
    limits = np.iinfo(dtype)
    steps = np.rint(values / np.float32(scale)) if scale else np.rint(values)
    return np.clip(steps + zero_point, limits.min, limits.max).astype(dtype)


def to_float(values: np.ndarray, details: Any) -> np.ndarray:
    """What the file gave, as float32."""
    scale, zero_point = details["quantization"]
    if values.dtype.kind == "f" or not scale:
        return values.astype(np.float32)
    return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def has_sparse_kernels() -> bool:
    """Whether XNNPACK runs sparse weights on this machine with kernels of their own."""
    return platform.machine().lower() not in _NO_SPARSE_KERNELS


def find_tolerance(tensors: list[Any], content: bytes) -> float:
    """By how much of the largest output a file may differ between machines, by what it computes in."""
    if any(np.dtype(one["dtype"]).name in _INTEGERS and one["quantization"][0] for one in tensors):
        return INTEGER_TOLERANCE
    return FLOAT16_TOLERANCE if _ALLOWS_FLOAT16 in content else RELATIVE_TOLERANCE


def check(outputs: np.ndarray, expected: np.ndarray, interpreter: Any, path: str) -> dict[str, Any]:
    """Whether the outputs of a file are those that are expected, and by how much they differ at most."""
    with open(path, "rb") as file:
        relative = find_tolerance(interpreter.get_tensor_details(), file.read())
    largest = float(np.abs(outputs - expected).max())
    tolerance = relative * float(np.abs(expected).max())
    return {"outputs_agree": largest <= tolerance, "largest_difference": largest, "tolerance": tolerance}


def comes_with(baseline: str | None, data: str) -> bool:
    """Whether this is the baseline that lies beside data.npz, and not another one: its outputs are expected there."""
    own = os.path.join(os.path.dirname(os.path.abspath(data)), BASELINE)
    return baseline is not None and os.path.isfile(own) and os.path.samefile(baseline, own)


def is_right(result: dict[str, Any]) -> bool:
    """Whether no file gave other outputs than those that are expected of it."""
    return all(checked.get("outputs_agree", True) for checked in (result, result.get("baseline_check", {})))


def time_in_turns(runs: list[Callable[[], Any]], warm_up: int, rounds: int, clock: Callable[[], float]) -> np.ndarray:
    """Milliseconds (rounds, runs): in each round every run once, in an order that turns around from round to round."""
    for _ in range(warm_up):
        for run in runs:
            run()
    times = np.zeros((rounds, len(runs)))
    gc.collect()
    gc.disable()
    for turn in range(rounds):
        for index in range(len(runs))[:: 1 if turn % 2 == 0 else -1]:
            start = clock()
            runs[index]()
            times[turn, index] = clock() - start
    gc.enable()
    return times * 1e3


def time_files(interpreters: list[Any], options: argparse.Namespace, agree: bool) -> dict[str, Any]:
    """Milliseconds of one inference of the model and, if there is one, of the baseline; and their ratio, if it counts.

    A file whose outputs are wrong may be fast because it does something else.
    """
    runs = [interpreter.invoke for interpreter in interpreters]
    times = time_in_turns(runs, options.warm_up, options.rounds, time.perf_counter)
    result: dict[str, Any] = {"model": quartiles(times[:, 0], "_ms")}
    if options.baseline:
        result["baseline"] = quartiles(times[:, 1], "_ms")
        if not agree:
            result["note"] = "no speed-up is stated: outputs are wrong"
        elif not has_sparse_kernels():
            result["note"] = f"no speed-up is stated: XNNPACK has no sparse kernels for {platform.machine()}"
        else:
            result["speedup"] = quartiles(times[:, 1] / times[:, 0], "")
    return result


def quartiles(values: np.ndarray, unit: str) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {f"lower_quartile{unit}": low, f"median{unit}": middle, f"upper_quartile{unit}": high}


def mark() -> float:
    """Stands in for the clock: a system call that nothing else makes, for an emulator that counts between two."""
    return os.getpgid(0) * 0.0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, as one result."""
    runtime = find_runtime(options.runtime)
    data = np.load(options.data, allow_pickle=False)
    paths = [options.model, *([options.baseline] if options.baseline else [])]
    interpreters = [load(runtime, path, options.threads) for path in paths]
    outputs = [compute(interpreter, data["inputs"]) for interpreter in interpreters]
    if options.save_outputs:
        np.save(options.save_outputs, outputs[0])
    result = describe(runtime, options)
    if "outputs" in data:
        result.update(check(outputs[0], data["outputs"], interpreters[0], options.model))
    if "baseline_outputs" in data and comes_with(options.baseline, options.data):
        result["baseline_check"] = check(outputs[1], data["baseline_outputs"], interpreters[1], options.baseline)
    if options.marks:
        time_in_turns([interpreter.invoke for interpreter in interpreters], options.warm_up, options.rounds, mark)
    elif options.rounds:
        result.update(time_files(interpreters, options, is_right(result)))
    # Of the whole process, Python included; Linux counts in KiB.
    result["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def describe(runtime: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What ran, on what."""
    name = runtime.__name__.split(".")[0]
    return {
        "runtime": f"{name} {importlib.metadata.version(name.replace('_', '-'))}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
        "threads": options.threads,
        "warm_up": options.warm_up,
        "rounds": options.rounds,
    }


def to_text(result: dict[str, Any]) -> str:
    """A few lines for a person."""
    lines = ["{runtime} on {machine}; threads: {threads}".format(**result)]
    lines.append(describe_check("outputs", result))
    if "baseline" in result:
        lines.append(describe_check("outputs of the baseline", result.get("baseline_check", {})))
    for name in ("model", "baseline"):
        if name in result:
            times = "median {median_ms:.2f} ms, quartiles {lower_quartile_ms:.2f} to {upper_quartile_ms:.2f}"
            lines.append(f"{name}: {times.format(**result[name])}, {result['rounds']} rounds")
    if "speedup" in result:
        ratio = "{median:.2f} times as fast as the baseline, quartiles {lower_quartile:.2f} to {upper_quartile:.2f}"
        lines.append(ratio.format(**result["speedup"]))
    if "note" in result:
        lines.append(result["note"])
    lines.append(f"peak memory of this process: {result['peak_memory_bytes'] / 2**20:.0f} MiB")
    return "\n".join(lines)


def describe_check(what: str, checked: dict[str, Any]) -> str:
    """One line for a person."""
    if "outputs_agree" not in checked:
        return f"{what} not checked: data.npz holds none to compare with"
    verdict = "agree" if checked["outputs_agree"] else "DIFFER"
    return "{} {}: largest difference {largest_difference:.2g} (tolerance {tolerance:.2g})".format(
        what, verdict, **checked
    )


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    folder = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description="Checks and times a .tflite file on this device.", allow_abbrev=False)
    parser.add_argument("--model", default=os.path.join(folder, "model.tflite"), help="the file to check and time")
    parser.add_argument("--data", default=os.path.join(folder, "data.npz"), help="inputs and expected outputs")
    parser.add_argument("--baseline", help="another .tflite file, timed in turns with the model")
    parser.add_argument("--runtime", choices=("auto", *RUNTIMES), default="auto", help="what runs it (default: auto)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--warm_up", type=int, default=5, help="runs before the clock starts (default: 5)")
    parser.add_argument("--rounds", type=int, default=50, help="timed runs of each file; 0: none (default: 50)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--save_outputs", help="write the outputs to this .npy file")
    parser.add_argument(
        "--marks", action="store_true", help="call getpgid() instead of reading the clock, for emulators that count"
    )
    options = parser.parse_args(arguments)
    for path in (options.model, options.data, *([options.baseline] if options.baseline else [])):
        if not os.path.isfile(path):
            parser.error(f"there is no file {path}")
    for name, least in (("threads", 1), ("warm_up", 0), ("rounds", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Checks, times, prints; returns the exit code."""
    options = read_options(arguments)
    result = run(options)
    print(json.dumps(result, indent=2) if options.json else to_text(result))
    return 0 if is_right(result) else 1


if __name__ == "__main__":
    sys.exit(main())
