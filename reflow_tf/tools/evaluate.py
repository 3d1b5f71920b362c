r"""Scores a finished model, a .keras or .tflite file: by labels, beside another model, by a metric of yours.

python -m reflow_tf.tools.evaluate --model=reflow_out/mobilenet_v2/model.tflite --data=fashion_mnist

With the config.json of a pruning run beside the file, images are prepared as that run prepared them. Without labels, or
where outputs are numbers, --reference names the model that it is to do as well as, which gets the same inputs.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import flags

from reflow_tf.job_config import EvaluateConfig
from reflow_tf.tools import command_line, shared_flags

if TYPE_CHECKING:
    from reflow_tf.jobs.evaluation import Evaluated

FLAGS = command_line.new_flags()

MODEL = shared_flags.define_model(FLAGS, ".keras, Keras .h5 or .tflite")
DATA = shared_flags.define_labelled_data(FLAGS)
REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "Another .keras, Keras .h5 or .tflite with the same inputs and outputs, such as the dense model: how often both "
    "name the same class or, where outputs are numbers, how far they are apart. No labels are needed then.",
    flag_values=FLAGS,
)
METRIC = shared_flags.define_metric(FLAGS, "No labels are needed for it here.")
TASK = shared_flags.define_task(FLAGS)
CLASS_NAMES = shared_flags.define_class_names(FLAGS)
PREPROCESS = shared_flags.define_preprocess(FLAGS, shared_flags.AS_RECORDED)
IMAGE_SIZE = shared_flags.define_image_size(FLAGS)
CUSTOM_OBJECTS = shared_flags.define_custom_objects(FLAGS)
BATCH_SIZE = shared_flags.define_batch_size(FLAGS)
WORKERS = shared_flags.WorkerFlags(FLAGS)


def read_config() -> EvaluateConfig:
    """The parsed flags as a checked configuration; raises InputError."""
    return EvaluateConfig(
        command_line.require(MODEL),
        command_line.require(DATA),
        CLASS_NAMES.value,
        PREPROCESS.value,
        IMAGE_SIZE.value,
        BATCH_SIZE.value,
        custom_objects=CUSTOM_OBJECTS.value,
        reference=REFERENCE.value,
        metric=METRIC.value,
        task=TASK.value,
        **WORKERS.read(),
    )


def evaluate(config: EvaluateConfig) -> int:
    """Scores the model and prints the result; returns the exit code."""
    from reflow_tf.jobs import evaluation  # TensorFlow takes seconds to import: bad flags answer before it
    from reflow_tf.report.progress import show_progress

    found = evaluation.run(config, progress=show_progress)
    with command_line.printing():
        for line in _describe(found):
            print(line)
    return command_line.DONE


def _describe(found: "Evaluated") -> Iterator[str]:
    """A line for each thing that is known."""
    if (score := found.accuracy) is not None:
        maps = "" if score.positions == 1 else f", each with {score.positions} predictions"
        top5 = "" if score.top5 is None else f"   top-5 {score.top5:.2%}"
        yield f"top-1 {score.top1:.2%}{_spell(score.top1_interval)}{top5}   n = {score.n}{maps}"
    if (iou := found.iou) is not None:
        yield f"mean IoU {iou.value:.2%}{_spell(iou.interval)}   n = {iou.n}"
    if (score := found.agreement) is not None:
        yield f"same class as the reference {score.top1:.2%}{_spell(score.top1_interval)}   n = {score.n}"
    if (fidelity := found.fidelity) is not None:
        angle = "" if fidelity.cosine is None else f"   cosine {fidelity.cosine:.4f}"
        yield (
            f"relative error {fidelity.relative_error:.3%}{_spell(fidelity.error_interval)}   worst input "
            f"{fidelity.worst:.2%}{angle}   n = {fidelity.n}"
        )
    if (metric := found.metric) is not None:
        yield f"metric {metric.value:g}   n = {metric.n}"


def _spell(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else " (95 % interval {:.2%} to {:.2%})".format(*interval)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(read_config, evaluate, __doc__, FLAGS, sys.argv if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
