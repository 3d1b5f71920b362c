"""What a network's outputs are taken for, which decides how pruned networks are compared with dense ones."""

import enum


class Task(enum.StrEnum):
    """The two ways to read outputs; the values are those of --task, beside 'auto'.

    Attributes:
        CLASSIFICATION: one number a class on the last axis, or a single sigmoid: what counts is which class is best.
        FIDELITY: numbers, each of which counts: what counts is how far they are from those of the dense network.
    """

    CLASSIFICATION = "classification"
    FIDELITY = "fidelity"
