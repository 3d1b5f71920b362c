r"""Compares ways to choose weights and to update the others, each alone and with REFLOW after it, in one table.

    python -m reflow_tf.tools.compare --model=mobilenet_v2
    python -m reflow_tf.tools.compare --model=my_model.keras --data=photos/ --methods=cbs,obs+obs --sparsities=0.7,0.8

A method is a criterion and, after plus signs, the repairs before REFLOW: obs chooses weights and moves none, obs+obs
updates them as well. Plain magnitude pruning, which the others are compared with, is always measured. In every method
a layer has as many zeros as the allocation gives it on magnitude scores.

Writes compare.json and compare.html into --output_dir, anew after each method and sparsity. The same command goes on
where it was interrupted, and more methods and sparsities can be asked for later.
"""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence

from absl import flags

from reflow_tf import __version__
from reflow_tf.choices import REPAIRS, check_choice
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.report.comparison import BASELINE, format_table
from reflow_tf.report.figures import FIGURES
from reflow_tf.report.figures import SPARSITIES as FIGURE_SPARSITIES
from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.criteria import CRITERIA
from reflow_tf.sparsity.plan import check_sparsity
from reflow_tf.tools import command_line
from reflow_tf.tools.shared_flags import (
    JobFlags,
    define_memory_budget,
    define_overwrite,
    define_prunable,
    define_target,
    define_task,
    name_model,
)

FLAGS = command_line.new_flags()

METHODS = (
    *CRITERIA,
    *("magnitude+woodfisher", "woodfisher+woodfisher", "magnitude+obs", "obs+obs"),
    *("magnitude+chita", "cbs+chita", "magnitude+least_squares"),
)
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# `global` empties whole layers at the upper end (of the last 1x1 convolution of the embedded model, it keeps 18 of
# 204,800 weights at 90 %), and through an empty layer every method is as bad as any other.
DEFAULT_ALLOCATION = "lamp"

# REFLOW is measured after every chain; 'none' is a method without a plus, and 'auto' chooses among chains.
_STEPS = tuple(name for name in REPAIRS if name not in ("none", "auto", "reflow"))

JOB = JobFlags(FLAGS)
METHOD_NAMES = flags.DEFINE_list(
    "methods",
    None,
    f"CRITERION or CRITERION+REPAIR[+REPAIR ...], with commas; criteria: {', '.join(CRITERIA)}; repairs: "
    f"{', '.join(_STEPS)}. Default: {', '.join(METHODS)}.",
    flag_values=FLAGS,
)
SPARSITY_TEXTS = flags.DEFINE_list(
    "sparsities",
    None,
    "Fractions of zeros over the prunable kernels, each in [0, 1), with commas. Default: "
    + ", ".join(map("{:g}".format, SPARSITIES))
    + ".",
    flag_values=FLAGS,
)
ALLOCATION = flags.DEFINE_string(
    "allocation",
    DEFAULT_ALLOCATION,
    f"How the zeros are shared out over layers, by magnitude whatever the criterion: {', '.join(ALLOCATIONS)}.",
    flag_values=FLAGS,
)
PRESET = flags.DEFINE_string(
    "preset",
    None,
    "A figure of the REFLOW paper: measures its methods at its sparsities ("
    + ", ".join(map("{:g}".format, FIGURE_SPARSITIES))
    + ") on every kernel (--target=storage --allocation=global, unless you say otherwise), and writes it as a file "
    "of its own: "
    + "; ".join(f"{name}: {figure.title}" for name, figure in FIGURES.items())
    + ". Figures of one --output_dir share what they measure.",
    flag_values=FLAGS,
)
PRUNABLE = define_prunable(FLAGS)
TARGET = define_target(FLAGS)
MEMORY_BUDGET = define_memory_budget(FLAGS)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the results go. Default: ./reflow_out/<model>-compared.", flag_values=FLAGS
)
TASK = define_task(FLAGS)
OVERWRITE = define_overwrite(
    FLAGS,
    "Start anew in an --output_dir that holds a comparison. Without it, a run with other settings is refused, and one "
    "with the same settings measures what is missing.",
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare; the flags."""

    job: JobConfig
    methods: Mapping[str, PruneConfig]
    sparsities: Sequence[float]
    figure: str | None


def read_config() -> Comparison:
    """The parsed flags, checked; raises InputError."""
    given = JOB.read()
    preset = PRESET.value
    if preset is not None:
        check_choice("preset", preset, FIGURES)
    if preset is not None and METHOD_NAMES.value is not None:
        raise InputError(f"--preset has methods of its own: leave --methods out. Received: --preset={preset} with both")
    allocation = "global" if preset and not ALLOCATION.present else ALLOCATION.value
    check_choice("allocation", allocation, ALLOCATIONS)
    base = PruneConfig(
        allocation=allocation,
        target="storage" if preset and not TARGET.present else command_line.require(TARGET),
        prunable=PRUNABLE.value,
        memory_budget=MEMORY_BUDGET.value,
        task=TASK.value,
    )
    output_dir = OUTPUT_DIR.value or f"reflow_out/{name_model(given['model'])}-compared"
    job = JobConfig(**given, output_dir=output_dir, prune=base, overwrite=OVERWRITE.value)
    names = FIGURES[preset].methods if preset else _read_list(METHOD_NAMES, METHODS)
    methods = {name: read_method(name, base) for name in (BASELINE, *names)}
    texts = _read_list(SPARSITY_TEXTS, map(str, FIGURE_SPARSITIES if preset else SPARSITIES))
    return Comparison(job, methods, list(dict.fromkeys(map(read_sparsity, texts))), preset)


def _read_list(flag: flags.FlagHolder[list[str] | None], default: Iterable[str]) -> list[str]:
    if flag.value == []:
        raise InputError(f"--{flag.name} must name at least one. Received: none")
    return list(default) if flag.value is None else flag.value


def read_method(name: str, base: PruneConfig) -> PruneConfig:
    """CRITERION[+REPAIR ...] as a configuration whose repairs are those before REFLOW; 'none' without a plus.

    Raises:
        InputError: an unknown criterion or repair, or one repair twice.
    """
    criterion, *repairs = name.split("+")
    if criterion not in CRITERIA:
        raise InputError(f"--methods must begin with one of {', '.join(CRITERIA)}. Received: {name}")
    for repair in repairs:
        if repair not in _STEPS or repairs.count(repair) > 1:
            raise InputError(
                f"--methods must name after each plus another of {', '.join(_STEPS)}; reflow follows every method. "
                f"Received: {name}"
            )
    return dataclasses.replace(base, criterion=criterion, repair=",".join(repairs) or "none")


def read_sparsity(text: str) -> float:
    """One entry of --sparsities; raises InputError unless it is a number in [0, 1)."""
    try:
        return check_sparsity(float(text))
    except (ValueError, InputError) as error:
        raise InputError(f"--sparsities must be fractions of zeros, each in [0, 1). Received: {text}") from error


def compare(given: Comparison) -> int:
    """Measures what is missing and prints the table; returns the exit code."""
    from reflow_tf.jobs import comparison  # TensorFlow takes seconds to import: bad flags answer before it

    document = comparison.run(given.job, given.methods, given.sparsities, __version__, given.figure)
    with command_line.printing():
        print("\n".join(format_table(document)))
        print(f"\nWrote {given.job.output_dir}: open compare.html in a browser.")
    return command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    argv = sys.argv if argv is None else argv
    return command_line.run(read_config, compare, __doc__, FLAGS, argv, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
