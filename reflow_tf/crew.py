"""Who computes what consists of parts: this process alone, or workers; what is computed is the same.

A `Work` is told once, to whoever computes, and prepared there: a model is loaded, images are opened. Then items are
sent, small ones that say which part, and what is found for them comes back in their order. News, such as weights that
changed, are told to all, once each, before the items that need them.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

THREADS = "TF_NUM_INTRAOP_THREADS"
"""The variable of the environment that says how many threads TensorFlow computes with, read when it starts."""


class State:
    """A work prepared where it is computed."""

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        """What is found for each item, in their order."""
        raise NotImplementedError

    def hear(self, news: Any) -> None:
        """Takes in what changed; everything that was told is heard once and in order."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives back what it holds."""


class Work(Protocol):
    """Something to compute in parts. Pickled, it says where its model and its images are, and does not hold them."""

    def prepare(self) -> State:
        """In the process that computes."""
        ...


class Site(Protocol):
    """Where one work is being done.

    Attributes:
        is_here: whether that is in this process, which then reads batches one after another.
    """

    is_here: bool

    def tell(self, news: Any) -> None:
        """Lets every state hear it before the items that are sent from now on."""
        ...

    def map(self, items: Iterable[Any], home: Callable[[Any], int] | None = None) -> Iterator[Any]:
        """What the state finds for each item, in their order.

        Args:
            items: small, and each by itself.
            home: item -> a number; items of the same one are sent to the same worker for as long as it is there.

        Raises:
            InputError: a worker says so, there are none left, or the scheduler is gone.
        """
        ...

    def map_as_done(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """The same as they are found: position of the item and what was found."""
        ...


class Crew(Protocol):
    """Who computes.

    Attributes:
        num_workers: how many.
        num_threads: of each.
        crowding: how many of them share the memory of one machine, at most.
        memory: bytes of that machine, at least.
        address: how workers load the model that all works are about; None where they do not.
    """

    num_workers: int
    num_threads: int
    crowding: int
    memory: int
    address: Any

    def begin(self, work: Work) -> AbstractContextManager[Site]:
        """For the time of the block the work is prepared, or will be by whoever gets an item."""
        ...


class Alone:
    """The crew of one: this process computes by itself.

    Args:
        crowding: how many processes do so on this machine.
    """

    def __init__(self, crowding: int = 1):
        self.num_workers, self.crowding = 1, crowding
        self.num_threads, self.memory = count_threads(), find_memory()
        self.address: Any = None

    @contextlib.contextmanager
    def begin(self, work: Work) -> Iterator["_Here"]:
        state = work.prepare()
        try:
            yield _Here(state)
        finally:
            state.close()


class Readdressed:
    """A crew whose workers load another model, or the same in another form."""

    def __init__(self, crew: Crew, address: Any):
        self._crew, self.address = crew, address
        self.num_workers, self.crowding = crew.num_workers, crew.crowding
        self.num_threads, self.memory = crew.num_threads, crew.memory

    def begin(self, work: Work) -> AbstractContextManager[Site]:
        """Of `Crew`."""
        return self._crew.begin(work)


class _Here:
    """A state in this process."""

    is_here = True

    def __init__(self, state: State):
        self._state = state

    def tell(self, news: Any) -> None:
        self._state.hear(news)

    def map(self, items: Iterable[Any], home: Callable[[Any], int] | None = None) -> Iterator[Any]:
        del home
        return self._state(items)

    def map_as_done(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        return enumerate(self._state(items))


def find_memory(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Bytes of memory that this process may take: the machine's, or what a container or batch job leaves of it.

    Control groups of either version are asked, this process's own and those above it (`man 7 cgroups`).

    Args:
        root: where /proc and /sys are.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_read_memory_limits(root)])


def _read_memory_limits(root: pathlib.Path) -> Iterator[int]:
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:  # not Linux, or hidden
        return
    for _, controllers, own in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        # In a container the path may be that of the host, where only the topmost folder is to be seen.
        for group in (mounted / own.strip("/"), *(mounted / own.strip("/")).parents):
            if not group.is_relative_to(mounted):
                break
            with contextlib.suppress(OSError, ValueError):  # no such folder; the word max
                yield int((group / ("memory.limit_in_bytes" if controllers else "memory.max")).read_text())


def count_threads() -> int:
    """How many threads this process may compute with."""
    given = os.environ.get(THREADS, "")
    return int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0))


ALONE = Alone()
