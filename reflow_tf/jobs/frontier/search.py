"""The search: candidates are made one after the other, measured on each device, and written down as they are done.

What cannot win is not made, and the document says why. Each device has a folder and an answer of its own; what is
pruned for several is pruned once. A run that is interrupted goes on where it was: finished candidates are taken over,
if their files are what they were.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from reflow_tf.cluster.opening import open_crew
from reflow_tf.config import PruneConfig
from reflow_tf.errors import Breakdown, InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import microcontroller
from reflow_tf.jobs.benchmark import require_runtime
from reflow_tf.jobs.frontier.answer import choose, read_row
from reflow_tf.jobs.frontier.candidates import Candidate
from reflow_tf.jobs.frontier.contract import Cell, Made, Workshop
from reflow_tf.jobs.frontier.costs import Cost, Costs
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.frontier.file_workshop import FileWorkshop
from reflow_tf.jobs.frontier.flagfile import FLAGS, name_place
from reflow_tf.jobs.frontier.network_workshop import NetworkWorkshop
from reflow_tf.jobs.frontier.request import Search
from reflow_tf.jobs.frontier.shipping import hash_files, require_own, ship
from reflow_tf.jobs.resuming import locked, open_folder, require_same, write_texts
from reflow_tf.models.carrying import Address
from reflow_tf.report import frontier as report
from reflow_tf.report.folder import PREFIX, OutputFolder
from reflow_tf.report.frontier import VERSION, Document
from reflow_tf.report.progress import announce, stage
from reflow_tf.report.resumable import to_json
from reflow_tf.runtimes.aarch64.cycles import find_tools

NAMES = JSON, PAGE, CELLS, BEST, LOCK = "frontier.json", "frontier.html", "cells", "best", "frontier.lock"


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        documents: device -> what was found, of those on which something could be made.
        failures: why there is nothing for the others.
    """

    documents: Mapping[str, Document]
    failures: Sequence[InputError]


def run(search: Search, command: Sequence[str] = ()) -> Found:
    """Tries what may win and writes each device's folder, anew after each candidate.

    Raises:
        InputError: something given cannot be used; a device's runtime is not set up; a folder holds another search, or
            one that is running.
        Breakdown: what measures files, or where they are written, went away; the same call goes on.
    """
    job, started = search.job, time.monotonic()
    folders = [open_folder(search.job_on(device), NAMES).path for device in search.devices]
    for folder in folders if job.overwrite else ():
        require_own(folder / BEST, _read_best(folder / JSON))
        for path in (folder / CELLS).glob("[!.]*"):
            require_own(path)
    for device in search.devices:
        _require_device(search, device)
    _require_no_other(folders)
    keras.utils.set_random_seed(job.seed)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locked(folder, LOCK, "search"))
        address = None if search.is_of_file else Address.of(job.model, **job.model_options)
        crew = stack.enter_context(open_crew(job.workers, job.threads_per_worker, address))
        workshop: Workshop = FileWorkshop(search, crew) if search.is_of_file else NetworkWorkshop(search, crew)
        searches: list[_Searching] = []
        failures: list[InputError] = []
        for device, folder in zip(search.devices, folders, strict=True):
            try:
                searches.append(_Searching(search, device, folder, command, workshop, started))
            except _CannotRun as error:
                failures.append(error)
        for searching, candidate in _order(searches):
            searching.consider(candidate)
        documents: dict[str, Document] = {}
        for searching in searches:
            try:
                searching.finish()
                documents[searching.device.name] = searching.document
            except _CannotRun as error:
                failures.append(error)
        return Found(documents, failures)


def _order(searches: Sequence["_Searching"]) -> list[tuple["_Searching", Candidate]]:
    """Whose turn it is: candidates that go as far together, and among them those that are pruned alike."""
    turns = [(searching, candidate) for searching in searches for candidate in searching.candidates]
    first: dict[PruneConfig, int] = {}  # what is pruned -> its place: the workshop keeps the last one
    for _, candidate in turns:
        first.setdefault(candidate.prune.without_hardware, len(first))
    return sorted(turns, key=lambda turn: (turn[1].rank, first[turn[1].prune.without_hardware]))


