"""XNNPACK as a target: it runs 1x1 convolutions sparse and nothing else.

Source: XNNPACK 75db3c093 `src/subgraph.c` (`xnn_subgraph_rewrite_for_nchw`) and LiteRT f67457790
`tflite/delegates/xnnpack/xnnpack_delegate.cc`; the modules beside this one follow them, and say where versions differ.
"""

import dataclasses
from collections.abc import Mapping

from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.sparsity.patterns import Block, Pattern, Unstructured
from reflow_tf.targets.operators import OperatorGraph
from reflow_tf.targets.target import HardwareTarget, Tariff, Verdict
from reflow_tf.targets.xnnpack.costs import DEVICES
from reflow_tf.targets.xnnpack.judgement import Judgement, judge_version
from reflow_tf.targets.xnnpack.speedups import (
    LEAST_GAIN,
    PRUNED_SHARE,
    assume_sparsity,
    compare_costs,
    foresee_speedups,
    price_weights,
    say_speedups,
)
from reflow_tf.targets.xnnpack.versions import NEWEST, VERSIONS, Version

FORESEEN_SPARSITIES = (0.5, 0.7, 0.8, 0.9)
_CORRUPTS = "compute wrong outputs with this file, or refuse it: store it dense."


@dataclasses.dataclass(frozen=True, kw_only=True)
class XNNPack(HardwareTarget):
    """Rewards zeros in 1x1 convolutions, and in Dense layers that become such in the file.

    Attributes:
        device: where the file is to be fast, a key of `DEVICES`; None: on every one of them.
        ballast: exact rewriting adds zeros that change no output where sparse kernels pay and too few weights are zero.
        rows: output channels that the zeros take together, of 1, 2 and 4: the sparse kernels that will be chosen.
    """

    name: str = "xnnpack"
    description: str = "XNNPACK on mobile CPUs can run 1x1 convolutions sparse, so only their kernels are pruned."
    rewrite: str = "exact"
    storage: str = "sparse"
    promises_speed: bool = True
    device: str | None = None
    ballast: bool = True
    rows: int = 1

    @property
    def devices(self) -> tuple[str, ...]:
        """Where the file is to be fast."""
        return tuple(DEVICES) if self.device is None else (self.device,)

    @property
    def ballast_for(self) -> tuple[str, ...]:
        return self.devices if self.ballast else ()

    def obstacle(self, quantize: str) -> str | None:
        """All values of a cluster must be float32 or float16 (src/subgraph.c line 383, `all_values_fp`)."""
        if quantize == "int8":
            return (
                "XNNPACK has sparse kernels for float32 and float16 alone, so zeros in int8 gain nothing there; "
                "--target=cpu makes int8 files"
            )
        return None

    def caution(self, pattern: Pattern) -> str | None:
        """Blocks of output channels get kernels of their own, and not every machine has good ones.

        XNNPACK takes 2 or 4 output channels at once where over 90 % of such blocks are full
        (src/operators/convolution-nchw.c lines 112-132). ARM64 has vector kernels for that, WebAssembly and 32-bit ARM
        only scalar ones (src/configs/spmm-config.c). Measured on MobileNetV2 at 80 %, each layer alike:
        benchmarks/xnnpack_speed.py.
        """
        if isinstance(pattern, Block) and pattern.outputs > 1 and self.device != "arm":
            return (
                "Zeros in blocks of output channels: on 64-bit ARM, XNNPACK then needs fewer instructions (MobileNetV2 "
                "at 80 %: 2.3 times fewer than dense with 2x1 blocks, 1.75 times without blocks), but in WebAssembly "
                "its kernels for blocks are scalar and slower than dense ones (0.7 times as fast; without blocks 2.5)."
            )
        return None

    def prefer_pattern(self) -> Pattern:
        """On ARM pairs of outputs: the fewest instructions from some 30 % of zeros on (MobileNetV2, Cortex-A76).

        WebAssembly's kernels for blocks are scalar and slower than dense ones: single weights there, and wherever it is
        not known which of the two it will be.
        """
        return Block(2, 1) if self.device == "arm" else Unstructured()

    def choose_pattern(self, spec: LayerSpec) -> Pattern:
        """XNNPACK decides for each convolution by itself how to store it; a single output has no pair."""
        return Unstructured() if spec.canonical_shape[0] == 1 else self.prefer_pattern()

    def objection(self, spec: LayerSpec) -> str | None:
        """Those of `MAP_DENSE` are 1x1 convolutions of a cluster in the file, which exact rewriting makes of them."""
        if spec.kind in (Kind.POINTWISE_CONV, Kind.MAP_DENSE):
            return None
        return f"XNNPACK runs no {spec.kind.value.replace('_', ' ')} sparse"

    def price(self, graph: OperatorGraph) -> Tariff:
        """Costs of what the newest runtime could run sparse, in shares of the dense network's; summed over devices.

        Without ballast, clusters want over two thirds of zeros as well.
        """
        judgement = judge_version(graph, NEWEST)
        devices = [DEVICES[name] for name in self.devices]
        prices = price_weights(graph, judgement.possible, devices, self.rows)
        return Tariff(prices, 0 if self.ballast else judgement.least_zeros)

    def estimate_speedup(self, graph: OperatorGraph) -> float:
        """On the device that gains less; with ballast, of the sparse file where that pays, else of the dense one."""
        judgement = judge_version(graph, NEWEST)
        if self.ballast and not judgement.eligible:
            possible = self.choose_speedup(foresee_speedups(graph, judgement))
            return possible if possible >= LEAST_GAIN else 1.0
        return self.choose_speedup(_compare_now(graph, judgement))

    def choose_speedup(self, speedups: Mapping[str, float]) -> float:
        """That of the device, or the least where the file is for all."""
        return min(speedups[name] for name in self.devices)

    def judge(self, graph: OperatorGraph, *, version: Version = NEWEST) -> Verdict:
        """Says whether a runtime runs this file sparse, and if not, what stands in the way.

        Args:
            graph: the network.
            version: the runtime; the newest that the rules are known for unless told otherwise.

        Returns:
            The verdict. Its speed-ups are estimates, from the costs in `DEVICES`.
        """
        judgement = judge_version(graph, version)
        now, possible = _compare_now(graph, judgement), foresee_speedups(graph, judgement)
        others = [(other, judge_version(graph, other)) for other in VERSIONS if other is not version]
        corrupted_by = tuple(v.name for v, made in [(version, judgement), *others] if made.corrupts)
        return Verdict(
            eligible=judgement.eligible,
            fits=judgement.fits,
            clusters=judgement.clusters,
            blockers=judgement.blockers,
            speedups=now,
            possible_speedups=possible,
            foreseen_speedups={s: _foresee(graph, judgement, s) for s in FORESEEN_SPARSITIES if judgement.fits},
            statement=_state(graph, judgement, version, now, possible),
            version_notes=_note_differences(judgement, others),
            corrupted_by=corrupted_by,
        )


