"""What a kind of hardware is to this tool: a judge of which kernels it pays to prune, and of whole networks."""

import abc
import dataclasses
from collections.abc import Mapping

from reflow_tf.sparsity.budget import Price
from reflow_tf.sparsity.layers import LayerSpec
from reflow_tf.sparsity.patterns import Pattern, Unstructured
from reflow_tf.targets.operators import OperatorGraph

_FORCED_FLOAT16 = (
    "Never force float16 arithmetic on this file (TFLITE_XNNPACK_DELEGATE_FLAG_FORCE_FP16, or a benchmark's "
    "--xnnpack_force_fp16): where XNNPACK runs layers sparse it reads their weights in the wrong type then, and gives "
    "NaN or crashes."
)


@dataclasses.dataclass(frozen=True)
class Blocker:
    """Something that keeps a network from what the target rewards.

    Attributes:
        operator: the layer that a person recognises, or several: 'conv1, conv2 and 3 more'; '' for the whole file.
        kind: TFLite's names of these operators; '' where it is the whole file.
        reason: what is so, with numbers, and what is needed.
        remedy: what would change it, or that nothing does.
    """

    operator: str
    kind: str
    reason: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Operators that run sparse together or not at all.

    Attributes:
        operators: names of the layers, in the order of execution.
        num_weights: the network's own weights that count against the threshold (those of its 1x1 convolutions).
        num_zeros: how many of them are zero.
        num_ballast: zeros that count as well and that exact rewriting added.
        blockers: what keeps this cluster from running sparse.
        runs_sparse: it will, as the file is.
    """

    operators: tuple[str, ...]
    num_weights: int
    num_zeros: int
    blockers: tuple[Blocker, ...]
    runs_sparse: bool
    num_ballast: int = 0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a target makes of one file.

    Attributes:
        eligible: this very file gets what the target rewards.
        fits: its structure would, given enough zeros and stored sparse.
        clusters: what runs sparse together, or would.
        blockers: the root causes of everything that is not eligible, each once.
        statement: the verdict in one sentence.
        version_notes: where the versions of a runtime would judge differently.
        corrupted_by: runtimes that compute wrong outputs with this file, or refuse it, because it stores zeros sparse:
            it must be stored dense.
        speedups: device -> how many times as fast as dense this very file is estimated to be; 1 where it runs dense. {}
            where the target promises no speed.
        possible_speedups: the same if all that could run sparse did, with the zeros that it has.
        foreseen_speedups: sparsity -> the same with this share of each layer's weights zero.
        warnings: what a person who ships this file has to know, in sentences; see `HardwareTarget.inspect`.
    """

    eligible: bool
    fits: bool
    clusters: tuple[Cluster, ...]
    blockers: tuple[Blocker, ...]
    statement: str
    version_notes: tuple[str, ...] = ()
    corrupted_by: tuple[str, ...] = ()
    speedups: Mapping[str, float] = dataclasses.field(default_factory=dict)
    possible_speedups: Mapping[str, float] = dataclasses.field(default_factory=dict)
    foreseen_speedups: Mapping[float, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tariff:
    """What the weights of one network cost a target.

    Attributes:
        prices: index of a constant in `OperatorGraph.values` -> what a weight of it costs. Zeros in constants that are
            not here save nothing.
        least_zeros: so many weights of those constants must be zero before any zero saves anything; 0 where exact
            rewriting adds what is missing.
    """

    prices: Mapping[int, Price]
    least_zeros: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardwareTarget(abc.ABC):
    """One kind of hardware, or one thing that a user wants small; what a target does not say is as it is here.

    Attributes:
        name: as `--target` spells it.
        description: one sentence on what the target rewards.
        rewrite: the rewriting of files that the target wants by default, as `--rewrite` spells it.
        quantize: the quantization of files that the target wants by default, as `--quantize` spells it.
        io: what its int8 files take and give, as `--io` spells it.
        storage: how its files store zeros: 'sparse', 'bitmap' or 'dense', as `export_tflite` spells it.
        channel_multiple: of which number widths suit its kernels.
        runtime: what runs its files on this machine: 'litert' or 'tflm'.
        is_microcontroller: whether its files have budgets of flash and RAM.
        promises_speed: whether its verdicts say how much faster a file gets.
    """

    name: str
    description: str
    rewrite: str = "none"
    quantize: str = "none"
    io: str = "int8"
    storage: str = "dense"
    channel_multiple: int = 8
    runtime: str = "litert"
    is_microcontroller: bool = False
    promises_speed: bool = False

    @property
    def ballast_for(self) -> tuple[str, ...]:
        """Devices on which a file has to gain from zeros for exact rewriting to add ballast; none: it adds none."""
        return ()

    def obstacle(self, quantize: str) -> str | None:
        """Why zeros gain nothing here in a file that is quantized so, or None if they do."""
        del quantize
        return None

    def caution(self, pattern: Pattern) -> str | None:
        """What a person should know who prunes in this pattern for this target, in sentences; None if nothing."""
        del pattern
        return None

    def prefer_pattern(self) -> Pattern:
        """What shape zeros are to take where nobody says."""
        return Unstructured()

    def choose_pattern(self, spec: LayerSpec) -> Pattern:
        """`prefer_pattern`, or for a kernel in which that does not pay, what does."""
        del spec
        return self.prefer_pattern()

    def objection(self, spec: LayerSpec) -> str | None:
        """Why zeros in this kernel gain nothing here, or None if they do."""
        del spec
        return None

    @abc.abstractmethod
    def price(self, graph: OperatorGraph) -> Tariff:
        """Says what the weights of this network cost, in the unit that the target counts in."""

    def estimate_speedup(self, graph: OperatorGraph) -> float:
        """How many times as fast as dense a file of this network will be; 1 where the target promises no speed."""
        del graph
        return 1.0

    @abc.abstractmethod
    def judge(self, graph: OperatorGraph) -> Verdict:
        """Says whether this network gets what the target rewards, and what stands in the way."""

    def inspect(self, graph: OperatorGraph) -> Verdict:
        """`judge`, with what a person has to know who ships this very file, whatever the verdict."""
        verdict = self.judge(graph)
        if self.runtime == "litert" and graph.stores_sparse_floats:
            verdict = dataclasses.replace(verdict, warnings=(*verdict.warnings, _FORCED_FLOAT16))
        return verdict
