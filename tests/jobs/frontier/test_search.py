"""Searches end to end, on a small network: what is made, what is left out, what is taken over."""

import dataclasses
import fcntl
import json
import shlex
import subprocess
import sys

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.errors import Breakdown, InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.frontier import network_workshop, search
from reflow_tf.jobs.frontier.answer import Answer
from reflow_tf.jobs.frontier.candidates import BOTH, NARROW, PLAIN, SPARSE, list_candidates
from reflow_tf.jobs.frontier.costs import Cost
from reflow_tf.jobs.frontier.devices import DEVICES, find_device, find_devices
from reflow_tf.jobs.frontier.flagfile import spell
from reflow_tf.jobs.frontier.losses import ExpectedLoss
from reflow_tf.report import frontier
from reflow_tf.report.frontier import format_table, headline
from reflow_tf.tools import prune


@pytest.fixture
def job(inputs, tmp_path):
    plain = PruneConfig(target="tflm", sparsity=0.0, repair="none")
    return JobConfig(
        inputs.model, str(tmp_path / "out"), plain, data=inputs.data, eval_data=inputs.heldout, preprocess="tf"
    )


def run_all(job, *devices, **changes):
    given = {"max_accuracy_drop": 5.0, "repair": "reflow", "minutes": None, "version": "1"} | changes
    return search.run(search.Search(job, find_devices(devices), **given), ["frontier"])


def run(job, device="tflm", **changes):
    found = run_all(job, device, **changes)
    for failure in found.failures:
        raise failure
    return found.documents[device]


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_candidates_are_jobs_of_the_device(device):
    found = list_candidates(device, "reflow")
    assert [candidate.number_format for candidate in found if candidate.kind == PLAIN] == list(device.formats)
    kinds = {candidate.kind for candidate in found}
    assert kinds == ({PLAIN, NARROW} if device.name == "desktop" else {PLAIN, NARROW, SPARSE, BOTH})
    assert len({candidate.folder for candidate in found}) == len(found)
    for candidate in found:
        made = candidate.job(JobConfig("m", "o", PruneConfig(target=device.dense_target, sparsity=0.0)), device, "cell")
        assert made.output_dir == "cell" and made.target.name == candidate.target


def test_where_room_is_short_one_network_is_as_narrow_as_that_asks():
    names = [each.name for each in list_candidates(DEVICES["tflm"], "reflow", has_budget=True)]
    assert names[:3] == ["plain int8", "narrow to fit, int8", "narrow 65 %, int8"]
    assert "narrow to fit, int8" not in [each.name for each in list_candidates(DEVICES["tflm"], "reflow")]


@pytest.mark.slow
def test_a_network_is_narrowed_until_it_fits(job, only):
    only("plain int8", "narrow to fit, int8")
    (cell,) = run(dataclasses.replace(job, output_dir=job.output_dir + "1"))["cells"]
    budget = int(0.9 * cell["flash_bytes"])
    document = run(dataclasses.replace(job, flash_budget=budget), max_accuracy_drop=100.0)
    assert [cell["fits"] for cell in document["cells"]] == [False, True]
    assert document["answer"]["recommended"] == "narrow to fit, int8" and document["cells"][1]["flash_bytes"] <= budget


def test_an_unknown_device():
    with pytest.raises(InputError, match=r"--device must be one of phone, .+browser, .+Received: toaster"):
        find_device("toaster")


