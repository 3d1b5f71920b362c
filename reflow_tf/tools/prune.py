r"""Prunes a trained Keras model, restores its signal, exports a sparse .tflite, and measures that very file.

    python -m reflow_tf.tools.prune --model=mobilenet_v2
    python -m reflow_tf.tools.prune --model=my_model.keras --data=photos/ --sparsity=0.75 --output_dir=out/

Writes model.keras, model.tflite, plan.json, masks.npz, config.json, report.json and report.html into --output_dir.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from reflow_tf.choices import (
    ALLOCATION_NAMES,
    BASES,
    BENCHMARKS,
    CPUS,
    EXISTING,
    IOS,
    QUANTIZATIONS,
    REPAIRS,
    REWRITES,
    TARGETS,
)
from reflow_tf.choices import BOARDS as BOARD_NAMES
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.sparsity import patterns
from reflow_tf.sparsity.channels import CHANNEL_CRITERIA, ELIMINATION
from reflow_tf.sparsity.criteria import CRITERIA
from reflow_tf.targets.ethos_u import ACCELERATORS
from reflow_tf.tools import command_line
from reflow_tf.tools.shared_flags import (
    JobFlags,
    define_ballast,
    define_device,
    define_memory_budget,
    define_metric,
    define_overwrite,
    define_prunable,
    define_target,
    define_task,
    name_model,
)

FLAGS = command_line.new_flags()

_PRUNE = PruneConfig()
_JOB = JobConfig(model="", output_dir="")
_AUTO = "auto"

JOB = JobFlags(FLAGS)
SPARSITY = flags.DEFINE_string(
    "sparsity",
    None,
    f"Fraction of zeros over the prunable kernels, in [0, 1). Default: {_PRUNE.requested_sparsity:g}, just over the "
    "two thirds that XNNPACK asks for; N:M patterns have their own. auto: the least that fits --flash_budget. "
    f"{EXISTING}: the zeros that the model came with, as of training sparse, and no others.",
    flag_values=FLAGS,
)
MAX_SIZE_BYTES = flags.DEFINE_integer(
    "max_size_bytes",
    None,
    "Instead of --sparsity: the least sparsity at which the .tflite has at most so many bytes; with --max_macs=auto, "
    "the widest network. Where the file that was written has more, the exit code is 3.",
    flag_values=FLAGS,
)
MIN_SPEEDUP = flags.DEFINE_float(
    "min_speedup",
    None,
    "Instead of --sparsity: the least sparsity at which the file is so many times as fast as the dense one, estimated "
    "from what layers like its own cost on --device; without one, where it gains less. "
    "With --benchmark=web it is measured, and where it falls short the exit code is 3.",
    flag_values=FLAGS,
)
PATTERN = flags.DEFINE_string(
    "pattern",
    _AUTO,
    "auto (what the target wants, layer by layer: for --device=arm pairs of outputs, block:2x1; otherwise single "
    "weights), unstructured, nm:N,M (N kept of M along the input channels, e.g. nm:2,4), block:OxI (output x input, "
    "e.g. block:4x1), or channel (with --max_macs whole channels are removed, on any device and in any precision; "
    "without it they are set to zero, and the file is as wide as before).",
    flag_values=FLAGS,
)
MAX_MACS = flags.DEFINE_string(
    "max_macs",
    None,
    "Channels are removed until at most this share of the network's multiply-adds is left. "
    "Alone it takes --pattern=channel; with a --sparsity, weights of what is left are zeroed then. Which channels is "
    "measured on calibration inputs; follow it with --repair=least_squares or auto. auto: as many as "
    "--max_size_bytes or, for a microcontroller, --flash_budget and --ram_budget ask for.",
    flag_values=FLAGS,
)
CHANNEL_MULTIPLE = flags.DEFINE_integer(
    "channel_multiple",
    _PRUNE.channel_multiple,
    "Layers that get narrower have a multiple of so many channels. Default: "
    + ", ".join(f"{target.channel_multiple} for {target.name}" for target in TARGETS.values())
    + ".",
    flag_values=FLAGS,
)
CRITERION = flags.DEFINE_string(
    "criterion",
    _PRUNE.criterion,
    f"Which weights matter: {', '.join(CRITERIA)}; magnitude by default. Of channels that --max_macs removes: "
    f"{', '.join(CHANNEL_CRITERIA)}; {ELIMINATION} by default. All but magnitude are measured on the calibration "
    "inputs.",
    flag_values=FLAGS,
)
ALLOCATION = flags.DEFINE_string(
    "allocation",
    _PRUNE.allocation,
    f"How the zeros are shared out over layers: {', '.join(ALLOCATION_NAMES)}. auto measures, on calibration "
    "inputs, what each layer's sparsity costs the network's outputs, and weighs it with what --sparsity (weights), "
    "--max_size_bytes (bytes) or --min_speedup (what layers cost there) counts; that takes minutes.",
    flag_values=FLAGS,
)
PRUNABLE = define_prunable(FLAGS)
TARGET = define_target(FLAGS)
DEVICE = define_device(FLAGS)
BASIS = flags.DEFINE_string(
    "basis",
    _PRUNE.basis,
    f"{', '.join(BASES)}. auto: before least_squares for --target=xnnpack, channels that are only added up and "
    "multiplied by kernels (residual streams of MobileNetV2 and its descendants) are turned into a basis in which "
    "zeros cost less; the dense network computes what it did. kept: they stay as they were trained.",
    flag_values=FLAGS,
)
MEMORY_BUDGET = define_memory_budget(FLAGS)
REPAIR = flags.DEFINE_string(
    "repair",
    None,
    f"What restores the signal, in this order, with commas (least_squares,reflow): {', '.join(REPAIRS)}. reflow moves "
    "no weight; moments is its counterpart for layers without batch norm; distill trains for minutes. auto: of the "
    "chains without training, the one that does best on held-out calibration inputs. none and auto stand alone. "
    f"Default: {_PRUNE.requested_repair}, or none for --sparsity={EXISTING}.",
    flag_values=FLAGS,
)
QUANTIZE = flags.DEFINE_string(
    "quantize",
    None,
    f"{', '.join(QUANTIZATIONS)}. int8: full integer, calibrated on the calibration inputs after the repair. Default: "
    + ", ".join(f"{target.quantize} for {target.name}" for target in TARGETS.values())
    + ".",
    flag_values=FLAGS,
)
IO = flags.DEFINE_string(
    "io",
    None,
    f"For int8: {', '.join(IOS)}: what the file takes and gives. float: float32, as the model does, so that apps and "
    "browsers can swap it in. Default: float for cpu, int8 for the others.",
    flag_values=FLAGS,
)
REWRITE = flags.DEFINE_string(
    "rewrite",
    None,
    f"{', '.join(REWRITES)}. exact: change the file's graph, not what it computes, so that the target can gain. "
    + "Default: "
    + ", ".join(f"{target.rewrite} for {target.name}" for target in TARGETS.values())
    + ".",
    flag_values=FLAGS,
)
BALLAST = define_ballast(FLAGS)
FLASH_BUDGET = flags.DEFINE_integer(
    "flash_budget",
    None,
    "Bytes of flash that the network may take on a microcontroller: for --target=tflm the file, without TFLM's own "
    "code; for cortex_m the generated code and constants; for ethos_u Vela's estimate. Beyond them the results are "
    "still written, and the exit code is 3. For tflm, a sparsity of auto is the least that fits; --max_macs=auto "
    "removes channels until flash and RAM do.",
    flag_values=FLAGS,
)
RAM_BUDGET = flags.DEFINE_integer(
    "ram_budget",
    None,
    "Bytes of RAM that it may need there; beyond them the exit code is 3. For tflm it is the arena on this 64-bit "
    "machine, and on a 32-bit microcontroller less.",
    flag_values=FLAGS,
)
BOARDS = flags.DEFINE_list(
    "boards",
    list(_JOB.boards),
    f"For --target=cortex_m: where instructions are counted, one or more of {', '.join(BOARD_NAMES)}; flash is that of "
    "the first.",
    flag_values=FLAGS,
)
ACCELERATOR = flags.DEFINE_string(
    "accelerator",
    _JOB.accelerator,
    f"For --target=ethos_u: what Vela estimates for: {', '.join(ACCELERATORS)}.",
    flag_values=FLAGS,
)
EXPORT_BATCH_SIZE = flags.DEFINE_integer(
    "export_batch_size", _JOB.export_batch_size, "The file's fixed batch size.", flag_values=FLAGS
)
BENCHMARK = flags.DEFINE_list(
    "benchmark",
    [],
    f"Measure the dense and the pruned file side by side, in one or both of {', '.join(BENCHMARKS)}: milliseconds in "
    "LiteRT.js in a browser, instructions on an emulated ARM CPU. reflow_tf.tools.setup_runtime sets each up, once. "
    "Default: neither.",
    flag_values=FLAGS,
)
CPU = flags.DEFINE_string(
    "cpu", _JOB.cpu, f"For --benchmark=aarch64: what is emulated, of {', '.join(CPUS)}.", flag_values=FLAGS
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the results go. Default: ./reflow_out/<model>.", flag_values=FLAGS
)
OVERWRITE = define_overwrite(FLAGS, "Replace the results of an earlier run in --output_dir.")
TASK = define_task(FLAGS)
MAX_ACCURACY_DROP = flags.DEFINE_float(
    "max_accuracy_drop",
    None,
    "Percentage points that the file's top-1 (without labels: agreement) may lie below the dense model's; with "
    "--task=fidelity: its relative error in %. Beyond it the results are still written, and the exit code is 3.",
    flag_values=FLAGS,
)
METRIC = define_metric(FLAGS, "The dense model, the repaired one and the file are scored by it.")
MAX_METRIC_DROP = flags.DEFINE_float(
    "max_metric_drop",
    None,
    "How far the file's --metric may lie below the dense model's, in its own units; for a labelled map of classes "
    "without --metric, the mean IoU in [0, 1]. Beyond it the results are still written, and the exit code is 3.",
    flag_values=FLAGS,
)


def read_config() -> JobConfig:
    """The parsed flags as a checked configuration; raises InputError."""
    given = JOB.read()
    return JobConfig(
        **given,
        output_dir=OUTPUT_DIR.value or f"reflow_out/{name_model(given['model'])}",
        prune=PruneConfig(
            sparsity=None if SPARSITY.value == _AUTO else _read_sparsity(SPARSITY.value),
            max_size_bytes=MAX_SIZE_BYTES.value if SPARSITY.value != _AUTO else _require_flash_budget(),
            max_size_flag="max_size_bytes" if SPARSITY.value != _AUTO else "flash_budget",
            min_speedup=MIN_SPEEDUP.value,
            max_macs=_read_share(MAX_MACS.value),
            channel_multiple=CHANNEL_MULTIPLE.value,
            pattern=None if PATTERN.value == _AUTO else patterns.parse(PATTERN.value),
            criterion=CRITERION.value,
            allocation=ALLOCATION.value,
            target=command_line.require(TARGET),
            prunable=PRUNABLE.value,
            device=DEVICE.value,
            ballast=BALLAST.value,
            basis=BASIS.value,
            memory_budget=MEMORY_BUDGET.value,
            repair=REPAIR.value,
            task=TASK.value,
        ),
        quantize=QUANTIZE.value,
        io=IO.value,
        rewrite=REWRITE.value,
        benchmark=tuple(BENCHMARK.value),
        cpu=CPU.value,
        export_batch_size=EXPORT_BATCH_SIZE.value,
        overwrite=OVERWRITE.value,
        max_accuracy_drop=MAX_ACCURACY_DROP.value,
        metric=METRIC.value,
        max_metric_drop=MAX_METRIC_DROP.value,
        flash_budget=FLASH_BUDGET.value,
        ram_budget=RAM_BUDGET.value,
        boards=tuple(BOARDS.value),
        accelerator=ACCELERATOR.value,
    )


def _read_sparsity(text: str | None) -> float | str | None:
    try:
        return text if text in (None, EXISTING) else float(text)
    except ValueError:
        raise InputError(f"--sparsity must be a number, {_AUTO} or {EXISTING}. Received: {text}") from None


def _read_share(text: str | None) -> float | str | None:
    try:
        return text if text in (None, _AUTO) else float(text)
    except ValueError:
        raise InputError(f"--max_macs must be a number, or {_AUTO}. Received: {text}") from None


def _require_flash_budget() -> int:
    """The limit of the file's size where the sparsity is to be found."""
    if MAX_MACS.value is not None:
        raise InputError(
            f"--sparsity={_AUTO} finds the zeros that --flash_budget asks for, and --max_macs removes channels: leave "
            f"one of them out, or give --sparsity a number. "
            f"Received: --sparsity={_AUTO} --max_macs={MAX_MACS.value}"
        )
    if FLASH_BUDGET.value is None or MAX_SIZE_BYTES.value is not None or TARGET.value != "tflm":
        given = [f"--{flag.name}={flag.value}" for flag in (TARGET, FLASH_BUDGET, MAX_SIZE_BYTES) if flag.value]
        raise InputError(
            f"--sparsity={_AUTO} needs --target=tflm and --flash_budget, which is the limit then, and no "
            f"--max_size_bytes. Received: {' '.join(given)}"
        )
    return FLASH_BUDGET.value


