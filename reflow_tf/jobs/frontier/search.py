"""The search: candidates are made one after the other, measured on each device, and written down as they are done.

What cannot win is not made, and the document says why. Each device has a folder and an answer of its own; what is
pruned for several is pruned once. A run that is interrupted goes on where it was: finished candidates are taken over,
if their files are what they were.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from reflow_tf.cluster.opening import open_crew
from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import microcontroller
from reflow_tf.jobs.benchmark import require_runtime
from reflow_tf.jobs.frontier.answer import choose, read_row
from reflow_tf.jobs.frontier.candidates import Candidate
from reflow_tf.jobs.frontier.contract import Workshop
from reflow_tf.jobs.frontier.costs import Costs
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.frontier.file_workshop import FileWorkshop
from reflow_tf.jobs.frontier.network_workshop import NetworkWorkshop
from reflow_tf.jobs.frontier.request import Search
from reflow_tf.jobs.frontier.shipping import require_own, ship
from reflow_tf.jobs.resuming import locked, open_folder, require_same, write_texts
from reflow_tf.models.carrying import Address
from reflow_tf.report import frontier as report
from reflow_tf.report.folder import PREFIX, OutputFolder
from reflow_tf.report.frontier import VERSION, Document
from reflow_tf.report.progress import announce, stage
from reflow_tf.report.resumable import to_json
from reflow_tf.runtimes.aarch64.cycles import find_tools

NAMES = JSON, PAGE, CELLS, BEST, LOCK = "frontier.json", "frontier.html", "cells", "best", "frontier.lock"


def run(search: Search, command: Sequence[str] = ()) -> list[Document]:
    """Tries what may win and writes each device's folder, anew after each candidate.

    Returns:
        What was found, device by device.

    Raises:
        InputError: something given cannot be used; a device's runtime is not set up; a folder holds another search, or
            one that is running; the time is too short for one candidate.
    """
    job, started = search.job, time.monotonic()
    folders = [open_folder(search.job_on(device), NAMES).path for device in search.devices]
    for folder in folders:
        replaced = [folder / BEST, *((folder / CELLS).glob("[!.]*") if job.overwrite else ())]
        for path in replaced:
            require_own(path)
    for device in search.devices:
        _require_device(search, device)
    _require_no_other(folders)
    keras.utils.set_random_seed(job.seed)
    with contextlib.ExitStack() as stack:
        address = None if search.is_of_file else Address.of(job.model, **job.model_options)
        crew = stack.enter_context(open_crew(job.workers, job.threads_per_worker, address))
        workshop: Workshop = FileWorkshop(search, crew) if search.is_of_file else NetworkWorkshop(search, crew)
        for folder in folders:
            stack.enter_context(locked(folder, LOCK, "search"))
        searches: list[_Searching] = []
        failures: list[InputError] = []
        for device, folder in zip(search.devices, folders, strict=True):
            try:
                searches.append(_Searching(search, device, folder, command, workshop, started))
            except _CannotRun as error:
                failures.append(error)
        for searching, candidate in _order(searches):
            searching.consider(candidate)
        for searching in searches:
            try:
                searching.finish()
            except InputError as error:
                failures.append(error)
        if failures:  # what can be said of the other devices is written by now
            raise failures[0]
        return [searching.document for searching in searches]


def _order(searches: Sequence["_Searching"]) -> list[tuple["_Searching", Candidate]]:
    """Whose turn it is: candidates that go as far together, and among them those that are pruned alike."""
    turns = [(searching, candidate) for searching in searches for candidate in searching.candidates]
    first: dict[PruneConfig, int] = {}  # what is pruned -> its place: the workshop keeps the last one
    for _, candidate in turns:
        first.setdefault(candidate.prune.without_hardware, len(first))
    return sorted(turns, key=lambda turn: (turn[1].rank, first[turn[1].prune.without_hardware]))


class _CannotRun(InputError):
    """The network, on one device: on others it may be searched for all the same."""


class _Searching:
    """The state of a search on one device.

    Raises:
        InputError: its folder holds another search.
        _CannotRun: see there.
    """

    def __init__(
        self,
        search: Search,
        device: Device,
        folder: pathlib.Path,
        command: Sequence[str],
        workshop: Workshop,
        started: float,
    ):
        self._search, self._device, self._folder = search, device, folder
        self._workshop, self._started = workshop, started
        with self._running():
            self.candidates = workshop.list_candidates(device)
        job = search.job
        self._settings = workshop.settings | {"device": device.name}
        self._settings |= {"flash_budget": job.flash_budget, "ram_budget": job.ram_budget}
        self.document = self._start(command)
        with self._running():
            self._costs = Costs(device, workshop.find_first(self.job(self.candidates[0])), workshop.first_name)
        for note in workshop.notes:
            self._note(note)
        self._object = workshop.object_to(self.candidates, device, self._costs)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Says of what is refused within that the device cannot run it."""
        try:
            yield
        except InputError as error:
            name, given = self._device.name, self._workshop.given
            raise _CannotRun(f"--device={name} must be able to run the {given}. {error}") from error

    def consider(self, candidate: Candidate) -> None:
        """Makes a candidate, unless it is there already, cannot win, or would come too late."""
        if any(cell["name"] == candidate.name for cell in self.document["cells"]):
            return
        number = self.candidates.index(candidate) + 1
        try:
            if (reason := self._object(candidate, self.document["cells"])) is not None:
                self._drop(candidate, reason)
                return
            if self._is_late():
                self.document["not_tried"].append(candidate.name)
                return
            with stage(f"{self._device.name}: {candidate.name} ({number} of {len(self.candidates)})"):
                self.document["cells"].append(self._make(candidate))
        except InputError as error:  # of this candidate: not every network has an int8 form
            self._drop(candidate, str(error).rstrip("."))
            return
        self._conclude()

    def finish(self) -> None:
        """Draws the conclusions.

        Raises:
            InputError: nothing could be made.
        """
        self._require_any()
        self._conclude()
        self._show_best()

    def _require_any(self) -> None:
        """Raises InputError where nothing could be made, with the first reason."""
        if self.document["cells"]:
            return
        if self.document["dropped"]:
            first = self.document["dropped"][0]
            raise InputError(
                f"--device={self._device.name} must be able to run the {self._workshop.given} in some form. "
                f"Received: {first['name']}: {first['reason']}"
            )
        raise InputError(
            f"--minutes must leave time for one candidate. Received: {self._search.minutes:g}, in which none was begun"
        )

    def _start(self, command: Sequence[str]) -> Document:
        device = self._device
        document: Document = {
            "version": VERSION,
            "command": list(command),
            "given": self._workshop.given,
            "settings": self._settings,
            "device": {
                name: getattr(device, name)
                for name in ("name", "place", "description", "runtime", "unit", "is_estimate", "estimates_cycles")
            },
            "data": self._workshop.data,
            "max_accuracy_drop": self._search.max_accuracy_drop,
            "cells": [],
            "dropped": [],
            "not_tried": [],
            "notes": [],
        }
        path = self._folder / JSON
        for unfinished in (self._folder / CELLS).glob(f"{PREFIX}*"):  # of a run that was killed while it wrote
            shutil.rmtree(unfinished, ignore_errors=True)
        if self._search.job.overwrite:
            shutil.rmtree(self._folder / CELLS, ignore_errors=True)
        elif path.exists():
            before = report.from_json(path.read_bytes())
            require_same(self._settings, before["settings"], "a search", self._folder)
            document["cells"] = [cell for cell in before["cells"] if self._is_whole(cell)]
            document["notes"] = before["notes"] if document["cells"] else []
        return document

    def _is_whole(self, cell: dict[str, Any]) -> bool:
        """Whether the file of a cell is still the one that was measured."""
        path = self._folder / CELLS / cell["folder"] / "model.tflite"
        whole = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == cell["sha256"]
        if not whole:
            announce(f"{cell['name']} is made again: {path} is not the file that was measured.")
        return whole

    def _is_late(self) -> bool:
        minutes = self._search.minutes
        return minutes is not None and time.monotonic() - self._started > 60 * minutes

    def job(self, candidate: Candidate) -> JobConfig:
        """What makes a candidate, as the flags of the pruning tool."""
        return candidate.job(self._search.job, self._device, str(self._folder / CELLS / candidate.folder))

    def _note(self, text: str) -> None:
        """Says once what is not of a single candidate."""
        if text not in self.document["notes"]:
            announce(text)
            self.document["notes"].append(text)

    def _make(self, candidate: Candidate) -> dict[str, Any]:
        """The candidate's folder, and what is told of it."""
        job, started = self.job(candidate), time.monotonic()
        made = self._workshop.make(candidate, self._device, job)
        for note in made.notes:
            self._note(note)
        footprint = made.footprint
        cost = self._costs.measure(made.content, footprint)
        loss, error = self._workshop.judge(made)
        shutil.rmtree(job.output_dir, ignore_errors=True)  # of a run that was interrupted after the writing
        OutputFolder(job.output_dir, frozenset(made.files)).write(made.files)
        return {
            "name": candidate.name,
            "kind": candidate.kind,
            "number_format": candidate.number_format,
            "folder": candidate.folder,
            "command": list(made.command),
            **dataclasses.asdict(cost),
            "size_bytes": len(made.content),
            "flash_bytes": footprint and footprint.flash_bytes,
            "ram_bytes": footprint and footprint.arena_bytes,
            "fits": footprint is None or microcontroller.keeps_to_budgets(job, footprint),
            "expected_drop_points": round(loss, 4),
            "expected_error_points": round(error, 4),
            "score": made.score,
            "seconds": round(time.monotonic() - started, 1),
            "sha256": hashlib.sha256(made.content).hexdigest(),
        }

    def _drop(self, candidate: Candidate, reason: str) -> None:
        announce(f"{self._device.name}, left out: {candidate.name}: {reason}.")
        self.document["dropped"].append({"name": candidate.name, "reason": reason})

    def _conclude(self) -> None:
        """Draws the conclusions of what is known so far, and writes them."""
        rows = [read_row(cell) for cell in self.document["cells"] if cell["fits"] and not cell["differs"]]
        answer = choose(rows, self._search.max_accuracy_drop, self._device) if rows else None
        self.document["answer"] = answer and dataclasses.asdict(answer) | {"frontier": list(answer.frontier)}
        self.document["seconds"] = round(time.monotonic() - self._started, 1)
        write_texts(self._folder, {JSON: to_json(self.document), PAGE: report.render(self.document)})

    def _show_best(self) -> None:
        """Copies the recommended folder to `best`, with what proves the file on the device."""
        answer, best, job = self.document["answer"], self._folder / BEST, self._search.job
        cell = report.find(self.document, answer and answer["recommended"])
        if cell is None:
            shutil.rmtree(best, ignore_errors=True)
            return
        data = job.eval_data or self._workshop.drawn_from
        with stage("Copying the file to ship"):
            missing = ship(self._folder / CELLS / cell["folder"], best, self._device, job, data)
        if missing is not None:
            announce(f"{best} has no {self._device.kit}: {missing.rstrip('.')}.")


def _require_device(search: Search, device: Device) -> None:
    """Says at once what is not set up."""
    if device.runtime in ("aarch64", "web", "litert"):
        require_runtime(device.runtime)
    if device.estimates_cycles:
        find_tools()
    microcontroller.require_measure(device.target)


def _require_no_other(folders: Sequence[pathlib.Path]) -> None:
    """Says where the folder for several devices is that of one device's search."""
    whole = folders[0].parent
    if len(folders) > 1 and (whole / JSON).exists():
        raise InputError(
            f"--output_dir holds a search for one device: name another folder for several. Received: {whole}"
        )
