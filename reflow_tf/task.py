"""What a network's outputs are taken for, which decides how pruned networks are compared with dense ones."""

import enum


class Task(enum.StrEnum):
    """The ways to read outputs; the values are those of --task, beside 'auto'.

    Attributes:
        CLASSIFICATION: one number a class on the last axis, or a single sigmoid: what counts is which class is best.
        MULTI_LABEL: one sigmoid a label on the last axis: what counts is which labels are on.
        FIDELITY: numbers, each of which counts: what counts is how far they are from those of the dense network.
    """

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi_label"
    FIDELITY = "fidelity"

    @property
    def names_classes(self) -> bool:
        """Whether outputs speak of classes, which can be right or wrong."""
        return self is not Task.FIDELITY
