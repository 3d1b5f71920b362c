"""Progress on standard error, for work that lasts long enough to wonder about.

Nothing is shown in the first two seconds. After that a terminal gets a bar with the time left, which stays when the
work is done; anything else (a pipe, a log) gets one line, when the work is done, and no control characters.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Generic, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reflow_tf.report.wording import seconds

Item = TypeVar("Item")
DELAY_S = 2.0


@contextmanager
def stage(
    description: str, total: int | None = None, *, console: Console | None = None, delay_s: float = DELAY_S
) -> Iterator["Meter"]:
    """Shows a stage of the work while the block runs; call the meter's `advance` as it proceeds.

    Args:
        description: What is done, for example 'Recalibrating'.
        total: How much there is to do, in any unit; None when that is unknown (time passed is shown, not time left).
        console: Where to show it; standard error by default.
        delay_s: Seconds of silence; work that ends sooner is never mentioned.
    """
    with _stderr_console() if console is None else contextlib.nullcontext(console) as shown_on:
        meter = Meter(description, total, shown_on, delay_s)
        try:
            yield meter
        except BaseException:
            meter.close(done=False)
            raise
        meter.close(done=True)


def announce(sentence: str) -> None:
    """Tells the person who waits, on standard error, what the result will say as well."""
    print(f"note: {sentence}", file=sys.stderr, flush=True)


@contextmanager
def _stderr_console() -> Iterator[Console]:
    """A console on a duplicate of descriptor 2: the stage itself may drop what native code writes to 2."""
    with open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="replace") as stream:
        yield Console(file=stream)


def show_progress(items: Iterable[Item], description: str, /) -> Iterator[Item]:
    """One pass over batches with a bar that counts images; over anything else it counts items."""
    total = len(items) if isinstance(items, Sized) else None
    with track(items, description, total=total, size=_count) as tracked:
        yield from tracked


def _count(item: object) -> int:
    return len(item) if isinstance(item, np.ndarray) else 1


@contextmanager
def track(
    iterable: Iterable[Item],
    description: str,
    total: int | None = None,
    *,
    size: Callable[[Item], int] = lambda item: 1,
    console: Console | None = None,
    delay_s: float = DELAY_S,
) -> Iterator["Tracked[Item]"]:
    """Shows how far the iteration over `iterable` is. The bar goes away with the block, also when it fails.

        with track(batches, "Recalibrating", total=1000, size=len) as tracked:
            recalibrate(model, tracked)

    Args:
        iterable: May be gone through more than once if it can be; the bar then starts over.
        description: What is done.
        total: The sum of `size` over all items. By default len(iterable) where there is one and `size` is not given:
            a set of images has a length in images but gives batches, so name both there.
        size: How much of `total` an item is; 1 by default, `len` for batches.
        console: As in `stage`.
        delay_s: As in `stage`.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with stage(description, total, console=console, delay_s=delay_s) as meter:
        yield Tracked(iterable, meter, size)


class Tracked(Generic[Item]):
    """An iterable that moves a meter."""

    def __init__(self, iterable: Iterable[Item], meter: "Meter", size: Callable[[Item], int]):
        self._iterable, self._meter, self._size = iterable, meter, size

    def __iter__(self) -> Iterator[Item]:
        self._meter.restart()
        for item in self._iterable:
            yield item
            # After the yield: an item counts as done when the next one is asked for.
            self._meter.advance(self._size(item))

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]


class Meter:
    """How far a stage is. Made by `stage`; safe to advance from any thread."""

    def __init__(self, description: str, total: int | None, console: Console, delay_s: float):
        self._description, self._console, self._delay_s = description, console, delay_s
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._closed = False
        if not console.is_terminal:
            return
        columns = [TextColumn("{task.description}", markup=False), BarColumn()]
        if total is None:
            columns = [SpinnerColumn(), columns[0], TimeElapsedColumn()]
        else:
            columns += [TextColumn("{task.completed:,.0f} of {task.total:,.0f}"), TimeRemainingColumn(True, True)]
        # sys.stdout and sys.stderr are left alone: what others print must not end up in the display.
        self._progress = Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False)
        self._task = self._progress.add_task(description, total=total)
        # A timer, because the first item alone may take long, and then no call comes in that could show the bar.
        self._timer = threading.Timer(delay_s, self._show)
        self._timer.daemon = True
        self._timer.start()

    def advance(self, amount: int = 1) -> None:
        if self._progress is not None:
            self._progress.advance(self._task, amount)

    def restart(self) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=0)

    def close(self, *, done: bool) -> None:
        """Ends the display; a log gets its line if the work was done and took long enough."""
        duration = time.monotonic() - self._begin
        if self._progress is None:
            if done and duration >= self._delay_s:
                self._console.print(f"{self._description}: {seconds(duration)}", markup=False, highlight=False)
            return
        self._timer.cancel()
        with self._lock:
            self._closed = True
            self._progress.stop()

    def _show(self) -> None:
        with self._lock:
            if self._progress is not None and not self._closed:
                self._progress.start()
