r"""Says whether XNNPACK will run a model sparse on a phone, what stands in the way, and what would help.

--target asks the same for another target, such as a microcontroller.

python -m reflow_tf.tools.explain --model=mobilenet_v2
python -m reflow_tf.tools.explain --model=reflow_out/mobilenet_v2/model.tflite
python -m reflow_tf.tools.explain --model=mobilenet_v2 --pattern=channel
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from reflow_tf.choices import TARGETS, check_choice
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.targets.target import Blocker, Cluster, Verdict
from reflow_tf.targets.xnnpack import DEVICES
from reflow_tf.tools import command_line, shared_flags
from reflow_tf.tools.output_file import check_output, write_json
from reflow_tf.tools.wrapping import WIDTH, wrap

if TYPE_CHECKING:
    from reflow_tf.jobs.explanation import Explanation
    from reflow_tf.narrowing.candidates import GroupCost

FLAGS = command_line.new_flags()

MODEL = shared_flags.define_model(FLAGS, ".tflite, .keras or Keras .h5")
WEIGHTS = shared_flags.define_weights(FLAGS)
IMAGE_SIZE = shared_flags.define_image_size(FLAGS)
CUSTOM_OBJECTS = shared_flags.define_custom_objects(FLAGS)
TARGET = shared_flags.define_target(
    FLAGS,
    None,
    " Default: the target that a config.json beside the file names, which the pruning tool writes; else xnnpack.",
)
PATTERN = flags.DEFINE_string(
    "pattern",
    None,
    "channel: which channels of a Keras model stand and fall together, what they cost, and which must stay and why; of "
    "no target. Default: what the target makes of zeros.",
    flag_values=FLAGS,
)
PRUNABLE = shared_flags.define_prunable(FLAGS)
OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the verdicts and their reasons.", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class ExplainConfig:
    """The flags of this tool.

    Raises:
        InputError: an unknown target, or flags that do not go with a .tflite file, or with each other.

    `output` was checked already, by `check_output`.
    """

    model: str
    weights: str | None
    image_size: int | None
    target: str
    output: pathlib.Path | None
    pattern: str | None = None
    custom_objects: str | None = None
    prunable: str = PruneConfig.prunable

    def __post_init__(self) -> None:
        check_choice("target", self.target, TARGETS)
        if self.prunable != PruneConfig.prunable and self.pattern is None:
            raise InputError(
                f"--prunable leaves channels out of what --pattern=channel shows: it needs that. "
                f"Received: --prunable={self.prunable} alone"
            )
        if self.pattern is not None:
            check_choice("pattern", self.pattern, ("channel",))
            if self.is_file:
                raise InputError(
                    f"--pattern=channel needs a Keras model, whose layers it can trace. Received: --model={self.model}"
                )
        given = [f"--{name}={value}" for name, value in self.model_options.items() if value is not None]
        if self.is_file and given:
            raise InputError(f"A .tflite file has its own weights and input size. Received: {' '.join(given)}")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"--image_size must be at least 1. Received: {self.image_size}")

    @property
    def model_options(self) -> dict[str, Any]:
        """How the model is loaded."""
        return {"weights": self.weights, "image_size": self.image_size, "custom_objects": self.custom_objects}

    @property
    def is_file(self) -> bool:
        """Whether the model is a .tflite file already."""
        return pathlib.Path(self.model).suffix == ".tflite"


def read_config() -> ExplainConfig:
    """The parsed flags as a checked configuration; raises InputError."""
    return ExplainConfig(
        command_line.require(MODEL),
        WEIGHTS.value,
        IMAGE_SIZE.value,
        TARGET.value or _recorded_target(pathlib.Path(command_line.require(MODEL)).expanduser()),
        check_output(OUTPUT.value, [command_line.require(MODEL), WEIGHTS.value]) if OUTPUT.value else None,
        PATTERN.value,
        CUSTOM_OBJECTS.value,
        PRUNABLE.value,
    )


def _recorded_target(model: pathlib.Path) -> str:
    """The target that the file was made for, if the pruning tool made it; else XNNPACK's."""
    recorded = None
    if model.suffix == ".tflite":
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            recorded = json.loads((model.parent / "config.json").read_text(encoding="utf-8"))["target"]
    return recorded if recorded in tuple(TARGETS) else "xnnpack"


def explain(config: ExplainConfig) -> int:
    """Judges the model and prints the verdict; returns the exit code."""
    if config.pattern is not None:
        return _explain_channels(config)
    from reflow_tf.jobs import explanation  # LiteRT takes a while to import: bad flags answer before it

    explained = explanation.explain(_read(config), TARGETS[config.target])
    if config.output is not None:
        write_json(config.output, dataclasses.asdict(explained))
    with command_line.printing():
        print("\n".join(_describe(explained)))
    return command_line.DONE if explained.can_be_eligible else command_line.UNMET


def _explain_channels(config: ExplainConfig) -> int:
    command_line.start_tensorflow()
    from reflow_tf.models.loading import load_model
    from reflow_tf.narrowing.candidates import measure_groups

    model = load_model(config.model, **config.model_options).model
    groups = measure_groups(model, config.prunable)
    if config.output is not None:
        write_json(config.output, {"groups": [dataclasses.asdict(group) for group in groups]})
    with command_line.printing():
        print("\n".join(_describe_groups(model.name, groups)))
    return command_line.DONE if any(group.held is None for group in groups) else command_line.UNMET


