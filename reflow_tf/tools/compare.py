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
from reflow_tf.config import REPAIRS, TARGETS, JobConfig, PruneConfig, check_choice
from reflow_tf.errors import InputError
from reflow_tf.report.comparison import BASELINE, format_table
from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.criteria import CRITERIA
from reflow_tf.sparsity.plan import check_sparsity
from reflow_tf.tools import command_line

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

_PRUNE = PruneConfig()
_JOB = JobConfig(model="", output_dir="")
# REFLOW is measured after every chain; 'none' is a method without a plus, and 'auto' chooses among chains.
_STEPS = tuple(name for name in REPAIRS if name not in ("none", "auto", "reflow"))

MODEL = flags.DEFINE_string("model", None, "As in reflow_tf.tools.prune.", flag_values=FLAGS)
WEIGHTS = flags.DEFINE_string("weights", None, "As in reflow_tf.tools.prune.", flag_values=FLAGS)
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
DATA = flags.DEFINE_string("data", None, "As in reflow_tf.tools.prune.", flag_values=FLAGS)
EVAL_DATA = flags.DEFINE_string("eval_data", None, "As in reflow_tf.tools.prune.", flag_values=FLAGS)
CLASS_NAMES = flags.DEFINE_string("class_names", None, "As in reflow_tf.tools.prune.", flag_values=FLAGS)
PREPROCESS = flags.DEFINE_string("preprocess", _JOB.preprocess, "As in reflow_tf.tools.prune.", flag_values=FLAGS)
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "As in reflow_tf.tools.prune.", flag_values=FLAGS)
ALLOCATION = flags.DEFINE_string(
    "allocation",
    DEFAULT_ALLOCATION,
    f"How the zeros are shared out over layers, by magnitude whatever the criterion: {', '.join(ALLOCATIONS)}.",
    flag_values=FLAGS,
)
PRUNABLE = flags.DEFINE_string("prunable", _PRUNE.prunable, "As in reflow_tf.tools.prune.", flag_values=FLAGS)
TARGET = flags.DEFINE_string("target", _PRUNE.target, f"{', '.join(TARGETS)}.", flag_values=FLAGS)
CALIBRATION_SAMPLES = flags.DEFINE_integer(
    "calibration_samples",
    _JOB.calibration_samples,
    "Number of images that criteria and repairs estimate statistics on. The Fisher takes a backward pass for each.",
    flag_values=FLAGS,
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", _JOB.batch_size, "Images at a time, at most.", flag_values=FLAGS)
SEED = flags.DEFINE_integer(
    "seed", _JOB.seed, "Seed of the draw of images, and of --weights=random.", flag_values=FLAGS
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the results go. Default: ./reflow_out/<model>-compared.", flag_values=FLAGS
)
OVERWRITE = flags.DEFINE_bool(
    "overwrite",
    False,
    "Start anew in an --output_dir that holds a comparison. Without it, a run with other settings is refused, and one "
    "with the same settings measures what is missing.",
    flag_values=FLAGS,
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare; the flags."""

    job: JobConfig
    methods: Mapping[str, PruneConfig]
    sparsities: Sequence[float]


def read_config() -> Comparison:
    """The parsed flags, checked; raises InputError."""
    model = command_line.require(MODEL)
    check_choice("allocation", ALLOCATION.value, ALLOCATIONS)
    base = PruneConfig(allocation=ALLOCATION.value, target=TARGET.value, prunable=PRUNABLE.value)
    name = model.replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".keras").removesuffix(".h5")
    job = JobConfig(
        model=model,
        output_dir=OUTPUT_DIR.value or f"reflow_out/{name}-compared",
        prune=base,
        weights=WEIGHTS.value,
        data=DATA.value,
        eval_data=EVAL_DATA.value,
        class_names=CLASS_NAMES.value,
        preprocess=PREPROCESS.value,
        image_size=IMAGE_SIZE.value,
        calibration_samples=CALIBRATION_SAMPLES.value,
        batch_size=BATCH_SIZE.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )
    methods = {name: read_method(name, base) for name in (BASELINE, *_read_list(METHOD_NAMES, METHODS))}
    texts = _read_list(SPARSITY_TEXTS, map(str, SPARSITIES))
    return Comparison(job, methods, list(dict.fromkeys(map(read_sparsity, texts))))


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

    document = comparison.run(given.job, given.methods, given.sparsities, __version__)
    with command_line.printing():
        print("\n".join(format_table(document)))
        print(f"\nWrote {given.job.output_dir}: open compare.html in a browser.")
    return command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(read_config, compare, __doc__, FLAGS, sys.argv if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
