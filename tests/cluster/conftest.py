"""Real processes: commands with workers, and schedulers and workers that are already there."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path):
    """Of a process that computes with one thread, as its workers do, with a folder of its own for what is passing."""
    (tmp_path / "passing").mkdir()
    given = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "passing"), "TF_NUM_INTRAOP_THREADS": "1"}
    return os.environ | given


@pytest.fixture
def start(environment):
    """Starts a command line of ours in a session of its own."""

    def start(tool, **options):
        options = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", f"reflow_tf.tools.{tool}", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, start_new_session=True, text=True, **pipes)

    return start


class Farm:
    """A scheduler and workers, as somebody else would have started them."""

    def __init__(self, stack, folder, wait_until):
        self._stack, self._folder = stack, folder
        self.scheduler = self._start(["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"])
        wait_until(self._find_address)
        self.address = self._find_address()[1]
        self.workers = []

    def _start(self, arguments, environment=()):
        log = (self._folder / "scheduler.log").open("w") if "dask_scheduler" in arguments else subprocess.DEVNULL
        command = [sys.executable, "-m", f"distributed.cli.{arguments[0]}", *arguments[1:]]
        settings = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self._folder)} | dict(environment)
        process = subprocess.Popen(command, env=settings, cwd=self._folder, stdout=log, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def _find_address(self):
        return re.search(r"Scheduler at:\s+(tcp://\S+)", (self._folder / "scheduler.log").read_text())

    def hire(self, **environment):
        """One more worker."""
        given = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
        self.workers.append(self._start(["dask_worker", self.address, *given], environment))


@pytest.fixture
def farm(tmp_path, wait_until):
    """A scheduler of Dask that is already there."""
    with contextlib.ExitStack() as stack:
        yield Farm(stack, tmp_path, wait_until)
