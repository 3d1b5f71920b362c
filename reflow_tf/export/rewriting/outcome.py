"""What a rewrite did, or why it did not."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Applied:
    """A rewrite that was made.

    Attributes:
        rewrite: its name: 'mean', 'rotation', 'padding', 'kept dimensions', 'constants', 'head' or
            'ballast'.
        operators: the layers that it changed, in the order of the file.
        statement: one sentence for the person who reads the report.
    """

    rewrite: str
    operators: tuple[str, ...]
    statement: str


@dataclasses.dataclass(frozen=True)
class Refused:
    """A rewrite that would help and does not hold here.

    Attributes:
        rewrite: as in `Applied`.
        operator: the layer at which it fails.
        reason: one sentence, with the numbers.
    """

    rewrite: str
    operator: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A file that computes what the given one did.

    Attributes:
        content: the file; the very same object where nothing was applied.
        applied: what was done.
        refused: what would help and does not hold.
    """

    content: bytes
    applied: tuple[Applied, ...]
    refused: tuple[Refused, ...]
