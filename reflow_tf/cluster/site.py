"""One work done by Dask's workers: items become tasks, and what a worker took with it when it died is done again."""

import contextlib
import functools
import pickle
import queue
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from reflow_tf.cluster import desk
from reflow_tf.cluster.census import describe_here, require_same_versions, survey
from reflow_tf.crew import Work
from reflow_tf.errors import Breakdown, InputError

POLL_S = 0.5
"""How long nothing may come back before somebody looks whether everybody is still there."""
READ_S = 10.0
"""How long the results of one item may take to come back."""
PATIENCE_S = 30.0
"""How long there may be no worker at all: one that died may be started again."""
AHEAD = 8
"""Items for each worker that are begun before the first of them is done."""
MOST_ATTEMPTS = 4
"""How often an item is begun whose worker dies; then it is the item that kills them."""


class DaskSite:
    """See `reflow_tf.crew.Site`.

    Args:
        client: of Dask.
        num_threads: of each worker.
        num_homes: among how many workers items are shared out.
        work: to be done.
    """

    is_here = False

    def __init__(self, client: Any, num_threads: int, num_homes: int, work: Work):
        self._client, self._num_threads, self._num_homes = client, num_threads, num_homes
        self._name = f"reflow_tf-{uuid.uuid4().hex}"
        self._told: list[Any] = []
        self._homes: list[str] = []
        self._last_seen = time.monotonic()
        self.tell(work)

    def tell(self, news: Any) -> None:
        """A task of its own holds it, so that Dask passes it on, and has it again if whoever held it dies."""
        payload = pickle.dumps(news, protocol=pickle.HIGHEST_PROTOCOL)
        key = f"{self._name}-told-{len(self._told)}"
        self._told.append(self._client.submit(desk.keep, payload, key=key, pure=False))

    def close(self) -> None:
        """Lets workers give back what they hold for it."""
        self._told.clear()
        if self._client.status == "running":
            with contextlib.suppress(Exception):  # a worker that is just dying has nothing to give back
                self._client.run(desk.forget, self._name, on_error="ignore")

    def map(self, items: Iterable[Any], home: Callable[[Any], int] | None = None) -> Iterator[Any]:
        """Results that came too early wait for their turn, and are few: no item is begun far ahead of the others."""
        early: dict[int, Any] = {}
        following = 0
        for position, found in self._map(list(items), home, AHEAD * self._num_homes):
            early[position] = found
            while following in early:
                yield early.pop(following)
                following += 1

    def map_as_done(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        return self._map(items, None, len(items))

    def _map(self, items: Sequence[Any], home: Callable[[Any], int] | None, most: int) -> Iterator[tuple[int, Any]]:
        """What is found, as it is; at most so many items are begun of which one before them is not done."""
        # Dask gives a task to whoever has what it needs, which is whoever was told first: items are dealt out to all.
        self._settle()
        homes = list(range(len(items))) if home is None else [home(item) for item in items]
        submit = functools.partial(self._submit, stays=home is not None)
        batch = _Batch(submit, [pickle.dumps(item) for item in items], homes)
        self._last_seen = time.monotonic()
        try:
            begun = 0
            while batch.waiting or begun < len(items):
                first = min(batch.waiting.values(), default=begun)
                while begun < min(len(items), first + most):
                    batch.send(begun)
                    begun += 1
                try:
                    future = batch.done.get(timeout=POLL_S)
                except queue.Empty:
                    self._look_after(batch)
                    continue
                if future.key not in batch.waiting:  # it was begun again elsewhere
                    continue
                try:
                    found = self._read(future)
                except TimeoutError:  # whoever found it died before it was fetched
                    future.add_done_callback(batch.done.put)
                    self._look_after(batch)
                    continue
                self._last_seen = time.monotonic()
                yield batch.waiting.pop(future.key), found
        finally:
            batch.cancel()

    def _submit(self, payload: bytes, home: int, key: str, *, stays: bool) -> Any:
        """Begins an item where it is at home; unless it `stays` there, somebody idle may take it."""
        return self._client.submit(
            desk.do,
            *(self._name, self._num_threads, describe_here(), self._told, payload),
            key=f"{self._name}-{key}",
            workers=[self._homes[home % len(self._homes)]],
            allow_other_workers=not stays,
            pure=False,
        )

    def _read(self, future: Any) -> Any:
        """What a task found; its errors in words. TimeoutError where it is not to be had."""
        import distributed

        if future.status == "error":
            error = future.exception()
            if isinstance(error, distributed.KilledWorker):
                raise _outlived() from error
            if not isinstance(error, InputError):  # which other code may be the cause of
                require_same_versions(survey(self._client), describe_here())
                raise error
            kind = Breakdown if isinstance(error, Breakdown) else InputError
            raise kind(f"{error} (in a worker)")
        try:
            return future.result(timeout=READ_S)
        except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
            raise self._gone() from error

    def _look_after(self, batch: "_Batch") -> None:
        """Nothing has come back for a while: looks whether anybody is there, and everything has a worker."""
        live = self._find_workers()
        if live:
            self._last_seen = time.monotonic()
        elif time.monotonic() - self._last_seen > PATIENCE_S:
            raise _deserted()
        if live and not set(self._homes) <= set(live):
            lost = {number for number, address in enumerate(self._homes) if address not in live}
            self._settle(live)
            for key, position in list(batch.waiting.items()):
                if batch.homes[position] % len(self._homes) in lost:
                    del batch.waiting[key]
                    batch.send(position)

    def _settle(self, live: Sequence[str] | None = None) -> None:
        """Gives every home a worker: the one that it had, else one without any, else one that has the fewest."""
        live = live if live is not None else self._find_workers()
        deadline = time.monotonic() + PATIENCE_S
        while not live:
            if time.monotonic() > deadline:
                raise _deserted()
            time.sleep(POLL_S)
            live = self._find_workers()
        kept: dict[int, str] = {}
        for number, address in enumerate(self._homes):
            if address in live and address not in kept.values():
                kept[number] = address
        for number in range(self._num_homes):
            if number not in kept:
                kept[number] = min(live, key=lambda one: (list(kept.values()).count(one), one))
        self._homes = [kept[number] for number in range(self._num_homes)]

    def _find_workers(self) -> list[str]:
        """Addresses, sorted."""
        import distributed

        if self._client.status != "running":
            raise self._gone()
        try:
            return sorted(self._client.nthreads())
        except (OSError, TimeoutError, distributed.CancelledError) as error:
            raise self._gone() from error

    def _gone(self) -> Breakdown:
        scheduler = self._client.scheduler.address if self._client.scheduler else "its address"
        return Breakdown(f"The scheduler must be there until the work is done. Received: none any more at {scheduler}")


def _deserted() -> Breakdown:
    return Breakdown(f"There must be workers for the work. Received: none for {PATIENCE_S:.0f} seconds")


def _outlived() -> Breakdown:
    return Breakdown(
        f"Workers must outlive their work; with less to hold (fewer of them on a machine, a smaller --memory_budget or "
        f"--batch_size) they may. Received: {MOST_ATTEMPTS} that died with the same part of it"
    )


class _Batch:
    """Items that are being done.

    Attributes:
        waiting: key of a task -> position of its item.
        homes: of each item: numbers, each for a worker.
        done: futures as they are done.
    """

    def __init__(
        self,
        submit: Callable[[bytes, int, str], Any],
        payloads: Sequence[bytes],
        homes: Sequence[int],
    ):
        self.waiting: dict[str, int] = {}
        self.homes = homes
        self.done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._submit, self._payloads = submit, payloads
        self._futures: dict[int, Any] = {}
        self._attempts = [0] * len(payloads)

    def send(self, position: int) -> None:
        """Begins an item; again, if it was begun before."""
        self._attempts[position] += 1
        if self._attempts[position] > MOST_ATTEMPTS:
            raise _outlived()
        future = self._submit(self._payloads[position], self.homes[position], uuid.uuid4().hex)
        self.waiting[future.key] = position
        self._futures[position] = future
        future.add_done_callback(self.done.put)

    def cancel(self) -> None:
        """Nobody waits for the rest any more."""
        rest = [self._futures[position] for position in self.waiting.values()]
        if rest and rest[0].client.status == "running":
            with contextlib.suppress(Exception):  # the scheduler may be what is gone
                rest[0].client.cancel(rest)
        self._futures.clear()
