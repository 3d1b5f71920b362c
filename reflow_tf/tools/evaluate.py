r"""Scores a model by itself: top-1 and top-5 of a .keras or .tflite file on labelled data.

python -m reflow_tf.tools.evaluate --model=reflow_out/mobilenet_v2/model.tflite --data=fashion_mnist

With the config.json of a pruning run beside the file, images are prepared as that run prepared them.
"""

import sys

from reflow_tf.job_config import EvaluateConfig
from reflow_tf.tools import command_line, shared_flags

FLAGS = command_line.new_flags()

MODEL = shared_flags.define_model(FLAGS, ".keras, Keras .h5 or .tflite")
DATA = shared_flags.define_labelled_data(FLAGS)
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
        **WORKERS.read(),
    )


def evaluate(config: EvaluateConfig) -> int:
    """Scores the model and prints the result; returns the exit code."""
    from reflow_tf.jobs import evaluation  # TensorFlow takes seconds to import: bad flags answer before it
    from reflow_tf.report.progress import show_progress

    score = evaluation.run(config, progress=show_progress)
    bounds = "" if score.top1_interval is None else " (95 % interval {:.2%} to {:.2%})".format(*score.top1_interval)
    maps = "" if score.positions == 1 else f", each with {score.positions} predictions"
    top5 = "" if score.top5 is None else f"   top-5 {score.top5:.2%}"
    with command_line.printing():
        print(f"top-1 {score.top1:.2%}{bounds}{top5}   n = {score.n}{maps}")
    return command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(read_config, evaluate, __doc__, FLAGS, sys.argv if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