def _describe_groups(name: str, groups: "tuple[GroupCost, ...]") -> Iterator[str]:
    free = [group for group in groups if group.held is None]
    yield from wrap(
        f"{name} has {len(groups)} groups of channels that stand and fall together; from {len(free)} of them "
        "--pattern=channel --max_macs=SHARE can remove some. Multiply-adds of a layer count on both its sides."
    )
    for group in groups:
        yield ""
        yield from wrap(f"{group.size} channels of {', '.join(group.writers)}", "  ")
        if group.readers:
            yield from wrap(f"read by {', '.join(group.readers)}", "    ")
        yield (
            f"    {group.macs:,} multiply-adds, {group.num_weights:,} weights, {group.num_values:,} values in the "
            "largest tensor"
        )
        if group.held is not None:
            yield from wrap(f"must stay: {group.held}", "    ")


def _read(config: ExplainConfig) -> bytes:
    if config.is_file:
        from reflow_tf.runtimes.litert import read_tflite

        return read_tflite(os.path.expanduser(config.model))
    command_line.start_tensorflow()
    from reflow_tf.export.tflite import export_tflite
    from reflow_tf.models.loading import load_model
    from reflow_tf.runtimes.runtime import make_inputs

    loaded = load_model(config.model, **config.model_options)
    shape = tuple(axis for axis in loaded.sample_shape if axis is not None)
    if len(shape) < len(loaded.sample_shape):
        raise InputError(
            f"The model must fix every dimension of its input, or leave height and width open, for which --image_size "
            f"stands. Received: an input of shape {loaded.sample_shape}"
        )
    target = TARGETS[config.target]
    # Only the structure is judged, so any numbers do to find the ranges of activations.
    calibration = [abs(make_inputs((4, *shape)))]  # of which some may be indices
    exported = export_tflite(
        loaded.model,
        quantize=target.quantize,
        io=target.io,
        calibration=calibration,
        storage="bitmap" if target.storage == "bitmap" else "dense",  # also replaces what TFLM lacks
    )
    return exported.content


def _describe(explained: "Explanation") -> Iterator[str]:
    yield from _describe_verdict(explained.as_given)
    if explained.applied:
        yield ""
        yield "With --rewrite=exact, which prune does by default and which changes no output:"
        for applied in explained.applied:
            yield from wrap(f"{applied.rewrite}: {applied.statement}", "  + ")
        yield ""
        yield from _describe_verdict(explained.rewritten)
    if explained.refused:
        yield ""
    for refused in explained.refused:
        yield from wrap(f"{refused.operator}: {refused.reason}", "  not rewritten: ")


def _describe_verdict(verdict: Verdict) -> Iterator[str]:
    yield from textwrap.wrap(verdict.statement, WIDTH)
    for cluster in verdict.clusters:
        yield ""
        yield from _describe_cluster(cluster)
        for blocker in cluster.blockers:
            yield from _describe_blocker(blocker)
    for blocker in verdict.blockers:
        if not any(blocker in cluster.blockers for cluster in verdict.clusters):
            yield from _describe_blocker(blocker)
    if not verdict.eligible:
        yield from _describe_prospects(verdict)
    for warning in verdict.warnings:
        yield from wrap(warning, "  Warning: ")
    for note in verdict.version_notes:
        yield from wrap(note, "  Versions: ")


def _describe_prospects(verdict: Verdict) -> Iterator[str]:
    """What sparse kernels would gain where they are in reach, device by device."""
    if not verdict.foreseen_speedups:
        return
    shares = ", ".join(f"{share:.0%}" for share in verdict.foreseen_speedups)
    yield f"  Run sparse, with {shares} of each layer zero, it would be about"
    for name, device in DEVICES.items():
        gains = ", ".join(f"{speedups[name]:.2f}" for speedups in verdict.foreseen_speedups.values())
        yield f"    {gains} times as fast as dense {device.place}"


def _describe_cluster(cluster: Cluster) -> Iterator[str]:
    if not cluster.operators:
        return
    first, *_, last = (*cluster.operators, *cluster.operators)
    layers = len(cluster.operators)
    yield f"  {first} ... {last}: {layers} layers, {'run sparse' if cluster.runs_sparse else 'run dense'}"
    share = f"{cluster.num_zeros / cluster.num_weights:.1%}" if cluster.num_weights else "none"
    ballast = f", and {cluster.num_ballast:,} zeros of ballast" if cluster.num_ballast else ""
    yield f"  {cluster.num_weights:,} weights count, {share} of them zero{ballast}; the threshold is 66.7 %"


def _describe_blocker(blocker: Blocker) -> Iterator[str]:
    where = f"{blocker.operator}: " if blocker.operator else ""
    yield from wrap(f"{where}{blocker.reason}", "  - ")
    yield from wrap(blocker.remedy, "    ")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(
        read_config,
        explain,
        __doc__,
        FLAGS,
        sys.argv if argv is None else argv,
        tensorflow=False,  # only models that are no .tflite file yet need it, see `_read`
        unmet="no pruning and no exact rewriting would make this network run sparse; no channel may go",
    )


if __name__ == "__main__":
    sys.exit(main())
