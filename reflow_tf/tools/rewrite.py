r"""Makes a finished .tflite file as small as the zeros in it allow, and fit for XNNPACK's sparse kernels.

For a network that somebody trained sparse and converted: its zeros are stored as zeros, and what keeps XNNPACK from its
sparse kernels is taken out of the graph where that changes no output. LiteRT runs both files side by side; where they
differ by more than the order of additions explains, nothing is changed.

python -m reflow_tf.tools.rewrite --model=any.tflite --output=sparse.tflite
"""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import flags

from reflow_tf.choices import TARGETS, check_choice
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.tools import command_line, shared_flags
from reflow_tf.tools.output_file import check_output, write_file
from reflow_tf.tools.wrapping import wrap

if TYPE_CHECKING:
    from reflow_tf.export.tflite import ExportedFile
    from reflow_tf.targets.target import Verdict

FLAGS = command_line.new_flags()

_TARGETS = tuple(name for name, target in TARGETS.items() if target.storage != "dense")

_AS_USUAL = PruneConfig.target, PruneConfig.device, PruneConfig.ballast

MODEL = flags.DEFINE_string("model", None, "The path of a .tflite file.", flag_values=FLAGS)
OUTPUT = flags.DEFINE_string("output", None, "The .tflite file to write.", flag_values=FLAGS)
TARGET = flags.DEFINE_string(
    "target",
    PruneConfig.target,
    "; ".join(f"{name}: {TARGETS[name].description}" for name in _TARGETS),
    flag_values=FLAGS,
)
DEVICE = shared_flags.define_device(FLAGS)
FLOAT16_ARITHMETIC = flags.DEFINE_bool(
    "float16_arithmetic",
    False,
    "In place of all that: let CPUs that have float16 arithmetic (ARMv8.2 and newer) compute the file in it; elsewhere "
    "it runs as before. Needs a file without sparse tensors; frontier --device=phone checks what it computes so.",
    flag_values=FLAGS,
)
BALLAST = shared_flags.define_ballast(FLAGS)
OVERWRITE = shared_flags.define_overwrite(FLAGS, "Replace an --output that exists.")


@dataclasses.dataclass(frozen=True)
class RewriteConfig:
    """The flags of this tool.

    Raises:
        InputError: an unknown target; a device or ballast that it does not go with; an output that is there already.

    `output` was checked already, by `check_output`.
    """

    model: str
    output: pathlib.Path
    target: str
    device: str | None
    ballast: str
    overwrite: bool
    float16_arithmetic: bool = False

    def __post_init__(self) -> None:
        check_choice("target", self.target, _TARGETS)
        PruneConfig(target=self.target, device=self.device, ballast=self.ballast)
        if pathlib.Path(self.model).suffix != ".tflite":
            raise InputError(
                f"--model must be a .tflite file; for what Keras saved, prune --sparsity=existing keeps its zeros. "
                f"Received: {self.model}"
            )
        if self.float16_arithmetic and (self.target, self.device, self.ballast) != _AS_USUAL:
            raise InputError(
                f"--float16_arithmetic changes nothing else: it goes without --target, --device and --ballast. "
                f"Received: --target={self.target} --device={self.device} --ballast={self.ballast}"
            )
        if self.output.exists() and not self.overwrite:
            raise InputError(
                f"--output must be a new file, or one that --overwrite may replace. Received: {self.output}"
            )


def read_config() -> RewriteConfig:
    """The parsed flags as a checked configuration; raises InputError."""
    return RewriteConfig(
        command_line.require(MODEL),
        check_output(command_line.require(OUTPUT), [command_line.require(MODEL)]),
        TARGET.value,
        DEVICE.value,
        BALLAST.value,
        OVERWRITE.value,
        FLOAT16_ARITHMETIC.value,
    )


def rewrite(config: RewriteConfig) -> int:
    """Writes the file and says what it gained; returns the exit code."""
    from reflow_tf.jobs import rewriting  # TensorFlow takes seconds: bad flags answer before it
    from reflow_tf.runtimes.litert import LiteRT, read_tflite

    target = PruneConfig(target=config.target, device=config.device, ballast=config.ballast).hardware
    given = read_tflite(pathlib.Path(config.model).expanduser())
    if config.float16_arithmetic:
        content = rewriting.change_arithmetic(given, config.model)
        LiteRT(content)  # refuses what it cannot run
        write_file(config.output, content)
        told = "CPUs that have float16 arithmetic compute the file in it"
        with command_line.printing():
            print(f"{told} as it was given." if content is given else f"{told}; no constant was changed.")
            print(f"\nWrote {config.output}.")
        return command_line.UNMET if content is given else command_line.DONE
    file, verdict = rewriting.rewrite(given, target, config.ballast, config.device, config.model)
    write_file(config.output, file.content)
    with command_line.printing():
        print("\n".join(_describe(len(given), file, verdict)))
        print(f"\nWrote {config.output}.")
    has_gained = bool(file.rewrites) or len(file.content) < len(given)
    return command_line.DONE if has_gained else command_line.UNMET


def _describe(size: int, file: "ExportedFile", verdict: "Verdict") -> Iterator[str]:
    stored = [tensor for tensor in file.tensors if tensor.storage != "dense"]
    zeros = sum(tensor.num_zeros for tensor in stored)
    yield from wrap(
        f"{size:,} -> {len(file.content):,} bytes. {len(stored)} of {len(file.tensors)} constants are stored without "
        f"their zeros, of which there are {zeros:,}."
    )
    for applied in file.rewrites:
        yield from wrap(f"{applied.rewrite}: {applied.statement}", "  + ")
    for refused in file.refused:
        yield from wrap(f"{refused.operator}: {refused.reason}", "  not rewritten: ")
    yield from wrap(verdict.statement)
    if verdict.speedups and max(verdict.speedups.values()) < 1:
        yield from wrap(
            "With these zeros sparse kernels do not pay: the file is smaller, and dense was faster.", "  note: "
        )
    for sentence in (*verdict.warnings, *file.notes):
        yield from wrap(sentence, "  note: ")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(
        read_config,
        rewrite,
        __doc__,
        FLAGS,
        sys.argv if argv is None else argv,
        unmet="nothing could be rewritten or stored smaller; the file that was written computes and weighs the same",
    )


if __name__ == "__main__":
    sys.exit(main())
