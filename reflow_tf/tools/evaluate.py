r"""Scores a model by itself: top-1 and top-5 of a .keras or .tflite file on labelled images.

python -m reflow_tf.tools.evaluate --model=reflow_out/mobilenet_v2/model.tflite --data=fashion_mnist

With the config.json of a pruning run beside the file, images are prepared as that run prepared them.
"""

import functools
import sys

from absl import flags

from reflow_tf.config import EvaluateConfig
from reflow_tf.errors import InputError
from reflow_tf.tools import command_line

FLAGS = command_line.new_flags()
_string, _integer = (
    functools.partial(define, flag_values=FLAGS) for define in (flags.DEFINE_string, flags.DEFINE_integer)
)

MODEL = _string("model", None, "The path of a .keras, Keras .h5 or .tflite file, or a zoo name.")
DATA = _string(
    "data",
    None,
    "Labelled images: fashion_mnist, a folder of class sub-folders, an .npz with x and y, or tfds:NAME[:SPLIT].",
)
CLASS_NAMES = _string("class_names", None, "A text file, one class a line, in the order of the model's outputs.")
PREPROCESS = _string(
    "preprocess",
    "auto",
    "Scaling of the pixels: auto (as the config.json beside the file says, which the pruning tool writes; otherwise "
    "none), tf, torch, caffe, lite or none.",
)
IMAGE_SIZE = _integer("image_size", None, "Height and width in pixels, where the model leaves them open.")
BATCH_SIZE = _integer("batch_size", 128, "Images at a time, at most.")


def read_config() -> EvaluateConfig:
    """The parsed flags as a checked configuration; raises InputError."""
    for holder in (MODEL, DATA):
        if not holder.value:
            raise InputError(f"--{holder.name} is needed; see --help. Received: none")
    return EvaluateConfig(
        MODEL.value, DATA.value, CLASS_NAMES.value, PREPROCESS.value, IMAGE_SIZE.value, BATCH_SIZE.value
    )


def evaluate(config: EvaluateConfig) -> int:
    """Scores the model and prints the result; returns the exit code."""
    from reflow_tf import evaluation  # TensorFlow takes seconds to import: bad flags answer before it
    from reflow_tf.pipeline import show_progress

    score = evaluation.evaluate(config, progress=show_progress)
    low, high = score.top1_interval
    top5 = "" if score.top5 is None else f"   top-5 {score.top5:.2%}"
    with command_line.printing():
        print(f"top-1 {score.top1:.2%} (95 % interval {low:.2%} to {high:.2%}){top5}   n = {score.n}")
    return command_line.DONE


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(read_config, evaluate, __doc__, FLAGS, sys.argv if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
