"""One pass over batches by whoever computes, which somebody watches."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from reflow_tf.crew import Site
from reflow_tf.data.portions import Portion, Selectable
from reflow_tf.repair.contract import Progress


def pass_over(site: Site, batches: Iterable[np.ndarray], progress: Progress, description: str) -> Iterator[Any]:
    """What is found for each batch, in their order.

    Here, batches are read one after another, the next one while one is computed. Elsewhere, only their numbers are
    sent, and progress is of what has come back.

    Args:
        site: its items are `Portion`s.
        batches: float arrays (n, ...); a set of which any input can be read, where the site is not here.
        progress: wraps the pass.
        description: what is done.
    """
    if site.is_here:
        watched = progress(batches, description)
        yield from site.map(Portion(number, inputs) for number, inputs in enumerate(watched))
        return
    assert isinstance(batches, Selectable)
    found = site.map([Portion(number) for number in range(len(batches.parts))])
    yield from count_off(found, [len(part) for part in batches.parts], progress, description)


def count_off(found: Iterable[Any], sizes: Sequence[int], progress: Progress, description: str) -> Iterator[Any]:
    """What is found, while progress goes over as many numbers as there are inputs."""
    ticks = iter(progress(range(sum(sizes)), description))
    try:
        for one, size in zip(found, sizes, strict=True):
            for _ in range(size):
                next(ticks)
            yield one
        next(ticks, None)
    finally:
        if hasattr(ticks, "close"):
            ticks.close()