@pytest.mark.slow
def test_a_search_is_written_told_and_taken_over(job, inputs, tmp_path, monkeypatch, capsys):
    document = run(job)
    names = {cell["name"] for cell in document["cells"]}
    assert {"plain int8", "narrow 65 %, int8", "sparse 70 %, int8"} <= names
    every = {candidate.name for candidate in list_candidates(DEVICES["tflm"], "reflow")}
    assert names | {each["name"] for each in document["dropped"]} == every and not document["not_tried"]
    out = tmp_path / "out"
    assert json.loads((out / "frontier.json").read_text("utf-8")) == document
    jsonschema.validate(document, frontier.schema())
    assert (out / "best" / "firmware" / "model_data.c").is_file()
    for cell in document["cells"]:
        folder = out / "cells" / cell["folder"]
        report = json.loads((folder / "report.json").read_text("utf-8"))
        assert cell["score"] == report["accuracy"]["file"] and cell["cost"] == (folder / "model.tflite").stat().st_size
    chosen = document["answer"]["recommended"]
    cell = next(cell for cell in document["cells"] if cell["name"] == chosen)
    assert (out / "best" / "model.tflite").read_bytes() == (
        out / "cells" / cell["folder"] / "model.tflite"
    ).read_bytes()
    assert headline(document).startswith(f"In TFLM ship {chosen}: ")
    page = (out / "frontier.html").read_text("utf-8")
    assert all(f"{cell['name']}</a>" in page for cell in document["cells"]) and chosen in "\n".join(
        format_table(document)
    )
    # Again: nothing is made. With a file that changed: that one.
    made = []
    finish = network_workshop.pipeline.finish
    monkeypatch.setattr(
        network_workshop.pipeline, "finish", lambda *given: made.append(given[0].output_dir) or finish(*given)
    )
    again = run(job)
    assert made == [] and again["answer"] == document["answer"]
    (out / "cells" / "plain_int8" / "model.tflite").write_bytes(b"damaged")
    capsys.readouterr()
    assert run(job)["answer"] == document["answer"]
    assert [path.rpartition("/")[2] for path in made] == ["plain_int8"] and "made again" in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"^--output_dir holds a search with other settings, device=tflm: name another"
    ):
        run(dataclasses.replace(job, prune=PruneConfig(target="storage", sparsity=0.0)), "size")


@pytest.mark.slow
def test_several_devices_share_what_is_pruned_and_answer_alone(job, tmp_path, only, monkeypatch):
    only("plain int8", "plain float32", "narrow 80 %, int8", "narrow 80 %, float32", "sparse 50 %, int8")
    pruned = []
    prune_given = network_workshop.pipeline.prune_given
    monkeypatch.setattr(
        network_workshop.pipeline, "prune_given", lambda *given: pruned.append(given[0].prune) or prune_given(*given)
    )
    documents = run_all(job, "desktop", "tflm", "size", max_accuracy_drop=50.0).documents
    assert list(documents) == ["desktop", "tflm", "size"]
    num_alike = len([config for config in pruned if config.max_macs])
    assert num_alike <= 2  # a multiple of 8 channels for the first and the last, of 4 for microcontrollers
    for device, together in documents.items():
        folder = tmp_path / "out" / device
        assert json.loads((folder / "frontier.json").read_text("utf-8")) == together
        assert (folder / "best" / "model.tflite").is_file() and together["device"]["name"] == device
        alone = run(dataclasses.replace(job, output_dir=str(tmp_path / device)), device, max_accuracy_drop=50.0)
        digests, digests_alone = (
            {cell["name"]: cell["files"]["model.tflite"] for cell in document["cells"]}
            for document in (together, alone)
        )
        if device == "desktop":  # its costs are times, by which one may be left out and not the other
            made = digests.keys() & digests_alone.keys()
            assert made >= {"plain float32", "plain int8"}
            digests, digests_alone = ({name: each[name] for name in made} for each in (digests, digests_alone))
        else:
            assert alone["dropped"] == together["dropped"]
        assert digests == digests_alone
    (tmp_path / "out" / "size" / "cells" / "plain_int8" / "model.tflite").unlink()
    pruned.clear()
    again = run_all(job, "desktop", "tflm", "size", max_accuracy_drop=50.0).documents
    assert [again[name]["answer"] for name in documents] == [each["answer"] for each in documents.values()]
    assert len(pruned) == 1


