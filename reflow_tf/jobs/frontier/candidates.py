"""What is tried on a device: the plain conversions that anyone gets, then fewer channels, zeros, and both."""

import dataclasses
from collections.abc import Iterator, Sequence

from reflow_tf.choices import AUTO, FORMATS
from reflow_tf.config import PruneConfig
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.sparsity.patterns import Channel

PLAIN, NARROW, SPARSE, BOTH = "plain", "narrow", "sparse", "narrow and sparse"
CONVERTED = "converted"  # of a finished file alone
_ORDER = (PLAIN, CONVERTED, NARROW, SPARSE, BOTH)
_SHARES = (0.65, 0.8, 0.5)  # of the multiply-adds that stay; the middle first: it tells which of the others is worth it
_SPARSITIES = (0.7, 0.5, 0.8)
_PAIRS = ((0.65, 0.7), (0.8, 0.5))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One file to make and to measure.

    Attributes:
        name: what a person calls it: 'narrow 80 %, int8'.
        kind: PLAIN, NARROW, SPARSE or BOTH; of a finished file PLAIN, as it is, CONVERTED or SPARSE.
        number_format: a key of `FORMATS`.
        turn: when it is made, from 0; those of the same turn one kind after the other.
        target: of the job.
        prune: what is pruned.
    """

    name: str
    kind: str
    number_format: str
    turn: int
    target: str
    prune: PruneConfig

    @property
    def rank(self) -> tuple[bool, int, int]:
        """By which candidates are ordered: plain ones first, then turn by turn."""
        return self.kind != PLAIN, self.turn, _ORDER.index(self.kind)

    @property
    def folder(self) -> str:
        """The name as that of a folder: 'narrow_80_int8'."""
        words = self.name.replace("%", "").replace(",", " ").split()
        return "_".join(word for word in words if word != "and")

    def goes_as_far_as(self, other: "Candidate") -> bool:
        """Whether it leaves out all that the other does, and so loses at least as much, in the same number format.

        How far a network goes that is narrowed to fit nobody knows before.
        """
        if AUTO in (self.prune.max_macs, other.prune.max_macs):
            return False
        (own_macs, own_zeros), (macs, zeros) = (_read_extent(each.prune) for each in (self, other))
        return own_macs <= macs and own_zeros >= zeros

    @property
    def without_narrowing(self) -> "Candidate":
        """What its zeros are alone; the same for all that have these."""
        prune = dataclasses.replace(self.prune, max_macs=None)
        return dataclasses.replace(self, name=SPARSE, kind=SPARSE, turn=0, prune=prune)

    def job(self, base: JobConfig, device: Device, output_dir: str) -> JobConfig:
        """The run of the pruning tool that makes it."""
        return dataclasses.replace(
            base,
            prune=dataclasses.replace(self.prune, task=base.prune.task),
            output_dir=output_dir,
            overwrite=False,
            quantize=FORMATS[self.number_format],
            **device.job,
        )


def list_candidates(
    device: Device, repair: str, memory_budget: int | None = None, *, has_budget: bool = False
) -> tuple[Candidate, ...]:
    """All of them, by rank.

    Args:
        device: where.
        repair: of what is pruned, as `--repair` spells it.
        memory_budget: as in `PruneConfig`.
        has_budget: whether flash or RAM there are limited: then one network is as narrow as that asks.
    """
    plain = [_plain(device, number_format) for number_format in device.formats]
    shared = {"repair": repair, "memory_budget": memory_budget}
    shares = (AUTO, *_SHARES) if has_budget else _SHARES
    others = [*_narrow(device, shares, shared), *_sparse(device, shared), *_both(device, shared)]
    return tuple(sorted((*plain, *others), key=lambda candidate: candidate.rank))


def _plain(device: Device, number_format: str) -> Candidate:
    prune = PruneConfig(target=device.dense_target, sparsity=0.0, repair="none")
    return Candidate(f"plain {number_format}", PLAIN, number_format, 0, device.dense_target, prune)


def _narrow(device: Device, shares: Sequence[float | str], shared: dict) -> Iterator[Candidate]:
    for share in shares:
        for number_format in device.formats:
            prune = PruneConfig(target=device.dense_target, pattern=Channel(), max_macs=share, **shared)
            how_far = "to fit" if isinstance(share, str) else f"{share:.0%}".replace("%", " %")
            turn = 0 if isinstance(share, str) else _SHARES.index(share)
            name = f"narrow {how_far}, {number_format}"
            yield Candidate(name, NARROW, number_format, turn, device.dense_target, prune)


def _sparse(device: Device, shared: dict) -> Iterator[Candidate]:
    for turn, sparsity in enumerate(_SPARSITIES):
        for number_format in device.sparse_formats:
            prune = PruneConfig(
                target=device.target, sparsity=sparsity, allocation=_allocation(device), **device.prune, **shared
            )
            name = f"sparse {sparsity:.0%}, {number_format}".replace("%", " %")
            yield Candidate(name, SPARSE, number_format, turn, device.target, prune)


def _both(device: Device, shared: dict) -> Iterator[Candidate]:
    for turn, (share, sparsity) in enumerate(_PAIRS, start=len(_SHARES)):  # after its parts
        for number_format in device.sparse_formats:
            prune = PruneConfig(
                target=device.target,
                max_macs=share,
                sparsity=sparsity,
                allocation=_allocation(device),
                **device.prune,
                **shared,
            )
            name = f"narrow {share:.0%} and sparse {sparsity:.0%}, {number_format}".replace("%", " %")
            yield Candidate(name, BOTH, number_format, turn, device.target, prune)


def _read_extent(prune: PruneConfig) -> tuple[float, float]:
    """Which share of the multiply-adds stays, and which of the weights is zeroed then."""
    macs, zeros = prune.max_macs or 1.0, prune.sparsity or 0.0
    assert not isinstance(macs, str) and not isinstance(zeros, str)
    return macs, zeros


def _allocation(device: Device) -> str:
    """XNNPACK's ballast wants layers alike; where every kernel is pruned, large ones can spare more."""
    return "uniform" if device.target == "xnnpack" else "erk"
