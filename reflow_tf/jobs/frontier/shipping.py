"""The recommended file's own folder: what the pruning tool wrote, and what proves the file on the device."""

import pathlib
import shutil

from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs.device_kit import write_device_kit
from reflow_tf.jobs.firmware.packing import write_firmware
from reflow_tf.jobs.frontier.devices import DEVICE_KIT, FIRMWARE, Device
from reflow_tf.jobs.pipeline import FILES
from reflow_tf.jobs.resuming import name_part
from reflow_tf.targets.tflm import TFLM


def ship(cell: pathlib.Path, best: pathlib.Path, device: Device, job: JobConfig, data: str) -> str | None:
    """Makes the folder anew: it is there whole, or not at all.

    Args:
        cell: of the recommended candidate.
        best: to make.
        device: what the file is for.
        job: of the search.
        data: what its inputs are drawn from.

    Returns:
        Why the folder has nothing that proves the file on the device, where it should; None if it has, or nobody needs
        it there.
    """
    part, missing = best.with_name(name_part(best.name)), None
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(cell, part)
    if device.kit is not None:
        source = EvaluateConfig(str(part / "model.tflite"), data, image_size=job.image_size)
        try:
            _write_kit(source, str(part / device.kit), device)
        except InputError as error:
            missing = str(error)
    shutil.rmtree(best, ignore_errors=True)
    part.rename(best)
    return missing


def require_own(best: pathlib.Path) -> None:
    """Refuses to make the folder anew, if an earlier search left one, where somebody keeps something else in it.

    Raises:
        InputError: with the name of what is not ours.
    """
    found = {entry.name for entry in best.iterdir()} if best.is_dir() else set()
    if odd := sorted(found - {*FILES, DEVICE_KIT, FIRMWARE}):
        raise InputError(f"{best} is made anew by each search: keep what is yours elsewhere. Received: {odd[0]} in it")


def _write_kit(source: EvaluateConfig, folder: str, device: Device) -> None:
    if device.kit == DEVICE_KIT:
        write_device_kit(source, folder)
    else:
        (board,) = device.job.get("boards", ("m4",))
        is_array = device.target == TFLM.name
        write_firmware(source, folder, board=board, as_array=is_array)