@pytest.mark.slow
@pytest.mark.parametrize("device", ["phone", "browser", "desktop", "cortex_m4", "ethos_u55"])
def test_every_device_measures(request, strided, tmp_path, only, images, device):
    """On networks of a few microseconds: that the measuring holds together; what it says is tested elsewhere."""
    for fixture in {"phone": ["aarch64", "llvm"], "browser": ["web"], "cortex_m4": ["cortex_m"]}.get(device, []):
        request.getfixturevalue(fixture)
    preset = DEVICES[device]
    first = f"plain {preset.formats[0]}"
    only(first, "plain int8", "sparse 70 %, float32", "sparse 70 %, int8")
    np.savez(tmp_path / "photos.npz", x=images(96, seed=0, size=32))
    base = PruneConfig(target=preset.dense_target, sparsity=0.0, repair="none")
    job = JobConfig(strided, str(tmp_path / "out"), base, data=str(tmp_path / "photos.npz"))
    document = run(job, device, max_accuracy_drop=50.0)
    cells = {cell["name"]: cell for cell in document["cells"]}
    assert cells[first]["cost_share"] == pytest.approx(1, abs=0.5 if preset.unit == "ms" else 0.01)
    assert all(cell["cost"] > 0 and not cell["differs"] for cell in cells.values())
    assert document["data"]["measure"] == "agreement" and "agreement" in format_table(document)[0]
    sparse = {each.name for each in list_candidates(preset, "reflow") if each.name.startswith("sparse 70")}
    assert sparse <= set(cells) | {each["name"] for each in document["dropped"]}
    assert all((cell["cycles"] is not None) == preset.estimates_cycles for cell in cells.values())
    best = tmp_path / "out" / "best"
    assert {path.name for path in best.iterdir() if path.is_dir()} == ({preset.kit} - {None})
    if preset.kit == "device_kit":
        done = subprocess.run([sys.executable, best / "device_kit" / "run.py", "--rounds=0"], capture_output=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_cannot_win_by_the_estimate_is_not_repaired(aarch64, llvm, strided, tmp_path, only, images, monkeypatch):
    only("plain float32", "plain int8", "sparse 70 %, float32")
    repaired, prune_given = [], network_workshop.pipeline.prune_given
    monkeypatch.setattr(
        network_workshop.pipeline, "prune_given", lambda *given: repaired.append(given) or prune_given(*given)
    )
    shares = iter((1.0, 0.5, 0.99))  # what is measured is tested above, and takes a minute
    monkeypatch.setattr(search.Costs, "measure", lambda *_: Cost(1e6, share := next(shares), False, 1e6, share))
    np.savez(tmp_path / "photos.npz", x=images(96, seed=0, size=32))
    base = PruneConfig(target="cpu", sparsity=0.0, repair="none")
    job = JobConfig(strided, str(tmp_path / "out"), base, data=str(tmp_path / "photos.npz"))
    (dropped,) = run(job, "phone", max_accuracy_drop=50.0)["dropped"]
    assert dropped["reason"].startswith("it would cost about 0.99 of float32 or more, and plain int8, which costs 0.50")
    assert {given[0].prune.sparsity for given in repaired} == {0.0}


def test_without_llvm_a_phone_is_refused_at_once(aarch64, job, monkeypatch, tmp_path):
    monkeypatch.setattr("reflow_tf.runtimes.aarch64.cycles._VERSIONS", range(0))
    with pytest.raises(InputError, match=r"needs llvm-mca"):
        run(job, "phone")
    assert not (tmp_path / "out").exists()


def test_a_candidate_that_cannot_be_made_costs_the_others_nothing(job, only, monkeypatch):
    only("plain int8", "sparse 50 %, int8")

    def fail(made, *given):
        if made.prune.sparsity:
            raise InputError("There must be kernels. Received: none")
        return prune_given(made, *given)

    prune_given = network_workshop.pipeline.prune_given
    monkeypatch.setattr(network_workshop.pipeline, "prune_given", fail)
    monkeypatch.setattr(network_workshop.Objections, "find", lambda *_: None)
    document = run(job)
    assert [cell["name"] for cell in document["cells"]] == ["plain int8"]
    assert document["dropped"] == [{"name": "sparse 50 %, int8", "reason": "There must be kernels. Received: none"}]
    assert headline(document).startswith("In TFLM ship plain int8: nothing else was worth making, or could be made; ")
    only("sparse 50 %, int8")
    with pytest.raises(InputError, match=r"--device=tflm must be able to run.+Received: sparse 50 %, int8: There must"):
        run(dataclasses.replace(job, output_dir=job.output_dir + "2"))


def test_what_cannot_be_foreseen_costs_the_others_nothing(job, only, monkeypatch):
    only("plain int8", "sparse 50 %, int8")

    def fail(self, candidate, cells):
        if candidate.kind == SPARSE:
            raise InputError("There must be kernels. Received: none")

    monkeypatch.setattr(network_workshop.Objections, "find", fail)
    document = run(job)
    assert document["dropped"] == [{"name": "sparse 50 %, int8", "reason": "There must be kernels. Received: none"}]
    assert document["answer"]["recommended"] == "plain int8"


@pytest.mark.slow
def test_a_device_that_cannot_run_the_network_costs_the_others_nothing(job, only, monkeypatch, tmp_path):
    only("plain float32", "plain int8")
    costs = search.Costs

    def fail(device, *given):
        if device.name == "size":
            raise InputError("Bytes are gone. Received: none")
        return costs(device, *given)

    monkeypatch.setattr(search, "Costs", fail)
    found = run_all(job, "size", "tflm")
    assert list(found.documents) == ["tflm"]
    (failure,) = found.failures
    assert str(failure).startswith("--device=size must be able to run the network. Bytes are gone. Received")
    assert (tmp_path / "out" / "tflm" / "best" / "model.tflite").is_file()
    assert not (tmp_path / "out" / "size").exists()


def test_pixels_of_another_scale_are_told_once(tmp_path, only, images, capsys):
    only("plain int8")
    rng, network = np.random.default_rng(0), keras.Sequential([keras.Input((8, 8, 3)), layers.BatchNormalization()])
    network.add(layers.GlobalAveragePooling2D())
    network.add(layers.Dense(3))
    network.layers[0].set_weights([rng.uniform(size=3) for _ in range(4)])
    network.save(tmp_path / "network.keras")
    np.savez(tmp_path / "photos.npz", x=images(64, seed=0, size=8))
    base = PruneConfig(target="tflm", sparsity=0.0, repair="none")
    job = JobConfig(str(tmp_path / "network.keras"), str(tmp_path / "out"), base, data=str(tmp_path / "photos.npz"))
    (note,) = run(dataclasses.replace(job, preprocess="none"), max_accuracy_drop=100.0)["notes"]
    assert note.startswith("With --preprocess=none the images reach") and capsys.readouterr().err.count(note) == 1


def test_a_refusal_leaves_nothing_behind(job, tmp_path):
    for wrong in ({"model": str(tmp_path / "gone.keras")}, {"calibration_samples": 8}):
        with pytest.raises(InputError):
            run_all(dataclasses.replace(job, **wrong), "tflm", "size")
        assert not (tmp_path / "out").exists()


def test_home_is_spelled_with_a_tilde(job, tmp_path, only, monkeypatch):
    only("plain int8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run(dataclasses.replace(job, output_dir="~/at_home"))
    assert (tmp_path / "at_home" / "frontier.json").is_file() and not (tmp_path / "~").exists()


def test_several_devices_do_not_go_where_one_was_searched_for(job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / search.JSON).write_text("{}")
    with pytest.raises(InputError, match=r"holds a search for one device: name another folder for several\. Received"):
        run_all(job, "tflm", "size")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [search.JSON]


@pytest.mark.slow
def test_what_was_tried_with_fewer_images_is_remembered(job, only, monkeypatch, tmp_path):
    only("plain int8", "narrow 50 %, int8")
    monkeypatch.setattr(network_workshop, "_LEAST_TRIED", 4)
    tried, fitted = [], []
    try_repair, prune_given = network_workshop.pipeline.try_repair, network_workshop.pipeline.prune_given
    monkeypatch.setattr(
        network_workshop.pipeline, "try_repair", lambda *given: tried.append(given[2]) or try_repair(*given)
    )
    monkeypatch.setattr(
        network_workshop.pipeline, "prune_given", lambda *given: fitted.append(given[0]) or prune_given(*given)
    )
    limit = 1e-6
    first = run(job, max_accuracy_drop=limit)
    (result,) = first["tried"]
    assert tried == [result["fitted"]] == [first["data"]["fitted"] // 4] and len(fitted) == 1
    assert result["expected_drop_points"] > 0
    assert json.loads((tmp_path / "out" / "frontier.json").read_text("utf-8"))["tried"] == [result]
    assert first["dropped"][0]["reason"].startswith(f"narrow 50 %, int8, fitted to {result['fitted']} images, is expec")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # nothing of it waits for the end
        patched.setattr(search._Searching, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        run(dataclasses.replace(job, overwrite=True), max_accuracy_drop=limit)
    tried.clear()
    assert run(job, max_accuracy_drop=limit)["dropped"] == first["dropped"] and tried == []
    more = run(job, max_accuracy_drop=50.0)
    assert [cell["name"] for cell in more["cells"]] == ["plain int8", "narrow 50 %, int8"]
    assert more["tried"] == first["tried"] and tried == []
    alone = run(dataclasses.replace(job, output_dir=job.output_dir + "2"), max_accuracy_drop=50.0)
    digests = [document["cells"][1]["files"]["model.tflite"] for document in (more, alone)]
    assert digests[0] == digests[1]


def test_no_time_for_one(job):
    with pytest.raises(InputError, match=r"--minutes must leave time for one candidate\. Received: 1e-09"):
        run(job, minutes=1e-9)


def test_two_searches_in_one_folder(job, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / search.LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"in which no other search is running\. Received: "):
            run(job)


def test_too_few_images_to_judge_by(job):
    with pytest.raises(InputError, match=r"at least 16 calibration images.+Received: 8"):
        run(dataclasses.replace(job, calibration_samples=8))


def test_somebody_elses_folder(job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"also holds thesis\.tex"):
        run(job)


def test_what_somebody_keeps_beside_the_file_to_ship_stays(job, tmp_path):
    best = tmp_path / "out" / "best"
    best.mkdir(parents=True)
    (best / "notes.txt").write_text("mine")
    (best / "model.tflite").write_text("an earlier one")
    with pytest.raises(InputError, match=r"made anew: keep what is yours elsewhere\. Received: .*best/notes\.txt"):
        run(job)
    assert (best / "notes.txt").read_text() == "mine"


def test_a_folder_of_somebody_elses_with_the_name_of_ours_stays(job, tmp_path):
    cells = tmp_path / "out" / "cells"
    cells.mkdir(parents=True)
    (cells / "microscopy.png").write_text("mine")
    with pytest.raises(InputError, match=r"made anew: keep what is yours elsewhere\. Received: .*cells/microscopy"):
        run(dataclasses.replace(job, overwrite=True))
    assert (cells / "microscopy.png").read_text() == "mine"


def stop_at(monkeypatch, error, *, after):
    """What makes candidates raises, once it has made so many."""
    made, finish = [], network_workshop.pipeline.finish

    def finish_some(*given):
        if len(made) == after:
            raise error
        made.append(given)
        return finish(*given)

    monkeypatch.setattr(network_workshop.pipeline, "finish", finish_some)


@pytest.mark.slow
@pytest.mark.parametrize("error", [Breakdown("Chromium must live. Received: a corpse"), KeyboardInterrupt()])
def test_what_broke_down_is_no_answer_and_the_search_goes_on(job, only, monkeypatch, tmp_path, error):
    only("plain int8", "narrow 80 %, int8")
    with monkeypatch.context() as patched, pytest.raises(type(error)):
        stop_at(patched, error, after=1)
        run(job)
    left = json.loads((tmp_path / "out" / "frontier.json").read_text("utf-8"))
    jsonschema.validate(left, frontier.schema())
    assert left["pending"] == ["narrow 80 %, int8"] and left["dropped"] == [] and left["best"] is None
    assert headline(left).startswith("Not finished: 1") and not (tmp_path / "out" / "best").exists()
    done = run(job)
    assert [cell["name"] for cell in done["cells"]] == ["plain int8", "narrow 80 %, int8"] and not done["pending"]
    assert done["best"] and done["seconds"] > left["seconds"]


def test_after_its_time_nothing_is_even_thought_about(job, only, monkeypatch):
    only("plain int8", "sparse 50 %, int8", "sparse 70 %, int8")
    asked = []
    monkeypatch.setattr(network_workshop.Objections, "find", lambda self, candidate, cells: asked.append(candidate))
    late = iter([False, True, True])
    monkeypatch.setattr(search._Searching, "_is_late", lambda self: next(late))
    document = run(job)
    assert [each.name for each in asked] == ["plain int8"]
    assert document["not_tried"] == ["sparse 70 %, int8", "sparse 50 %, int8"]


@pytest.mark.slow
def test_a_cell_is_all_its_files(job, only, tmp_path, capsys):
    only("plain int8")
    before = run(job)
    cell = tmp_path / "out" / "cells" / "plain_int8"
    assert set(before["cells"][0]["files"]) == {path.name for path in cell.iterdir()} >= {"report.html", "flags.txt"}
    for name in ("report.html", "flags.txt", "model.keras"):
        (cell / name).unlink()
        assert run(job)["cells"][0]["files"].keys() == before["cells"][0]["files"].keys() and (cell / name).is_file()
        assert f"{name} is not what was written" in capsys.readouterr().err
    (cell / "notes.txt").write_text("mine")
    run(job)  # it is whole
    (cell / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"keep what is yours elsewhere\. Received: .*plain_int8/notes\.txt"):
        run(job)
    assert (cell / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("calibration_samples", [24, 1000], ids=["further images judge", "one in four judges"])
def test_the_flags_of_a_cell_make_it_again(job, only, tmp_path, command, monkeypatch, calibration_samples):
    name = "narrow 80 %, int8"
    only(name)
    document = run(dataclasses.replace(job, calibration_samples=calibration_samples))
    (cell,) = document["cells"]
    data = document["data"]
    are_all_fitted = calibration_samples == 24
    assert data["fitted"] == 24 if are_all_fitted else data["fitted"] == 3 * data["judged"]
    assert ("here without the images that judge" in frontier.render(document)) != are_all_fitted
    monkeypatch.chdir(tmp_path)
    done = command(prune, f"--flagfile={tmp_path / 'out' / 'cells' / cell['folder'] / 'flags.txt'}")
    assert done.code == 0, done.err
    again = (tmp_path / "reflow_out" / f"tflm_{cell['folder']}" / "model.tflite").read_bytes()
    first = (tmp_path / "out" / "cells" / cell["folder"] / "model.tflite").read_bytes()
    assert (again == first) == are_all_fitted


@pytest.mark.slow
def test_the_kit_that_somebody_works_in_stays_until_another_file_is_to_ship(job, only, tmp_path, monkeypatch):
    only("plain int8", "narrow 80 %, int8")
    first = run(job, max_accuracy_drop=100.0)
    best = tmp_path / "out" / "best"
    (best / "firmware" / "main.c").write_text("mine")
    assert run(job, max_accuracy_drop=100.0)["answer"] == first["answer"]
    assert (best / "firmware" / "main.c").read_text() == "mine"
    monkeypatch.setattr(search, "choose", lambda rows, *given: Answer(rows[0].name, rows[0].name, rows[0].name, ()))
    other = {"plain int8", "narrow 80 %, int8"} - {first["answer"]["recommended"]}
    if first["answer"]["recommended"] == "plain int8":
        monkeypatch.setattr(search, "choose", lambda rows, *given: Answer(*[rows[1].name] * 3, ()))
    for given in (job, dataclasses.replace(job, overwrite=True)):
        with pytest.raises(InputError, match=r"keep what is yours elsewhere\. Received: .*best/firmware/main\.c"):
            run(given, max_accuracy_drop=100.0)
    assert (best / "firmware" / "main.c").read_text() == "mine"
    (best / "firmware" / "main.c").unlink()
    assert {run(job, max_accuracy_drop=100.0)["answer"]["recommended"]} == other
    assert (best / "firmware" / "README.md").is_file()


@pytest.mark.slow
def test_starting_anew_leaves_nothing_that_tells_of_the_old(job, only, monkeypatch, tmp_path):
    only("plain int8")
    run(job)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_at(patched, KeyboardInterrupt(), after=0)
        run(dataclasses.replace(job, overwrite=True))
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {search.LOCK}


@pytest.mark.slow
def test_killed_it_goes_on(job, inputs, tmp_path, wait_until):
    """kill -9 after the first candidate: it is not made again, and the rest is, as far as time allows."""
    flags = [f"--model={inputs.model}", f"--data={inputs.data}", f"--eval_data={inputs.heldout}", "--preprocess=tf"]
    flags += ["--device=tflm", "--repair=reflow", f"--output_dir={tmp_path / 'out'}", "--max_accuracy_drop=5"]
    command = [sys.executable, "-m", "reflow_tf.tools.frontier", *flags]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "out" / "frontier.json").exists() or running.poll() is not None)
    running.kill()
    running.wait()
    before = json.loads((tmp_path / "out" / "frontier.json").read_text("utf-8"))
    assert 1 <= len(before["cells"]) <= 3
    done = subprocess.run([*command, "--minutes=0.1"], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    after = json.loads((tmp_path / "out" / "frontier.json").read_text("utf-8"))
    assert after["cells"][: len(before["cells"])] == before["cells"]
    assert len(after["cells"]) > len(before["cells"]) or after["not_tried"]
    assert "In TFLM ship " in done.stdout


def test_flags_are_spelled_as_prune_reads_them(job, command, inputs):
    """The command that a page shows makes the same job."""
    (candidate,) = [
        c for c in list_candidates(DEVICES["phone"], "reflow") if c.name.startswith("narrow 80 % and sparse")
    ]
    made = candidate.job(job, DEVICES["phone"], str(job.output_dir))
    spelled = spell(made)
    prune.FLAGS.unparse_flags()
    prune.FLAGS(["prune", *shlex.split(shlex.join(spelled))])
    assert prune.read_config() == made


@pytest.mark.slow
def test_what_pruning_lost_in_float32_no_other_format_gives_back(job, only, monkeypatch):
    only("plain float32", "narrow 65 %, float32", "narrow 50 %, float16", "narrow 50 %, int8")
    losses = iter([(0.0, 0.0), (60.0, 1.0)])
    monkeypatch.setattr(ExpectedLoss, "measure", lambda *_: next(losses))
    document = run(job, "size")
    assert [cell["name"] for cell in document["cells"]] == ["plain float32", "narrow 65 %, float32"]
    reason = "narrow 65 %, float32 is expected to lose 60.00 points already"
    assert document["dropped"] == [
        {"name": f"narrow 50 %, {number_format}", "reason": reason} for number_format in ("float16", "int8")
    ]
