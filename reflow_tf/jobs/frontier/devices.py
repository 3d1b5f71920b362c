"""Devices that a file may be for: what is tried there, and what one inference costs there, as measured here."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from reflow_tf.errors import InputError

DEVICE_KIT, FIRMWARE = "device_kit", "firmware"


@dataclasses.dataclass(frozen=True)
class Device:
    """A preset over targets and runtimes.

    Attributes:
        name: as `--device` spells it.
        place: where that is, in a sentence: 'on a Cortex-A76'.
        description: what is measured, and in what.
        runtime: what measures a file: one of `jobs.benchmark.RUNTIMES`; 'microcontroller': what its target measures;
            'bytes': its size.
        unit: of the cost: 'instructions', 'ms', 'cycles' or 'bytes'.
        target: of files with zeros.
        dense_target: of all others.
        formats: number formats of files without zeros, keys of `FORMATS`; the first is what all are compared with.
        sparse_formats: of files with zeros.
        job: further fields of `JobConfig`.
        prune: further fields of `PruneConfig` for files with zeros.
        is_estimate: the cost is a model's, and nothing was run.
        kit: what proves a file there, DEVICE_KIT or FIRMWARE; None where nobody needs it.
        noise: a file must cost so many times less than another before it is called cheaper: what is timed varies.
    """

    name: str
    place: str
    description: str
    runtime: str
    unit: str
    target: str
    dense_target: str
    formats: tuple[str, ...]
    sparse_formats: tuple[str, ...]
    job: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prune: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_estimate: bool = False
    kit: str | None = None

    @property
    def noise(self) -> float:
        return 1.1 if self.unit == "ms" else 1.02

    @property
    def computes_in_float16(self) -> bool:
        """Whether dense files that allow it are computed in float16."""
        return self.runtime == "aarch64" and "float16" in self.formats

    @property
    def estimates_cycles(self) -> bool:
        """Whether an estimate of cycles stands beside the cost: instructions of one number format are not another's."""
        return self.runtime == "aarch64"


def _microcontroller(name: str, place: str, target: str, unit: str, what: str, **job: Any) -> Device:
    given = ("microcontroller", unit, target, target, ("int8",), ("int8",))
    kit = None if target == "ethos_u" else FIRMWARE
    return Device(name, place, what, *given, job=job, is_estimate=target == "ethos_u", kit=kit)


def _arm(name: str, place: str, cpu: str, formats: tuple[str, ...]) -> Device:
    what = f"LiteRT on an emulated {cpu.title()}; instructions, and an estimate of cycles"
    given = ("aarch64", "instructions", "xnnpack", "cpu", formats, ("float32",))
    return Device(name, place, what, *given, job={"cpu": cpu}, prune={"device": "arm"}, kit=DEVICE_KIT)


_ALL = (
    _arm("phone", "on a Cortex-A76", "cortex-a76", ("float32", "float16", "int8")),
    # Neither has dot products or float16 arithmetic: float16 is float32 in a smaller file.
    _arm("phone_old", "on a Cortex-A72", "cortex-a72", ("float32", "int8")),
    _arm("raspberry_pi_4", "on a Raspberry Pi 4", "cortex-a72", ("float32", "int8")),
    _arm("raspberry_pi_3", "on a Raspberry Pi 3", "cortex-a53", ("float32", "int8")),
    Device(
        "browser",
        "in a browser",
        "LiteRT.js in a headless Chromium, one thread; milliseconds",
        *("web", "ms", "xnnpack", "cpu", ("float32", "int8"), ("float32",)),
        prune={"device": "browser"},
    ),
    Device(
        "desktop",
        "on this machine",
        "LiteRT on this machine, one thread; milliseconds of dense files, all that x86 has kernels for",
        *("litert", "ms", "cpu", "cpu", ("float32", "int8"), ()),
        kit=DEVICE_KIT,
    ),
    *(
        _microcontroller(
            f"cortex_{board}",
            f"on a Cortex-{board.upper()}",
            "cortex_m",
            "instructions",
            f"generated C on an emulated Cortex-{board.upper()}; instructions, flash and RAM",
            boards=(board,),
        )
        for board in ("m4", "m7", "m55")
    ),
    _microcontroller("tflm", "in TFLM", "tflm", "bytes", "TensorFlow Lite for Microcontrollers; bytes of flash"),
    *(
        _microcontroller(
            f"ethos_{number}",
            f"on an Ethos-{number.upper()}",
            "ethos_u",
            "cycles",
            f"Arm's Vela for an Ethos-{number.upper()}; its estimate of cycles, nothing is run",
            accelerator=accelerator,
        )
        for number, accelerator in (("u55", "ethos-u55-128"), ("u85", "ethos-u85-256"))
    ),
    Device(
        "size",
        "where bytes count",
        "a small file, wherever it runs; bytes",
        *("bytes", "bytes", "storage", "storage", ("float32", "float16", "int8"), ("float16", "int8")),
    ),
)
DEVICES: Mapping[str, Device] = {device.name: device for device in _ALL}


def find_devices(names: Sequence[str]) -> tuple[Device, ...]:
    """The devices of these names.

    Raises:
        InputError: one is unknown, or named twice; there is none.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"--device must name at least one device, and each once. Received: {','.join(names)}")
    return tuple(map(find_device, names))


def find_device(name: str) -> Device:
    """The device of that name.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, str) or name not in DEVICES:
        raise InputError(f"--device must be one of {', '.join(DEVICES)}. Received: {name}")
    return DEVICES[name]
