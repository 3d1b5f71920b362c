"""What a command is to do, from a model's name to an output folder, checked as soon as it is said."""

import dataclasses
from typing import Any

from reflow_tf.choices import (
    AUTO,
    BENCHMARKS,
    BOARDS,
    CPUS,
    IOS,
    MOST_IN_A_BATCH,
    QUANTIZATIONS,
    REWRITES,
    TARGETS,
    TASKS,
    check_between,
    check_choice,
    check_workers,
)
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.targets.ethos_u import ACCELERATORS, DEFAULT_ACCELERATOR
from reflow_tf.targets.target import HardwareTarget


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """One run of the tool from a model's name to an output folder; the flags of `reflow_tf.tools.prune`.

    Attributes:
        quantize: one of QUANTIZATIONS; None: what the target wants.
        io: for int8, one of IOS: what the file takes and gives; None: what the target wants.
        rewrite: 'exact': the file's graph is rewritten, where that is exact, so that the target can gain; 'none', and
            then no ballast is added either; None: what the target wants.
        flash_budget: bytes that the file may take on a microcontroller.
        ram_budget: bytes of RAM that it may need there.
        boards: for the target cortex_m: where instructions are counted, of `BOARDS`; flash is that of the first.
        accelerator: for the target ethos_u: one of `ACCELERATORS`.
        benchmark: runtimes of `BENCHMARKS` in which the dense and the pruned file are measured side by side.
        cpu: for the runtime aarch64: what is emulated, of `CPUS`.
        metric: MODULE:FUNCTION, which gives one number for outputs and labels, see `jobs.metric`.
        max_metric_drop: by how much the file's may lie below the dense model's; without a metric of the user's own it
            is the mean intersection over union of a map of classes.
        custom_objects: for a model file with layers of the user's own, as `models.custom_objects.register` takes it.
        workers: who leads images through networks: None: this process; a number of processes on this machine; or
            tcp://HOST:PORT, a scheduler of Dask.
        threads_per_worker: of TensorFlow; None: the cores of a machine shared out among the workers on it.

    Raises:
        InputError: a number is out of its range, a name is none of its choices, or the target gains nothing from the
            quantization.
    """

    model: str
    output_dir: str
    prune: PruneConfig = dataclasses.field(default_factory=PruneConfig)
    weights: str | None = None
    data: str | None = None
    eval_data: str | None = None
    class_names: str | None = None
    preprocess: str = "auto"
    image_size: int | None = None
    custom_objects: str | None = None
    calibration_samples: int = 1000
    batch_size: int = 128
    seed: int = 0
    quantize: str | None = None
    io: str | None = None
    rewrite: str | None = None
    export_batch_size: int = 1
    benchmark: tuple[str, ...] = ()
    cpu: str = CPUS[-1]
    overwrite: bool = False
    max_accuracy_drop: float | None = None
    metric: str | None = None
    max_metric_drop: float | None = None
    flash_budget: int | None = None
    ram_budget: int | None = None
    boards: tuple[str, ...] = ("m4",)
    accelerator: str = DEFAULT_ACCELERATOR
    workers: str | None = None
    threads_per_worker: int | None = None

    def __post_init__(self) -> None:
        check_workers(self.workers, self.threads_per_worker)
        check_choice("quantize", self.requested_quantize, QUANTIZATIONS)
        if reason := self.target.obstacle(self.requested_quantize):
            raise InputError(f"--quantize must suit --target={self.target.name}: {reason}. Received: {self.quantize}")
        self._check_io()
        check_choice("rewrite", self.requested_rewrite, REWRITES)
        if self.target.ballast_for and self.requested_rewrite == "none":
            object.__setattr__(self, "prune", dataclasses.replace(self.prune, ballast="off"))
        for name in self.benchmark:
            check_choice("benchmark", name, BENCHMARKS)
        check_choice("cpu", self.cpu, CPUS)
        if not self.boards:
            raise InputError(f"--boards must name at least one of {', '.join(BOARDS)}. Received: none")
        for name in self.boards:
            check_choice("boards", name, BOARDS)
        check_choice("accelerator", self.accelerator, ACCELERATORS)
        for name in ("calibration_samples", "batch_size", "image_size"):
            check_between(name, getattr(self, name), 1)
        check_between("export_batch_size", self.export_batch_size, 1, MOST_IN_A_BATCH)
        if self.target.is_microcontroller and self.export_batch_size != 1:
            raise InputError(
                f"--export_batch_size must be 1 for --target={self.target.name}. Received: {self.export_batch_size}"
            )
        check_between("seed", self.seed, 0, 2**32 - 1)
        for name in ("flash_budget", "ram_budget"):
            value = getattr(self, name)
            check_between(name, value, 1)
            if value is not None and not self.target.is_microcontroller:
                microcontrollers = ", ".join(name for name, target in TARGETS.items() if target.is_microcontroller)
                raise InputError(
                    f"--{name} needs a --target that is a microcontroller: {microcontrollers}. "
                    f"Received: --target={self.target.name}"
                )
        if self.prune.max_macs == AUTO and not self.has_budget and self.prune.max_size_bytes is None:
            raise InputError(
                f"--max_macs={AUTO} removes channels until a budget is met: give --max_size_bytes or, for a "
                f"microcontroller, --flash_budget or --ram_budget. Received: none, with --target={self.target.name}"
            )
        check_between("max_accuracy_drop", self.max_accuracy_drop, 0, 100)
        check_between("max_metric_drop", self.max_metric_drop, 0)

    def _check_io(self) -> None:
        check_choice("io", self.requested_io, IOS)
        if self.io is not None and self.requested_quantize != "int8":
            raise InputError(
                f"--io says what an int8 file takes and gives: it needs --quantize=int8. "
                f"Received: --io={self.io} --quantize={self.requested_quantize}"
            )
        if self.requested_io != "int8" and self.target.is_microcontroller:
            raise InputError(
                f"--io must be int8 for --target={self.target.name}, which has no floats. Received: --io={self.io}"
            )

    @property
    def has_budget(self) -> bool:
        """Whether flash or RAM are limited."""
        return self.flash_budget is not None or self.ram_budget is not None

    @property
    def brought(self) -> dict[str, str | None]:
        """Flags that may name files of the user's own -> their values."""
        return {name: getattr(self, name) for name in ("model", "weights", "data", "eval_data", "class_names")}

    @property
    def model_options(self) -> dict[str, Any]:
        """How the model is loaded, wherever that is done."""
        return {name: getattr(self, name) for name in ("weights", "image_size", "custom_objects")}

    @property
    def target(self) -> HardwareTarget:
        return self.prune.hardware

    @property
    def requested_quantize(self) -> str:
        """The quantization asked for, or what the target wants where none was."""
        return self.quantize or self.target.quantize

    @property
    def requested_io(self) -> str:
        """What an int8 file takes and gives, as asked for, or as the target wants it where nothing was."""
        return self.io or self.target.io

    @property
    def requested_rewrite(self) -> str:
        """The rewriting asked for, or what the target wants where none was."""
        return self.rewrite or self.target.rewrite


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What to score on what; the flags of `reflow_tf.tools.evaluate`.

    Attributes:
        reference: another model of the same inputs and outputs, with which this one is compared.
        metric: as in `JobConfig`.
        task: what outputs are taken for, as in `PruneConfig`.

    Raises:
        InputError: a number is out of its range, or a task is none.
    """

    model: str
    data: str
    class_names: str | None = None
    preprocess: str = "auto"
    image_size: int | None = None
    batch_size: int = 128
    custom_objects: str | None = None
    reference: str | None = None
    metric: str | None = None
    task: str = AUTO
    workers: str | None = None
    threads_per_worker: int | None = None

    def __post_init__(self) -> None:
        check_workers(self.workers, self.threads_per_worker)
        check_choice("task", self.task, TASKS)
        check_between("batch_size", self.batch_size, 1)
        check_between("image_size", self.image_size, 1)

    @property
    def model_options(self) -> dict[str, Any]:
        """How the model is loaded, wherever that is done."""
        return {name: getattr(self, name) for name in ("image_size", "custom_objects")}
