"""A finished file made fit for a target, with all that its zeros allow."""

import numpy as np

from reflow_tf.choices import FORMATS
from reflow_tf.errors import InputError
from reflow_tf.export.half_precision import allow_float16
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import ExportedFile, rewrite_tflite
from reflow_tf.targets.target import HardwareTarget, Verdict


def rewrite(
    content: bytes, target: HardwareTarget, ballast: str, device: str | None, name: str
) -> tuple[ExportedFile, Verdict]:
    """The file as the target wants it, and what the target makes of it.

    Args:
        content: a .tflite file.
        target: one that stores zeros.
        ballast: as `export_tflite` takes it.
        device: as `export_tflite` takes it.
        name: of the file, for the message.

    Raises:
        InputError: it is not a whole .tflite file; bitmaps are wanted, and it is none that gains by them.
    """
    file = rewrite_tflite(content, storage=target.storage, rewrite=target.rewrite, ballast=ballast, device=device)
    verdict = target.inspect(read_operators(file.content))
    if target.storage == "bitmap" and not verdict.eligible:  # nothing else reads bitmaps
        reasons = [blocker.reason for blocker in verdict.blockers] or [verdict.statement]
        raise InputError(
            f"--target={target.name} needs a file that it runs, and that has zeros enough to save some. "
            f"Received: {name}: {reasons[0].rstrip('.')}"
        )
    return file, verdict


def change_arithmetic(content: bytes, name: str) -> bytes:
    """The file, for CPUs that have float16 arithmetic to compute in it; nothing else is changed.

    Args:
        content: a .tflite file; one that says so already comes back as the same object.
        name: of the file, for the message.

    Raises:
        InputError: it is not a whole .tflite file, has no float weights, or stores some sparse.
    """
    if FORMATS[find_number_format(content)] == "int8":
        raise InputError(f"float16 arithmetic needs a file with float weights. Received: {name}, which is int8")
    return allow_float16(content)


def find_number_format(content: bytes) -> str:
    """The number format that most bytes of a file's constants have, a key of `FORMATS`."""
    taken: dict[str, int] = dict.fromkeys(FORMATS, 0)
    for value in read_operators(content).values:
        dtype = {"uint8": "int8"}.get(value.stored_dtype, value.stored_dtype)
        if value.constant and dtype in taken:
            taken[dtype] += value.num_elements * np.dtype(dtype).itemsize
    return max(taken, key=lambda dtype: taken[dtype])
