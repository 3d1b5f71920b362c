"""A worker's side: what it was told, prepared once and kept, one item at a time.

This runs in processes that Dask started. TensorFlow begins here, after the number of its threads is known.
"""

import dataclasses
import os
import pickle
import platform
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from reflow_tf.cluster.census import Resident, describe_here, require_same_versions
from reflow_tf.crew import THREADS, State
from reflow_tf.errors import InputError
from reflow_tf.keras_backend import require_tensorflow
from reflow_tf.native_stderr import native_stderr_dropped

_LOCK = threading.Lock()  # a worker of somebody else's may have several threads, and a model takes one item at a time


@dataclasses.dataclass
class _Seat:
    """A state, and how much of what was told it has heard."""

    state: State
    num_heard: int


_SEATS: dict[str, _Seat] = {}
_FORGOTTEN: set[str] = set()


def dask_setup(worker: Any) -> None:
    """Dask calls it when a worker on this machine starts: Ctrl-C is for whoever started it, and ends it from there."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def keep(payload: bytes) -> bytes:
    """What is told, as a task of its own: Dask passes it from worker to worker, once to each."""
    return payload


def do(name: str, num_threads: int, here: Resident, payloads: Sequence[bytes], item: bytes) -> Any:
    """What the work's state finds for one item.

    Args:
        name: of the work.
        num_threads: for TensorFlow.
        here: whoever sends it, which must have the same code: workers may come after the others were looked at.
        payloads: the work, then all news so far, pickled.
        item: for the state, pickled: reading it may start TensorFlow.

    Raises:
        InputError: the state says so; TensorFlow runs with another number of threads; the code is another.
    """
    with _LOCK:
        require_same_versions({platform.node(): describe_here()}, here)
        _start_tensorflow(num_threads)
        try:
            seat = _SEATS.get(name)
            if seat is None:
                seat = _SEATS[name] = _Seat(pickle.loads(payloads[0]).prepare(), 1)
            for payload in payloads[seat.num_heard :]:
                seat.state.hear(pickle.loads(payload))
                seat.num_heard += 1
            (found,) = seat.state([pickle.loads(item)])
            return found
        except BaseException:
            _close(name)  # half of an item may have been done: it begins anew
            raise
        finally:
            if name in _FORGOTTEN:
                _close(name)


def forget(name: str) -> None:
    """Gives back what the work held here; at once, or when the item that is being done is."""
    _FORGOTTEN.add(name)
    if _LOCK.acquire(blocking=False):
        try:
            _close(name)
        finally:
            _LOCK.release()


def _close(name: str) -> None:
    if (seat := _SEATS.pop(name, None)) is not None:
        seat.state.close()


def _start_tensorflow(num_threads: int) -> None:
    if "tensorflow" in sys.modules:
        running = os.environ.get(THREADS)
        if running != str(num_threads):
            raise InputError(
                f"Workers compute with as many threads as they started with; start them anew, or name that number: "
                f"--threads_per_worker. Received: {num_threads}, where TensorFlow runs with {running or 'its default'}"
            )
        return
    os.environ[THREADS] = os.environ["TF_NUM_INTEROP_THREADS"] = str(num_threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with native_stderr_dropped():
        require_tensorflow()
