"""Whether a file gets what a target rewards, as it is and after every rewrite that leaves its outputs alone."""

import dataclasses

from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.rewriting.outcome import Applied, Refused
from reflow_tf.targets.target import HardwareTarget, Verdict
from reflow_tf.targets.xnnpack import XNNPack


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
    """Judges a .tflite file, and what exact rewriting would make of it.

    Args:
        content: the file.
        target: whose rules; XNNPACK's unless told otherwise. Rewriting is tried for targets that want it.

    Raises:
        InputError: `content` is not a whole .tflite file.
    """
    target = target or XNNPack()
    as_given = target.judge(read_operators(content))
    if target.rewrite == "none":
        return Explanation(as_given, as_given, (), ())
    rewritten = rewrite_exact(content)
    if rewritten.content is content:
        return Explanation(as_given, as_given, (), rewritten.refused)
    verdict = target.judge(read_operators(rewritten.content))
    return Explanation(as_given, verdict, rewritten.applied, rewritten.refused)
