"""What became of the dense network before anything was pruned, in the words of every report that tells it."""

from reflow_tf.report.wording import SPACE, plural


def describe_unmerged(number: int) -> str:
    """That so many batch norms, at least one, got moments of their own, see `repair.unmerging`."""
    norms = plural(number, "batch norm").replace(SPACE, " ")
    return (
        f"{norms} had mean 0 and variance 1, as where an importer merged their moments into scale and shift. They "
        "got those of the dense network on the calibration inputs before pruning; it computes what it did."
    )
