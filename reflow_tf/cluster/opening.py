"""From what `--workers` says to a crew: this process, processes on this machine, or a scheduler's workers."""

import contextlib
import importlib.util
import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

from reflow_tf.cluster.census import Resident, count_crowding, describe_here, require_same_versions, survey
from reflow_tf.cluster.site import DaskSite
from reflow_tf.crew import ALONE, THREADS, Crew, Work
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why

CONNECT_S = 10
"""How long a scheduler may take to answer."""
START_S = 60
"""How long each of the workers may take to be there: on few cores they start one after another."""


class DaskCrew:
    """See `reflow_tf.crew.Crew`."""

    def __init__(self, client: Any, residents: dict[str, Resident], num_threads: int | None, address: Any):
        self._client = client
        self.address = address
        self.num_workers = len(residents)
        self.crowding = count_crowding(residents)
        self.memory = min(resident.memory for resident in residents.values())
        fewest = min(resident.num_cores for resident in residents.values())
        self.num_threads = num_threads or _share_out(fewest, self.crowding)

    @contextlib.contextmanager
    def begin(self, work: Work) -> Iterator[DaskSite]:
        site = DaskSite(self._client, self.num_threads, self.num_workers, work)
        try:
            yield site
        finally:
            site.close()


@contextlib.contextmanager
def open_crew(workers: str | None, num_threads: int | None = None, address: Any = None) -> Iterator[Crew]:
    """For the time of the block there is somebody who computes.

    Args:
        workers: None: this process; a number: so many processes on this machine; tcp://HOST:PORT: a scheduler of Dask.
        num_threads: of each worker; None: the cores of a machine shared out among the workers on it.
        address: how workers load the model.

    Raises:
        InputError: Dask is not installed, the scheduler cannot be reached, has no workers, or they have other versions.
    """
    if workers is None:
        yield ALONE
        return
    _require_dask()
    import dask
    import distributed  # its settings are there before ours are put over them, and stay behind

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="reflow_tf-", ignore_cleanup_errors=True))
        stack.enter_context(dask.config.set({**_SETTINGS, "temporary-directory": folder}))
        _silence(distributed.__name__)
        if workers.isdecimal():
            client = _start(int(workers), num_threads, folder, stack)
        else:
            client = _connect(workers, stack)
        yield DaskCrew(client, _survey(client, workers), num_threads, address)


# Dask counts as its own the memory of what it keeps, which here is next to nothing: what TensorFlow holds it sees as
# leaked, and would pause or kill workers for it (dask/distributed issues 6110 and 2333).
_SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.multiprocessing-method": "spawn",  # TensorFlow does not survive a fork
    "distributed.admin.large-graph-warning-threshold": "10GB",
    "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
    "distributed.logging.distributed": "critical",
}
_NO_LIMIT = 0  # how Dask spells a worker whose memory nobody watches


def _silence(package: str) -> None:
    """What matters of what Dask logs comes as an InputError."""
    for name in (package, *(name for name in logging.root.manager.loggerDict if name.startswith(f"{package}."))):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _require_dask() -> None:
    if importlib.util.find_spec("distributed") is None:
        raise InputError(
            "--workers needs Dask: pip install 'reflow_tf[cluster]'. Received: --workers without distributed"
        )


def _start(num_workers: int, num_threads: int | None, folder: str, stack: contextlib.ExitStack) -> Any:
    """Processes on this machine, which end with the block, or with this process."""
    import distributed

    threads = num_threads or _share_out(len(os.sched_getaffinity(0)), num_workers)
    cluster = stack.enter_context(
        distributed.LocalCluster(
            n_workers=num_workers,
            threads_per_worker=1,  # of Dask: one item at a time; TensorFlow's are another matter
            processes=True,
            memory_limit=_NO_LIMIT,
            preload=["reflow_tf.cluster.desk"],
            dashboard_address="127.0.0.1:0",  # a fixed port may be taken
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            env={
                THREADS: str(threads),
                "TF_NUM_INTEROP_THREADS": str(threads),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "TMPDIR": folder,  # they are killed, and clear nothing up
                "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical",
            },
        )
    )
    stack.callback(_kill, cluster)
    return stack.enter_context(distributed.Client(cluster, set_as_default=False, timeout=CONNECT_S))


def _share_out(num_cores: int, num_workers: int) -> int:
    """Threads of each worker on a machine."""
    return max(1, num_cores // num_workers)


def _kill(cluster: Any) -> None:
    """Ends the processes: who closes a worker waits for what it computes, and nobody wants that any more."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        if nanny.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


def _connect(address: str, stack: contextlib.ExitStack) -> Any:
    """The client of a scheduler that is already there."""
    import distributed

    try:
        client = distributed.Client(address, set_as_default=False, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"--workers must be a number, or the address tcp://HOST:PORT of a Dask scheduler that can be reached "
            f"({say_why(error)}). Received: {address}"
        ) from error
    stack.callback(client.close, timeout=CONNECT_S)
    return client


def _survey(client: Any, workers: str) -> dict[str, Resident]:
    """Address of each worker -> what it is; all have the code of this process."""
    expected = int(workers) if workers.isdecimal() else 1
    seconds = START_S * expected
    try:
        client.wait_for_workers(expected, timeout=seconds)
    except (OSError, TimeoutError) as error:
        raise InputError(f"The scheduler must have workers within {seconds} seconds. Received: {workers}") from error
    residents = survey(client)
    require_same_versions(residents, describe_here())
    return residents
