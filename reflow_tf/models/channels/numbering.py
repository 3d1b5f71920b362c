"""Numberings of channels: which of them turn out to be one and the same, and which nobody may touch.

The last axis of every tensor is a *layout*: numberings one behind the other, several after a concatenation, the same
one many times after maps were flattened. What an operation does to its input says which layouts are equal.
"""

from collections.abc import Iterable

import keras

Layout = tuple[int, ...]


class Numberings:
    """Numberings as they are found to be equal (union-find), and the axes of variables that they number."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._sizes: list[int] = []
        self._reasons: dict[int, str] = {}
        self._axes: dict[tuple[int, int], Layout] = {}
        self._variables: dict[int, keras.Variable] = {}
        self._held: dict[int, str] = {}

    def new(self, size: int) -> Layout:
        """The layout of an axis of so many channels of which nothing is known yet."""
        self._parents.append(len(self._parents))
        self._sizes.append(size)
        return (len(self._parents) - 1,)

    def root(self, numbering: int) -> int:
        """The one numbering that stands for all that are equal to this one."""
        while self._parents[numbering] != numbering:
            self._parents[numbering] = self._parents[self._parents[numbering]]
            numbering = self._parents[numbering]
        return numbering

    def size(self, layout: Iterable[int]) -> int:
        """How many channels the axis has."""
        return sum(self._sizes[numbering] for numbering in layout)

    def freeze(self, layout: Iterable[int], reason: str) -> None:
        """Nobody may reorder these channels; the first reason stays."""
        for numbering in layout:
            self._reasons.setdefault(self.root(numbering), reason)

    def join(self, one: Layout, other: Layout) -> None:
        """Two axes have the same channels in the same order. Layouts cut in different places are frozen both."""
        if [self._sizes[n] for n in one] != [self._sizes[n] for n in other]:
            self.freeze((*one, *other), "meets channels that are put together otherwise")
            return
        for first, second in zip(one, other, strict=True):
            kept, gone = self.root(first), self.root(second)
            if kept == gone:
                continue
            self._parents[gone] = kept
            if (reason := self._reasons.pop(gone, None)) is not None:
                self._reasons.setdefault(kept, reason)

    def bind(self, variable: keras.Variable, axis: int, layout: Layout) -> None:
        """Says that an axis of the variable has these channels, wherever else it is used."""
        axis %= len(variable.shape)
        self._variables[id(variable)] = variable
        if self.size(layout) != variable.shape[axis]:
            self.freeze(layout, f"does not fit the axis of {variable.path}")
            self.hold(variable, "is used with another number of channels")
            return
        self.join(self._axes.setdefault((id(variable), axis), layout), layout)

    def hold(self, variable: keras.Variable, reason: str) -> None:
        """Something reads the variable in a way that is not known: no channels of it may be touched."""
        self._held.setdefault(id(variable), reason)

    def axes(self) -> list[tuple[keras.Variable, int, Layout]]:
        """Every axis that is bound, as (variable, axis, layout of roots), in the order in which they were met."""
        return [
            (self._variables[of], axis, tuple(self.root(numbering) for numbering in layout))
            for (of, axis), layout in self._axes.items()
        ]

    def reasons(self) -> dict[int, str]:
        """Root -> why it is frozen; of those with an axis in a held variable, too."""
        for variable, _, layout in self.axes():
            if (reason := self._held.get(id(variable))) is not None:
                self.freeze(layout, f"{variable.path} {reason}")
        return dict(self._reasons)
