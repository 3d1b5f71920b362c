"""The search: candidates are made one after the other, measured on each device, and written down as they are done.

What cannot win is not made, and the document says why. Each device has a folder and an answer of its own; what is
pruned for several is pruned once. A run that is interrupted goes on where it was: finished candidates are taken over,
if their files are what they were.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import pathlib
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras

from reflow_tf.cluster.opening import open_crew
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import microcontroller, pipeline
from reflow_tf.jobs.benchmark import require_runtime
from reflow_tf.jobs.frontier.answer import Row, choose
from reflow_tf.jobs.frontier.candidates import BOTH, NARROW, PLAIN, SPARSE, Candidate, list_candidates
from reflow_tf.jobs.frontier.costs import Costs
from reflow_tf.jobs.frontier.devices import FORMATS, Device
from reflow_tf.jobs.frontier.request import Search
from reflow_tf.jobs.frontier.shipping import ship
from reflow_tf.jobs.frontier.workshop import Workshop, share_prunes
from reflow_tf.jobs.record.document import describe, render
from reflow_tf.jobs.resuming import describe_settings, open_folder, require_same, write_texts
from reflow_tf.models.carrying import Address
from reflow_tf.report import frontier as report
from reflow_tf.report.folder import PREFIX, OutputFolder
from reflow_tf.report.frontier import VERSION, Document
from reflow_tf.report.progress import announce, stage
from reflow_tf.report.resumable import to_json
from reflow_tf.runtimes.aarch64.cycles import find_tools

JSON, PAGE, CELLS, BEST, LOCK = "frontier.json", "frontier.html", "cells", "best", "frontier.lock"
_HOPELESS, _HOPELESS_POINTS = 5, 10.0
"""A kind goes no further once it is expected to lose so many times what is allowed, and so many points."""


def run(search: Search, command: Sequence[str] = ()) -> list[Document]:
    """Tries what may win and writes each device's folder, anew after each candidate.

    Returns:
        What was found, device by device.

    Raises:
        InputError: something given cannot be used; a device's runtime is not set up; a folder holds another search, or
            one that is running; the time is too short for one candidate.
    """
    job, started = search.job, time.monotonic()
    folders = [open_folder(search.job_on(device), (JSON, PAGE, CELLS, BEST, LOCK)).path for device in search.devices]
    for device in search.devices:
        _require_device(search, device)
    keras.utils.set_random_seed(job.seed)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder))
        address = Address.of(job.model, **job.model_options)
        workshop = Workshop(job, stack.enter_context(open_crew(job.workers, job.threads_per_worker, address)))
        each = zip(search.devices, folders, strict=True)
        searches = [_Searching(search, device, folder, command, workshop, started) for device, folder in each]
        for searching, candidate in _order(searches):
            searching.consider(candidate)
        for searching in searches:
            searching.finish()
        return [searching.document for searching in searches]


def _order(searches: Sequence["_Searching"]) -> list[tuple["_Searching", Candidate]]:
    """Whose turn it is: candidates that go as far together, and among them those that are pruned alike."""
    every = [(searching, candidate) for searching in searches for candidate in searching.candidates]
    steps = {candidate.rank: None for _, candidate in every}
    turns = []
    for rank in sorted(steps):
        here = [(searching, candidate) for searching, candidate in every if candidate.rank == rank]
        place = share_prunes([searching.job(candidate) for searching, candidate in here])
        here.sort(key=lambda turn: place[turn[0].job(turn[1]).prune.without_hardware])
        turns += here
    return turns


class _Searching:
    """The state of a search on one device."""

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
        self.candidates = list_candidates(device, search.repair, search.job.prune.memory_budget)
        job, given = search.job, workshop.given
        sets = workshop.calibration, given.evaluation
        self._settings = describe_settings(job, given.loaded, search.version, *sets)
        self._settings |= {"device": device.name, "repair": search.repair}
        self._settings |= {"flash_budget": job.flash_budget, "ram_budget": job.ram_budget}
        self._costs = Costs(device, workshop.dense(self.job(self.candidates[0])).float_content)
        self.document = self._start(command)

    def consider(self, candidate: Candidate) -> None:
        """Makes a candidate, unless it is there already, cannot win, or would come too late."""
        if any(cell["name"] == candidate.name for cell in self.document["cells"]):
            return
        if (reason := self._objection(candidate)) is not None:
            self._drop(candidate, reason)
            return
        if self._is_late():
            self.document["not_tried"].append(candidate.name)
            return
        number = self.candidates.index(candidate) + 1
        try:
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
                f"--device={self._device.name} must be able to run the network in some number format. "
                f"Received: {first['name']}: {first['reason']}"
            )
        raise InputError(
            f"--minutes must leave time for one candidate. Received: {self._search.minutes:g}, in which none was begun"
        )

    def _start(self, command: Sequence[str]) -> Document:
        device, data = self._device, self._workshop.given.evaluation
        document: Document = {
            "version": VERSION,
            "command": list(command),
            "settings": self._settings,
            "device": {
                name: getattr(device, name)
                for name in ("name", "place", "description", "runtime", "unit", "is_estimate", "estimates_cycles")
            },
            "data": {
                "unit": data.unit,
                "fitted": len(self._workshop.given.calibration),
                "judged": self._workshop.num_judged,
                "evaluation": len(data),
                "labelled": data.labels is not None,
            },
            "max_accuracy_drop": self._search.max_accuracy_drop,
            "cells": [],
            "dropped": [],
            "not_tried": [],
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
        """The run of the pruning tool that makes a candidate."""
        return candidate.job(self._search.job, self._device, str(self._folder / CELLS / candidate.folder))

    def _make(self, candidate: Candidate) -> dict[str, Any]:
        """The candidate's folder, and what is told of it."""
        job, started = self.job(candidate), time.monotonic()
        made = self._workshop.make(job)
        described = describe(made)
        cost = self._costs.measure(made)
        loss, error = self._workshop.judge(made)
        shutil.rmtree(job.output_dir, ignore_errors=True)  # of a run that was interrupted after the writing
        OutputFolder(job.output_dir, pipeline.FILES).write(render(described, made))
        score = (described["accuracy"] or described["agreement"])["file"]
        footprint = made.measured.footprint
        return {
            "name": candidate.name,
            "kind": candidate.kind,
            "number_format": candidate.number_format,
            "folder": candidate.folder,
            "command": list(made.command),
            **dataclasses.asdict(cost),
            "size_bytes": len(made.exported.content),
            "flash_bytes": footprint and footprint.flash_bytes,
            "ram_bytes": footprint and footprint.arena_bytes,
            "fits": footprint is None or microcontroller.keeps_to_budgets(job, footprint),
            "expected_drop_points": round(loss, 4),
            "expected_error_points": round(error, 4),
            "score": score,
            "seconds": round(time.monotonic() - started, 1),
            "sha256": hashlib.sha256(made.exported.content).hexdigest(),
        }

    def _objection(self, candidate: Candidate) -> str | None:
        """Why a candidate cannot win, as far as is known; None if it may."""
        if candidate.kind == PLAIN:
            return None
        limit = self._search.max_accuracy_drop
        # What is lost in a float format is lost by pruning, and so in every other format, too.
        formats = candidate.number_format, "float32", "float16"
        milder = self._find(candidate.kind, formats, below=candidate.step)
        hopeless = max(_HOPELESS * limit, _HOPELESS_POINTS)
        for cell in milder:
            if cell["expected_drop_points"] > hopeless:
                return f"{cell['name']} is expected to lose {cell['expected_drop_points']:.1f} points already"
        plain = [cell for cell in self._find(PLAIN) if _read_row(cell).likely_most <= limit]
        if not plain:
            return None
        best = min(plain, key=report.price)
        least = self._foresee(candidate, best)
        if least is not None and least >= report.price(best):
            return (
                f"it would cost {least:.2f} of {self._device.formats[0]}, and {best['name']} costs "
                f"{report.price(best):.2f}"
            )
        return None

    def _find(
        self, kind: str, number_formats: Collection[str] = tuple(FORMATS), below: int | None = None
    ) -> list[dict[str, Any]]:
        names = {
            candidate.name
            for candidate in self.candidates
            if candidate.kind == kind
            and candidate.number_format in number_formats
            and (below is None or candidate.step < below)
        }
        return [cell for cell in self.document["cells"] if cell["name"] in names]

    def _foresee(self, candidate: Candidate, best: dict[str, Any]) -> float | None:
        """At least so much it will cost, as a share of the first plain conversion; None where nobody knows.

        Cycles do not depend on the values of weights: a file with zeros is estimated before anything is repaired.
        """
        share = candidate.prune.max_macs
        if candidate.kind == NARROW and candidate.number_format != best["number_format"]:
            own = self._find(PLAIN, (candidate.number_format,))
            return report.price(own[0]) * float(share or 1) if own else None
        if not self._device.estimates_cycles or candidate.kind not in (SPARSE, BOTH):
            return None
        with stage(f"Counting for {candidate.name}"):
            given = self._workshop.given
            shape = given.calibration.sample_shape
            zeros = self._costs.foresee_zeros(given.loaded.model, candidate.prune, shape)
            return zeros * (float(share) if share else 1.0)

    def _drop(self, candidate: Candidate, reason: str) -> None:
        announce(f"{self._device.name}: {candidate.name} is left out: {reason}.")
        self.document["dropped"].append({"name": candidate.name, "reason": reason})

    def _conclude(self) -> None:
        """Draws the conclusions of what is known so far, and writes them."""
        rows = [_read_row(cell) for cell in self.document["cells"] if cell["fits"] and not cell["differs"]]
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
        data = job.eval_data or job.data or self._workshop.given.loaded.default_data
        assert data is not None  # the images came from somewhere
        with stage("Copying the file to ship"):
            missing = ship(self._folder / CELLS / cell["folder"], best, self._device, job, data)
        if missing is not None:
            announce(f"{best} has no {self._device.kit}: {missing.rstrip('.')}.")


def _read_row(cell: dict[str, Any]) -> Row:
    expected = cell["expected_drop_points"], cell["expected_error_points"]
    return Row(cell["name"], cell["kind"], cell["number_format"], cell["cost_share"], *expected, cell["cycles_share"])


def _require_device(search: Search, device: Device) -> None:
    """Says at once what is not set up."""
    if device.runtime in ("aarch64", "web", "litert"):
        require_runtime(device.runtime)
    if device.estimates_cycles:
        find_tools()
    for candidate in list_candidates(device, search.repair):
        microcontroller.require_measure(candidate.job(search.job, device, search.job.output_dir))


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Two searches in one folder would write over each other; the lock of one that was killed is free."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"--output_dir must be a folder in which no other search is running. Received: {folder}"
            ) from error
        yield
