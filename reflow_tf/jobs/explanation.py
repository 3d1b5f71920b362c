"""Whether a file gets what a target rewards, as it is and after every rewrite that leaves its outputs alone."""

import dataclasses

from reflow_tf.export import flatbuffer
from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.rewriting.outcome import Applied, Refused
from reflow_tf.targets.target import Blocker, HardwareTarget, Verdict
from reflow_tf.targets.xnnpack import XNNPack

_PROMISE = "--rewrite=exact"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a target makes of a file.

    Attributes:
        as_given: of these very bytes.
        rewritten: of the file after `rewrite_exact`; the same verdict where no rewrite applies.
        applied: what was rewritten for it.
        refused: what would help and does not hold here.
    """

    as_given: Verdict
    rewritten: Verdict
    applied: tuple[Applied, ...]
    refused: tuple[Refused, ...]

    @property
    def can_be_eligible(self) -> bool:
        """As it is, or once it is rewritten, pruned and stored sparse."""
        return any(verdict.eligible or verdict.fits for verdict in (self.as_given, self.rewritten))


def explain(content: bytes, target: HardwareTarget | None = None) -> Explanation:
    """Judges a .tflite file, and what exact rewriting would make of it; one with an open batch for a batch of 1.

    Args:
        content: the file.
        target: whose rules; XNNPACK's unless told otherwise. Rewriting is tried for targets that want it.

    Raises:
        InputError: `content` is not a whole .tflite file, or leaves the size of its input open.
    """
    target = target or XNNPack()
    content = flatbuffer.fix_batch(content)
    as_given = target.inspect(read_operators(content))
    if target.rewrite == "none":
        return Explanation(as_given, as_given, (), ())
    rewritten = rewrite_exact(content, target.ballast_for)
    verdict = as_given if rewritten.content is content else target.inspect(read_operators(rewritten.content))
    # A verdict knows one operator at a time, and what rewriting makes of them depends on all: it is tried before a
    # remedy that relies on it is shown.
    left = verdict.blockers
    after = _withdraw(verdict, left, rewritten.refused)
    before = after if verdict is as_given else _withdraw(as_given, left, rewritten.refused)
    return Explanation(before, after, rewritten.applied, rewritten.refused)


def _withdraw(verdict: Verdict, left: tuple[Blocker, ...], refused: tuple[Refused, ...]) -> Verdict:
    """A verdict without the promises that rewriting did not keep; `left` still stands in the way after it."""

    def correct(blocker: Blocker) -> Blocker:
        if not any(_is_same(blocker, other) for other in left):
            return blocker
        kept = [part for part in blocker.remedy.split("; ") if _PROMISE not in part]
        if kept == blocker.remedy.split("; "):
            return blocker
        return dataclasses.replace(blocker, remedy="; ".join([*kept, _excuse(blocker, refused)]))

    clusters = tuple(
        dataclasses.replace(cluster, blockers=tuple(map(correct, cluster.blockers))) for cluster in verdict.clusters
    )
    return dataclasses.replace(verdict, clusters=clusters, blockers=tuple(map(correct, verdict.blockers)))


def _is_same(blocker: Blocker, left: Blocker) -> bool:
    """Whether a promise of one blocker is one that is still made of what is left; layers may have gone from it."""
    if _PROMISE not in left.remedy:
        return False
    return blocker.reason == left.reason or blocker.operator == left.operator


def _excuse(blocker: Blocker, refused: tuple[Refused, ...]) -> str:
    if not refused:
        return f"{_PROMISE} finds nothing here that it could change"
    own = next((each for each in refused if each.operator in blocker.operator.replace(" and ", ", ").split(", ")), None)
    reason = (own or refused[0]).reason.rstrip(".")
    return f"{_PROMISE} cannot do it here: {reason}"
