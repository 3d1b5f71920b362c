"""The recommended file's own folder: what the pruning tool wrote, and what proves the file on the device."""

import hashlib
import pathlib
import shutil
from collections.abc import Mapping

from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs.device_kit import write_device_kit
from reflow_tf.jobs.firmware.packing import write_firmware
from reflow_tf.jobs.frontier.devices import DEVICE_KIT, FIRMWARE, Device
from reflow_tf.jobs.frontier.flagfile import FLAGS
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


def hash_files(folder: pathlib.Path) -> dict[str, str]:
    """Name of each file, below the folder -> its SHA-256; {} where there is no folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def require_own(folder: pathlib.Path, written: Mapping[str, str] | None = None) -> None:
    """Refuses to make the folder of a candidate anew, if there is one, where somebody keeps something else in it.

    Args:
        folder: to be replaced.
        written: what `hash_files` found when it was made: a kit in it, which people work in, must be as it was; None:
            nobody knows.

    Raises:
        InputError: with the name of what is not ours.
    """
    if not folder.exists():
        return
    inside = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    odd = [entry for entry in inside if entry.name not in {*FILES, FLAGS, DEVICE_KIT, FIRMWARE}]
    if written is not None and not odd:
        changed = [name for name, digest in hash_files(folder).items() if "/" in name and written.get(name) != digest]
        odd = [folder / name for name in changed]
    if odd:
        raise InputError(f"What a search made is made anew: keep what is yours elsewhere. Received: {odd[0]}")


def _write_kit(source: EvaluateConfig, folder: str, device: Device) -> None:
    if device.kit == DEVICE_KIT:
        write_device_kit(source, folder)
    else:
        (board,) = device.job.get("boards", ("m4",))
        is_array = device.target == TFLM.name
        write_firmware(source, folder, board=board, as_array=is_array)
