"""Whether a file that allows float16 arithmetic computes the same in it: asked of an emulated CPU that has it.

No x86 CPU that this tool runs on computes such a file in float16, so its accuracy as measured here is that of float32.
What float16 cannot do is rare and drastic: a value past 65,504 becomes infinite, and the outputs NaN.
"""

import dataclasses

import numpy as np

from reflow_tf.jobs.scoring import compare
from reflow_tf.models.predictions import read_outputs
from reflow_tf.runtimes.aarch64.machine import SET_UP, is_set_up
from reflow_tf.runtimes.aarch64.runtime import AArch64
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.task import Task

CHECKED_INPUTS = 8
"""An emulator computes float16 number by number: some three seconds for a MobileNetV2 at 224x224."""
NOT_CHECKED = f"the emulated CPU that has float16 arithmetic is not set up: {SET_UP}"


@dataclasses.dataclass(frozen=True)
class Float16Check:
    """A file in float16, beside the same file in float32.

    Attributes:
        runtime: what computed in float16.
        num_inputs: of the calibration set, that were compared.
        agreement: share of them (on maps: of their positions) with the same best class, in [0, 1]; None for numbers.
        difference: largest difference of an output, in shares of the largest output; None where one is NaN or infinite:
            then float16 must not be allowed.
    """

    runtime: str
    num_inputs: int
    agreement: float | None
    difference: float | None


def check_float16(
    content: bytes, inputs: np.ndarray, num_classes: int | None, task: Task = Task.CLASSIFICATION
) -> Float16Check | str:
    """Compares the two, or says why it cannot be done.

    Args:
        content: a .tflite file that allows float16 arithmetic.
        inputs: float32 (n, *sample), as the network takes them.
        num_classes: of the network, if it names any.
        task: what its outputs are taken for.
    """
    if not is_set_up():
        return NOT_CHECKED
    runtime = AArch64(content)
    found, expected = (read_outputs(each.run(inputs), num_classes or 0, task) for each in (runtime, LiteRT(content)))
    compared = compare(found, expected, task)
    largest = float(np.abs(expected).max()) or 1.0  # where all are zero, they are compared as they are
    difference = compared.max_abs / largest if np.isfinite(found).all() else None
    return Float16Check(runtime.name, len(inputs), compared.top1_agreement, difference)
