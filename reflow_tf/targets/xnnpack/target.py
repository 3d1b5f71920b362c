"""XNNPACK as a target: it runs 1x1 convolutions sparse and nothing else.

Source: XNNPACK 75db3c093 `src/subgraph.c` (`xnn_subgraph_rewrite_for_nchw`) and LiteRT f67457790
`tflite/delegates/xnnpack/xnnpack_delegate.cc`; the modules beside this one follow them, and say where versions differ.
"""

import dataclasses

from reflow_tf.sparsity.layers import Kind, LayerSpec
from reflow_tf.sparsity.patterns import Block, Pattern, Unstructured
from reflow_tf.targets.operators import OperatorGraph
from reflow_tf.targets.target import HardwareTarget, Tariff, Verdict
from reflow_tf.targets.xnnpack.judgement import Judgement, judge_version
from reflow_tf.targets.xnnpack.versions import NEWEST, VERSIONS, Version
from reflow_tf.targets.xnnpack.workload import bound_speedup, estimate_speedup, price_macs, share_macs

_CORRUPTS = "compute wrong outputs with this file, or refuse it: store it dense."


@dataclasses.dataclass(frozen=True, kw_only=True)
class XNNPack(HardwareTarget):
    """Rewards zeros in 1x1 convolutions, and in Dense layers that become such in the file."""

    name: str = "xnnpack"
    description: str = "XNNPACK on mobile CPUs can run 1x1 convolutions sparse, so only their kernels are pruned."
    rewrite: str = "exact"
    storage: str = "sparse"
    promises_speed: bool = True

    def obstacle(self, quantize: str) -> str | None:
        """All values of a cluster must be float32 or float16 (src/subgraph.c line 383, `all_values_fp`)."""
        if quantize == "int8":
            return "XNNPACK has sparse kernels for float32 and float16 alone, so zeros in int8 gain nothing there"
        return None

    def caution(self, pattern: Pattern) -> str | None:
        """Blocks of output channels get kernels of their own, and not every machine has good ones.

        XNNPACK takes 2 or 4 output channels at once where over 90 % of such blocks are full
        (src/operators/convolution-nchw.c lines 112-132). ARM64 has vector kernels for that, WebAssembly and 32-bit ARM
        only scalar ones (src/configs/spmm-config.c). Measured on MobileNetV2 at 80 %, each layer alike:
        benchmarks/xnnpack_speed.py.
        """
        if isinstance(pattern, Block) and pattern.outputs > 1:
            return (
                "Zeros in blocks of output channels: on 64-bit ARM, XNNPACK then needs fewer instructions (MobileNetV2 "
                "at 80 %: 2.3 times fewer than dense with 2x1 blocks, 1.75 times without blocks), but in WebAssembly "
                "its kernels for blocks are scalar and slower than dense ones (0.7 times as fast; without blocks 2.5)."
            )
        return None

    def prefer_pattern(self, device: str | None) -> Pattern:
        """On ARM pairs of outputs: the fewest instructions from some 30 % of zeros on (MobileNetV2, Cortex-A76).

        WebAssembly's kernels for blocks are scalar and slower than dense ones: single weights there, and wherever it is
        not known which of the two it will be.
        """
        return Block(2, 1) if device == "arm" else Unstructured()

    def choose_pattern(self, spec: LayerSpec, device: str | None) -> Pattern:
        """XNNPACK decides for each convolution by itself how to store it; a single output has no pair."""
        return Unstructured() if spec.canonical_shape[0] == 1 else self.prefer_pattern(device)

    def objection(self, spec: LayerSpec) -> str | None:
        """Those of `MAP_DENSE` are 1x1 convolutions of a cluster in the file, which exact rewriting makes of them."""
        if spec.kind in (Kind.POINTWISE_CONV, Kind.MAP_DENSE):
            return None
        return f"XNNPACK runs no {spec.kind.value.replace('_', ' ')} sparse"

    def price(self, graph: OperatorGraph) -> Tariff:
        """Multiply-accumulates of what the newest runtime could run sparse; clusters want over two thirds of zeros."""
        judgement = judge_version(graph, NEWEST)
        return Tariff(price_macs(graph, judgement.possible), judgement.least_zeros)

    def judge(self, graph: OperatorGraph, *, version: Version = NEWEST) -> Verdict:
        """Says whether a runtime runs this file sparse, and if not, what stands in the way.

        Args:
            graph: the network.
            version: the runtime; the newest that the rules are known for unless told otherwise.

        Returns:
            The verdict. Its speed-up is the bound of `bound_speedup`: multiply-accumulates, not time.
        """
        judgement = judge_version(graph, version)
        bound = bound_speedup(graph, judgement.sparse) if judgement.eligible else 1.0
        others = [(other, judge_version(graph, other)) for other in VERSIONS if other is not version]
        corrupted_by = tuple(v.name for v, made in [(version, judgement), *others] if made.corrupts)
        return Verdict(
            eligible=judgement.eligible,
            fits=judgement.fits,
            clusters=judgement.clusters,
            blockers=judgement.blockers,
            expected_speedup=bound,
            statement=_state(judgement, version),
            version_notes=_note_differences(judgement, others),
            corrupted_by=corrupted_by,
            sparse_share=share_macs(graph, judgement.possible),
            estimated_speedup=estimate_speedup(bound),
        )


def _state(judgement: Judgement, version: Version) -> str:
    if judgement.corrupts:
        return f"{version.name} would {_CORRUPTS}"
    if judgement.eligible:
        number = sum(cluster.runs_sparse for cluster in judgement.clusters)
        partly = ", but not all of it" if judgement.blockers else ""
        return f"{version.name} runs this file sparse, in {number} cluster{'s' if number > 1 else ''}{partly}."
    if judgement.fits:
        return f"{version.name} runs this file dense; its structure is fit for sparse kernels, its weights are not yet."
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
