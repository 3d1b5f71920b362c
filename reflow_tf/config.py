"""What is to happen to a model, checked as soon as it is said."""

import dataclasses
import math

from reflow_tf.choices import (
    ALLOCATION_NAMES,
    ALONE,
    AUTO,
    BALLASTS,
    BASES,
    DEFAULT_SPARSITY,
    EXISTING,
    REPAIRS,
    TARGETS,
    TASKS,
    check_between,
    check_choice,
    check_whole,
)
from reflow_tf.errors import InputError
from reflow_tf.sparsity.channels import CHANNEL_CRITERIA, ELIMINATION
from reflow_tf.sparsity.criteria import CRITERIA
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.patterns import NM, Block, Channel, Pattern, Unstructured
from reflow_tf.sparsity.plan import check_sparsity, is_number
from reflow_tf.targets.target import HardwareTarget
from reflow_tf.targets.xnnpack import DEVICES, XNNPack
from reflow_tf.task import Task


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """What happens to the model.

    Attributes:
        sparsity: fraction of zeros over the prunable kernels, in [0, 1). None: 0.7, or what an N:M pattern implies.
            'existing': the zeros that the model came with are the masks, and no others are set.
        max_size_bytes: instead of a sparsity: the least at which the file has at most so many bytes; with
            max_macs='auto', the widest network of which that is true.
        max_size_flag: what messages call `max_size_bytes`, which the command line knows by two names.
        min_speedup: instead of a sparsity: the least at which the file is estimated to be so many times as fast as the
            dense one; over 1, and only for a target that promises speed.
        pattern: what shape the zeros take; None: what the target wants on the device, layer by layer.
        criterion: which weights matter: a key of `CRITERIA`; or, where channels alone leave, which of those: a key of
            `CHANNEL_CRITERIA`. None: 'magnitude', or 'elimination' of channels.
        allocation: how the zeros are shared out over layers: one of ALLOCATION_NAMES.
        target: what the zeros are for: a key of `TARGETS`.
        prunable: 'target' (the kernels that the target rewards), 'all', or a regular expression searched in paths. A
            kernel that a regular expression leaves out keeps its channels as well, those that it reads included;
            'target' leaves out none where channels are removed, which every target rewards.
        device: for the target xnnpack: what the file is made for, one of `DEVICES`; None: nothing may be worse on any.
        ballast: one of `BALLASTS`: whether exact rewriting may add zeros that change no output.
        basis: one of `BASES`. 'auto': before least squares for a target that promises speed, linear streams of channels
            are turned, exactly, so that zeros cost less (`models.channels.rotation`); 'kept': they are left alone.
        max_macs: whole channels are removed, and with them all but this share of the network's multiply-adds, in
            (0, 1). What comes of it is a narrower network; with a sparsity beside it, weights of that are zeroed then.
            'auto': all but what `max_size_bytes`, or a microcontroller's budgets of flash and RAM, leave room for.
        channel_multiple: of which number the widths of narrower layers are; None: what the target wants.
        task: what the network's outputs are taken for: one of TASKS. 'auto': classes where they end in a softmax or are
            a single sigmoid, or where the model was compiled with a cross-entropy; else numbers.
        memory_budget: bytes that least squares and distillation may take, about; it decides what is kept and what is
            computed again, and never the result. None: a quarter of the machine's memory.
        repair: what restores the pruned model: names of `REPAIRS`, in order, with commas, such as
            'least_squares,reflow'; 'none' and 'auto' stand alone. None: 'reflow', or 'none' for existing zeros.

    Raises:
        InputError: any of them is not one of these.
    """

    sparsity: float | str | None = None
    pattern: Pattern | None = None
    criterion: str | None = None
    allocation: str = "global"
    target: str = "xnnpack"
    prunable: str = "target"
    repair: str | None = None
    device: str | None = None
    ballast: str = "auto"
    basis: str = "auto"
    max_size_bytes: int | None = None
    max_size_flag: str = "max_size_bytes"
    min_speedup: float | None = None
    max_macs: float | str | None = None
    channel_multiple: int | None = None
    memory_budget: int | None = None
    task: str = AUTO

    def __post_init__(self) -> None:
        self._check_criterion()
        check_choice("allocation", self.allocation, ALLOCATION_NAMES)
        check_choice("target", self.target, TARGETS)
        check_choice("basis", self.basis, BASES)
        check_choice("task", self.task, TASKS)
        self._check_device()
        check_choice("ballast", self.ballast, BALLASTS)
        check_between("memory_budget", self.memory_budget, 1)
        if not isinstance(self.prunable, str):
            raise InputError(f"--prunable must be target, all or a regular expression. Received: {self.prunable}")
        self._check_pattern()
        self._check_repairs()
        self._check_budget()
        self._check_existing()  # from here on a sparsity is a number, or taken from the model
        check_sparsity(self.requested_sparsity)
        self._check_channels()
        implied = self.pattern.sparsity if isinstance(self.pattern, NM) else None
        if implied is not None and self.budget is not None:
            name, value = self.budget
            raise InputError(
                f"--pattern={self.pattern} has sparsity {implied:g} and no other: leave --{name} out. "
                f"Received: --{name}={value}"
            )
        given = None if self.sparsity is None else self.requested_sparsity
        if implied is not None and given is not None and not math.isclose(given, implied, abs_tol=1e-9):
            raise InputError(
                f"--pattern={self.pattern} has sparsity {implied:g} and no other: leave --sparsity out. "
                f"Received: --sparsity={given:g}"
            )
        _ = self.stages  # each is checked as well

    def _check_pattern(self) -> None:
        if isinstance(self.pattern, str):
            raise InputError(f"A pattern is a noun: patterns.parse({self.pattern!r}). Received: {self.pattern!r}")
        if self.pattern is not None and (isinstance(self.pattern, type) or not hasattr(self.pattern, "pool")):
            raise InputError(f"A pattern is one of reflow_tf.patterns, such as NM(2, 4). Received: {self.pattern!r}")

    def _check_criterion(self) -> None:
        if not self.sets_zeros:
            check_choice("criterion", self.requested_criterion, CHANNEL_CRITERIA)
        elif self.criterion == ELIMINATION:
            raise InputError(
                f"--criterion={ELIMINATION} chooses channels that --max_macs removes, and no weights. "
                f"Received: --criterion={ELIMINATION} {self._spell_zeros()}"
            )
        else:
            check_choice("criterion", self.requested_criterion, CRITERIA)

    def _spell_zeros(self) -> str:
        given = {"max_macs": self.max_macs, "pattern": self.pattern, "sparsity": self.sparsity}
        return " ".join(f"--{name}={value}" for name, value in given.items() if value is not None)

    def _check_existing(self) -> None:
        if isinstance(self.sparsity, str) and not self.keeps_existing:
            raise InputError(f"--sparsity must be a number, or {EXISTING}. Received: {self.sparsity}")
        if not self.keeps_existing:
            return
        values = {name: getattr(self, name) for name in ("criterion", "allocation", "max_macs")}
        given = [f"--{name}={value}" for name, value in values.items() if value != getattr(PruneConfig, name)]
        if isinstance(self.pattern, NM):
            given.append(f"--pattern={self.pattern}")
        given += [f"--repair={self.repair}"] * ("chita" in self.repairs)
        if given:
            raise InputError(
                f"--sparsity={EXISTING} takes the zeros that are there: nothing else chooses any. "
                f"Received: {' '.join(given)}"
            )

    def _check_device(self) -> None:
        if self.device is None:
            return
        check_choice("device", self.device, DEVICES)
        if not TARGETS[self.target].promises_speed:
            raise InputError(
                f"--device needs a target that promises speed; --target={self.target} does not. "
                f"Received: --device={self.device}"
            )

    def _check_repairs(self) -> None:
        if not isinstance(self.requested_repair, str):
            raise InputError(
                f"--repair must be names of repairs, joined by commas where there are several. "
                f"Received: {self.requested_repair}"
            )
        for name in self.repairs:
            check_choice("repair", name, REPAIRS)
        if len(self.repairs) > 1 and (alone := [name for name in ALONE if name in self.repairs]):
            raise InputError(f"--repair={alone[0]} stands alone. Received: {self.requested_repair}")
        if len(set(self.repairs)) < len(self.repairs):
            raise InputError(f"--repair must name each repair once. Received: {self.requested_repair}")

    def _check_budget(self) -> None:
        wanted = {"sparsity": self.sparsity, **self._budgets}
        given = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
        if len(given) > 1:
            raise InputError(
                f"At most one of --sparsity, --{self.max_size_flag} and --min_speedup may be given. "
                f"Received: {' '.join(given)}"
            )
        check_between(self.max_size_flag, self.max_size_bytes, 1)
        if self.max_size_bytes is not None and self.sets_zeros and TARGETS[self.target].storage == "dense":
            raise InputError(
                f"--{self.max_size_flag} needs a target whose .tflite gets smaller by zeros; that of "
                f"--target={self.target} does not. Received: --{self.max_size_flag}={self.max_size_bytes}"
            )
        if self.min_speedup is None:
            return
        if not is_number(self.min_speedup) or not 1 < self.min_speedup < math.inf:
            raise InputError(f"--min_speedup must be a number over 1. Received: {self.min_speedup}")
        if not TARGETS[self.target].promises_speed:
            raise InputError(
                f"--min_speedup needs a target that promises speed; --target={self.target} does not. "
                f"Received: --min_speedup={self.min_speedup}"
            )

    def _check_channels(self) -> None:
        check_whole("channel_multiple", self.channel_multiple, 1)
        if self.max_macs is None:
            return
        if self.max_macs != AUTO and not (is_number(self.max_macs) and 0 < self.max_macs < 1):
            raise InputError(
                f"--max_macs is a share of the network's multiply-adds and must be in (0, 1), or {AUTO}. "
                f"Received: {self.max_macs}"
            )
        if self.budget is not None:
            name, value = self.budget
            raise InputError(
                f"--{name} counts what zeros save, and --max_macs removes channels: give one of them, or --max_macs "
                f"and --sparsity. Received: --max_macs={self.max_macs} --{name}={value}"
            )
        if isinstance(self.pattern, Channel) == self.sets_zeros:
            raise InputError(
                f"--max_macs removes channels: alone, with --pattern=channel; or, with another --pattern, before "
                f"--sparsity of what is left is zeroed. Received: --max_macs={self.max_macs} "
                f"--pattern={self.pattern or 'auto'}{'' if self.sparsity is None else f' --sparsity={self.sparsity:g}'}"
            )
        if self.sets_zeros:
            return
        if self.allocation not in ("global", "auto"):
            raise InputError(
                f"--max_macs chooses widths by what they cost the prediction: leave --allocation out. "
                f"Received: --allocation={self.allocation}"
            )

    @property
    def known_task(self) -> Task:
        """The task, once somebody has found out; where nobody has, classification."""
        return Task.CLASSIFICATION if self.task == AUTO else Task(self.task)

    @property
    def hardware(self) -> HardwareTarget:
        """The target, set as the configuration says."""
        target = TARGETS[self.target]
        if not isinstance(target, XNNPack):
            return target
        target = dataclasses.replace(target, device=self.device, ballast=self.ballast == "auto")
        pattern = self._own_pattern or target.prefer_pattern()
        outputs = pattern.outputs if isinstance(pattern, Block) else 1
        return dataclasses.replace(target, rows=next(rows for rows in (4, 2, 1) if outputs % rows == 0))

    @property
    def _budgets(self) -> dict[str, float | None]:
        return {self.max_size_flag: self.max_size_bytes, "min_speedup": self.min_speedup}

    @property
    def budget(self) -> tuple[str, float] | None:
        """What zeros have to make of the file: name, value; None where a sparsity decides, or channels that leave."""
        if self.max_macs == AUTO and self.max_size_bytes is not None:
            return None
        found = [(name, value) for name, value in self._budgets.items() if value is not None]
        return found[0] if found else None

    @property
    def sets_zeros(self) -> bool:
        """Whether weights are set to zero: always, but where channels are removed and nobody asked for more."""
        return self.max_macs is None or self.sparsity is not None or isinstance(self.pattern, NM)

    @property
    def stages(self) -> tuple["PruneConfig", ...]:
        """What is done one after the other: channels leave first, then weights of what is left."""
        if self.max_macs is None or not self.sets_zeros:
            return (self,)
        # Of channels both mean that no kernel is left out, and what is the same is to be found once.
        prunable = "target" if self.prunable == "all" else self.prunable
        narrow = dataclasses.replace(
            self, sparsity=None, pattern=Channel(), criterion=None, allocation="global", prunable=prunable
        )
        return narrow, dataclasses.replace(self, max_macs=None)

    @property
    def is_plain(self) -> bool:
        """Whether the network stays as it is: a plain conversion."""
        return self.sparsity == 0 and self.max_macs is None and self.requested_repair == "none"

    @property
    def without_hardware(self) -> "PruneConfig":
        """The same for any target, where channels alone leave by a share; itself where a target has a say."""
        if self.sets_zeros or self.max_macs == AUTO:
            return self
        return dataclasses.replace(
            self,
            target=PruneConfig.target,
            device=None,
            ballast=PruneConfig.ballast,
            channel_multiple=self.requested_channel_multiple,
        )

    @property
    def repairs(self) -> tuple[str, ...]:
        """The names in `repair`, in order."""
        return tuple(self.requested_repair.split(","))

    @property
    def requested_criterion(self) -> str:
        """The criterion asked for, or what is the default where none was."""
        return self.criterion or ("magnitude" if self.sets_zeros else ELIMINATION)

    @property
    def requested_channel_multiple(self) -> int:
        """Of which number widths are, as asked for, or as the target wants it where nothing was."""
        return self.hardware.channel_multiple if self.channel_multiple is None else self.channel_multiple

    @property
    def requested_repair(self) -> str:
        """The repair asked for, or what is the default where none was."""
        if self.repair is not None:
            return self.repair
        return "none" if self.keeps_existing else "reflow"

    @property
    def keeps_existing(self) -> bool:
        """Whether the zeros that the model came with are all that there are to be."""
        return self.sparsity == EXISTING

    @property
    def requested_pattern(self) -> Pattern:
        """The pattern asked for, or what the target wants where none was; single kernels may get another."""
        return self._own_pattern or self.hardware.prefer_pattern()

    def pattern_of(self, spec: LayerSpec) -> Pattern:
        """What shape zeros take in this kernel."""
        return self._own_pattern or self.hardware.choose_pattern(spec)

    @property
    def _own_pattern(self) -> Pattern | None:
        """What the target has no say in: the pattern asked for, or single weights, where existing zeros are taken."""
        return self.pattern or (Unstructured() if self.keeps_existing else None)

    @property
    def turns_streams(self) -> bool:
        """Whether linear streams are put into another basis: only where every weight is fitted anew, to floats."""
        refits = "least_squares" in self.repairs
        if self.max_macs is not None:  # or to int8: afterwards they are spread
            return self.basis == "auto" and (refits or self.requested_repair == "auto")
        if self.keeps_existing:  # which another basis would fill in
            return False
        return self.basis == "auto" and refits and TARGETS[self.target].promises_speed

    @property
    def requested_sparsity(self) -> float:
        """The sparsity asked for, or the default where none was; of no account where there is another budget."""
        if isinstance(self.sparsity, str):
            return 0.0
        if self.sparsity is not None:
            return self.sparsity
        return self.pattern.sparsity if isinstance(self.pattern, NM) else DEFAULT_SPARSITY