def prune(job: JobConfig, command: Sequence[str]) -> int:
    """Does the job and shows what came of it; returns the exit code."""
    from reflow_tf.jobs import pipeline  # TensorFlow takes seconds to import: bad flags answer before it
    from reflow_tf.report import device, limits
    from reflow_tf.report.terminal import print_summary
    from reflow_tf.report.wording import SPACE

    report = pipeline.run(job, command)
    with command_line.printing():
        print_summary(report)
        print(f"\nWrote {pathlib.Path(job.output_dir)}/: open report.html in a browser.")
    unmet = []
    if report["gate"]["passed"] is False:
        drop, limit = report["gate"]["drop_points"], report["gate"]["max_accuracy_drop"]
        unmet.append(f"the file lost {drop:.2f} points; --max_accuracy_drop allows {limit:g}")
    if (metric := limits.metric_sentence(report)) is not None and report["metric"]["passed"] is False:
        unmet.append(metric.replace(SPACE, " "))
    if (budget := limits.budget_sentence(report)) is not None and report["budget"]["passed"] is False:
        unmet.append(budget.replace(SPACE, " "))
    unmet += [sentence.replace(SPACE, " ") for sentence in device.differences(report) + device.misses(report)]
    for reason in unmet:
        print(f"error: {reason}", file=sys.stderr)
    return command_line.UNMET if unmet else command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    argv = sys.argv if argv is None else argv
    return command_line.run(
        read_config,
        lambda job: prune(job, ["python", "-m", "reflow_tf.tools.prune", *argv[1:]]),
        __doc__,
        FLAGS,
        argv,
        unmet="the file missed --max_accuracy_drop, --max_metric_drop or a budget (size, speed, flash, RAM), or a "
        "microcontroller computes something else with it",
    )


if __name__ == "__main__":
    sys.exit(main())