def _foresee(graph: OperatorGraph, judgement: Judgement, sparsity: float) -> Mapping[str, float]:
    return foresee_speedups(assume_sparsity(graph, judgement.possible, sparsity), judgement)


def _compare_now(graph: OperatorGraph, judgement: Judgement) -> Mapping[str, float]:
    """What the file gains as it is: nothing where it runs dense, or would be computed wrong."""
    return compare_costs(graph, judgement.switched if judgement.eligible else ())


def _state(
    graph: OperatorGraph,
    judgement: Judgement,
    version: Version,
    now: Mapping[str, float],
    possible: Mapping[str, float],
) -> str:
    if judgement.corrupts:
        return f"{version.name} would {_CORRUPTS}"
    if judgement.eligible:
        number = sum(cluster.runs_sparse for cluster in judgement.clusters)
        partly = ", but not all of it" if judgement.blockers else ""
        runs = f"{version.name} runs this file sparse, in {number} cluster{'s' if number > 1 else ''}{partly}."
        speedups = say_speedups(now, would=False)
        return f"{runs} {speedups[0].upper()}{speedups[1:]}"
    if judgement.fits:
        runs = f"{version.name} runs this file dense; its structure is fit for sparse kernels, its weights are not yet."
        weights = [graph.values[graph.operators[index].inputs[1]] for index in judgement.possible]
        if sum(each.num_zeros for each in weights) <= PRUNED_SHARE * sum(each.num_elements for each in weights):
            return runs
        return f"{runs} Run sparse all the same, {say_speedups(possible, would=True)}"
    return f"{version.name} cannot run this file sparse: something stands in the way in its structure."


def _note_differences(judgement: Judgement, others: list[tuple[Version, Judgement]]) -> tuple[str, ...]:
    """What the other versions would do differently, one sentence for all that do the same."""
    together: dict[str, list[str]] = {}
    for version, made in others:
        if difference := _compare(judgement, made):
            together.setdefault(difference, []).append(version.name)
    return tuple(f"{' and '.join(names)} {difference}" for difference, names in together.items())


def _compare(judgement: Judgement, made: Judgement) -> str | None:
    if made.corrupts:
        return None if judgement.corrupts else f"would {_CORRUPTS}"
    if made.eligible == judgement.eligible and made.fits == judgement.fits:
        return None
    if judgement.eligible or (judgement.fits and not made.fits):
        first = next((blocker for blocker in made.blockers if blocker not in judgement.blockers), None)
        because = f": {first.operator or 'the file'}: {first.reason}" if first else ""
        return f"would not run it sparse{because}."
    return "would run it sparse." if made.eligible else "could run it sparse."