class _CannotRun(InputError):
    """The network, on one device, or in the time there: on others it may be searched for all the same."""


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
        self.device = device
        self._search, self._folder = search, folder
        self._workshop, self._started = workshop, started
        with self._running():
            self.candidates = workshop.list_candidates(device)
        job = search.job
        self._settings = workshop.settings | {"device": device.name}
        self._settings |= {"flash_budget": job.flash_budget, "ram_budget": job.ram_budget}
        self.document = self._start(command)
        with self._running():
            self._costs = Costs(device, workshop.find_first(self.job(self.candidates[0])), workshop.first_name)
        notes = self.document["notes"]
        notes += [note for note in workshop.announced if note not in notes]
        for note in workshop.notes:
            self._note(note)
        self._object = workshop.object_to(self.candidates, device, self._costs, self.document["tried"])

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Says of what is refused within that the device cannot run it."""
        try:
            yield
        except InputError as error:
            name, given = self.device.name, self._workshop.given
            raise _CannotRun(f"--device={name} must be able to run the {given}. {error}") from error

    def consider(self, candidate: Candidate) -> None:
        """Makes a candidate, unless it is there already, would come too late, or cannot win."""
        if any(cell["name"] == candidate.name for cell in self.document["cells"]):
            return
        if self._is_late():
            self.document["not_tried"].append(candidate.name)
            return
        number, job, started = self.candidates.index(candidate) + 1, self.job(candidate), time.monotonic()
        try:
            if (reason := self._object(candidate, self.document["cells"])) is not None:
                self._drop(candidate, reason)
                return
            with stage(f"{self.device.name}: {candidate.name} ({number} of {len(self.candidates)})"):
                made = self._workshop.make(candidate, self.device, job)
                cost, loss = self._costs.measure(made.content, made.footprint), self._workshop.judge(made)
        except Breakdown:
            raise
        except InputError as error:  # of this candidate: not every network has an int8 form
            self._drop(candidate, str(error).rstrip("."))
            return
        for note in made.notes:
            self._note(note)
        cell = self._write(candidate, job, made)
        seconds = round(time.monotonic() - started, 1)
        self.document["cells"].append(_describe(candidate, job, made, cost, loss) | cell | {"seconds": seconds})
        self._conclude()

    def finish(self) -> None:
        """Draws the conclusions.

        Raises:
            _CannotRun: nothing could be made.
            InputError: `best` has to be made anew, and holds what is somebody's.
        """
        self._require_any()
        self._conclude()
        self._show_best()

    def _require_any(self) -> None:
        """Raises _CannotRun where nothing could be made, with the first reason."""
        if self.document["cells"]:
            return
        if self.document["dropped"]:
            first = self.document["dropped"][0]
            raise _CannotRun(
                f"--device={self.device.name} must be able to run the {self._workshop.given} in some form. "
                f"Received: {first['name']}: {first['reason']}"
            )
        raise _CannotRun(
            f"--minutes must leave time for one candidate. Received: {self._search.minutes:g}, in which none was begun"
        )

    def _start(self, command: Sequence[str]) -> Document:
        device = self.device
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
            "tried": [],
            "not_tried": [],
            "pending": [],
            "notes": [],
            "best": None,
            "seconds": 0.0,
        }
        path = self._folder / JSON
        for unfinished in (self._folder / CELLS).glob(f"{PREFIX}*"):  # of a run that was killed while it wrote
            shutil.rmtree(unfinished, ignore_errors=True)
        if self._search.job.overwrite:
            for told in (path, self._folder / PAGE):  # before what it tells of
                told.unlink(missing_ok=True)
            for made in (self._folder / BEST, self._folder / CELLS):
                shutil.rmtree(made, ignore_errors=True)
        elif path.exists():
            before = report.from_json(path.read_bytes())
            require_same(self._settings, before["settings"], "a search", self._folder)
            document["cells"] = [cell for cell in before["cells"] if self._is_whole(cell)]
            document["tried"] = before["tried"]
            document["notes"] = before["notes"] if document["cells"] else []
            document |= {name: before[name] for name in ("best", "seconds")}
        self._seconds_before = document["seconds"]
        if document["best"] is None:
            require_own(self._folder / BEST)  # refused now rather than after the first candidate
        return document

    def _is_whole(self, cell: dict[str, Any]) -> bool:
        """Whether a cell's folder is still what was written; if not, it is made again.

        Raises:
            InputError: and somebody keeps something else in it.
        """
        folder = self._folder / CELLS / cell["folder"]
        found = hash_files(folder)
        odd = next((name for name, digest in cell["files"].items() if found.get(name) != digest), None)
        if odd is None:
            return True
        require_own(folder)
        announce(f"{cell['name']} is made again: {folder / odd} is not what was written.")
        return False

    def _is_late(self) -> bool:
        minutes = self._search.minutes
        return minutes is not None and time.monotonic() - self._started > 60 * minutes

    def job(self, candidate: Candidate) -> JobConfig:
        """What makes a candidate, as the flags of the pruning tool."""
        return candidate.job(self._search.job, self.device, str(self._folder / CELLS / candidate.folder))

    def _note(self, text: str) -> None:
        """Says once what is not of a single candidate."""
        if text not in self.document["notes"]:
            announce(text)
            self.document["notes"].append(text)

    def _write(self, candidate: Candidate, job: JobConfig, made: Made) -> dict[str, Any]:
        """The candidate's folder, and what is told of it.

        Raises:
            InputError: somebody keeps something else there.
        """
        folder = pathlib.Path(job.output_dir)
        require_own(folder)  # of a run that was interrupted after the writing
        shutil.rmtree(folder, ignore_errors=True)
        command = name_place(made.command, self._workshop.given, f"{self.device.name}_{candidate.folder}")
        flags = {FLAGS: "".join(f"{flag}\n" for flag in command)} if command else {}
        OutputFolder(job.output_dir, frozenset((*made.files, *flags))).write({**made.files, **flags})
        return {"folder": candidate.folder, "command": command, "files": hash_files(folder)}

    def _drop(self, candidate: Candidate, reason: str) -> None:
        announce(f"{self.device.name}, left out: {candidate.name}: {reason}.")
        self.document["dropped"].append({"name": candidate.name, "reason": reason})
        if self.document["cells"]:  # what was tried took minutes
            self._conclude()

    def _conclude(self) -> None:
        """Draws the conclusions of what is known so far, and writes them.

        Raises:
            InputError: `best` is no longer what is recommended, and holds what is somebody's.
        """
        document = self.document
        considered = {each["name"] for each in (*document["cells"], *document["dropped"])} | {*document["not_tried"]}
        document["pending"] = [each.name for each in self.candidates if each.name not in considered]
        rows = [read_row(cell) for cell in document["cells"] if cell["fits"] and not cell["differs"]]
        answer = choose(rows, self._search.max_accuracy_drop, self.device) if rows else None
        document["answer"] = answer and dataclasses.asdict(answer) | {"frontier": list(answer.frontier)}
        document["seconds"] = round(self._seconds_before + time.monotonic() - self._started, 1)
        if not self._is_best(report.find(document, None if answer is None else answer.recommended)):
            require_own(self._folder / BEST, document["best"])
            shutil.rmtree(self._folder / BEST, ignore_errors=True)
            document["best"] = None
        write_texts(self._folder, {JSON: to_json(document), PAGE: report.render(document)})

    def _is_best(self, cell: Cell | None) -> bool:
        """Whether `best` is whole and the copy of a cell; what somebody makes of its kit is theirs."""
        if cell is None or self.document["best"] is None:
            return False
        found = hash_files(self._folder / BEST)
        return bool(cell["files"].items() <= found.items() and self.document["best"].keys() <= found.keys())

    def _show_best(self) -> None:
        """Copies the recommended folder to `best`, with what proves the file on the device."""
        answer, best, job = self.document["answer"], self._folder / BEST, self._search.job
        cell = report.find(self.document, answer and answer["recommended"])
        if cell is None or self.document["best"] is not None:
            return
        data = job.eval_data or self._workshop.drawn_from
        with stage("Copying the file to ship"):
            missing = ship(self._folder / CELLS / cell["folder"], best, self.device, job, data)
        if missing is not None:
            announce(f"{best} has no {self.device.kit}: {missing.rstrip('.')}.")
        self.document["best"] = hash_files(best)
        write_texts(self._folder, {JSON: to_json(self.document)})


def _describe(
    candidate: Candidate, job: JobConfig, made: Made, cost: Cost, loss: tuple[float, float]
) -> dict[str, Any]:
    """What is told of a candidate that was made."""
    footprint, (expected, error) = made.footprint, loss
    return {
        "name": candidate.name,
        "kind": candidate.kind,
        "number_format": candidate.number_format,
        **dataclasses.asdict(cost),
        "size_bytes": len(made.content),
        "flash_bytes": footprint and footprint.flash_bytes,
        "ram_bytes": footprint and footprint.arena_bytes,
        "fits": footprint is None or microcontroller.keeps_to_budgets(job, footprint),
        "expected_drop_points": round(expected, 4),
        "expected_error_points": round(error, 4),
        "score": made.score,
    }


def _read_best(path: pathlib.Path) -> Mapping[str, str] | None:
    """What a search that is done away with wrote to `best`; None where no document tells."""
    try:
        best: Mapping[str, str] | None = report.from_json(path.read_bytes())["best"]
    except (FileNotFoundError, InputError):
        return None
    return best


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
