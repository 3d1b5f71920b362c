import json
import xml.etree.ElementTree

import pytest

from reflow_tf.config import PruneConfig
from reflow_tf.errors import InputError
from reflow_tf.jobs import comparison as floor
from reflow_tf.report import comparison as report
from reflow_tf.report.resumable import to_json
from reflow_tf.tools import compare


@pytest.fixture
def given(inputs, tmp_path):
    return {"model": inputs.model, "data": inputs.data, "preprocess": "tf", "output_dir": tmp_path / "out"}


def test_a_table_a_file_and_a_page(command, given, tmp_path):
    done = command(compare, **given, methods="obs,magnitude+obs", sparsities="0.8")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("top-1 accuracy in %") and "dense 100.0 %, n = 48" in lines[0]
    assert lines[2].split() == ["alone", "0.8"] and lines[7].split() == ["with", "REFLOW", "0.8"]
    for start in (3, 8):
        assert [line.split()[0] for line in lines[start : start + 3]] == ["magnitude", "obs", "magnitude+obs"]
        assert all(len(line.split()) == 3 for line in lines[start : start + 3])
    assert lines[3].split()[2] == "+0.0", "magnitude gains nothing over itself"
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [(cell["method"], cell["criterion"], cell["repair"]) for cell in document["cells"][:3]] == [
        ("magnitude", "magnitude", "none"),
        ("obs", "obs", "none"),
        ("magnitude+obs", "magnitude", "obs"),
    ]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<svg") == 6 and "What is predicted" in page and "80\u00a0% sparse" in page and "http" not in page
    again = command(compare, **given, methods="obs", sparsities="0.8")
    assert (again.code, again.out) == (0, done.out), "what is there is shown, and nothing is measured"


def make_document(methods=("magnitude", "<obs>", "magnitude+obs"), sparsities=(0.5, 0.8), labelled=True):
    def score(top1):
        measured = {"variance_ratio": 0.5, "effective_classes": 4.0}
        return {"top1": top1, "top5": None, "n": 10, "top1_interval": [top1, top1], "positions": 1, **measured}

    cells = [
        {
            **{"method": method, "criterion": "obs", "sparsity": sparsity, "recalibrates": False, "statements": []},
            "repair": "obs" if "+" in method else "none",
            "alone": score(0.5 - sparsity / 2 + number / 10),
            "reflow": score(0.6 + number / 10),
            "seconds": 1.0,
        }
        for sparsity in sparsities
        for number, method in enumerate(methods)
    ]
    document = {
        "version": report.VERSION,
        "settings": {"model": "<net>", "weights": None},
        "data": {"calibration": 5, "evaluation": 10, "labelled": labelled, "task": "classification", "unit": "image"},
        "norms": {"paths": [], "unmerged": []},
        "dense": score(0.9),
        "cells": cells,
    }
    report.add_gains(document)
    return document


def test_a_column_for_each_sparsity():
    lines = report.format_table(make_document())
    assert lines[2].split() == ["alone", "0.5", "0.8"] and lines[7].split() == ["with", "REFLOW", "0.5", "0.8"]
    assert lines[3].split() == ["magnitude", "25.0", "+0.0", "10.0", "+0.0"]
    assert lines[5].split() == ["magnitude+obs", "45.0", "+20.0", "30.0", "+20.0"]
    assert lines[10].split() == ["magnitude+obs", "80.0", "+55.0", "80.0", "+70.0"]


def test_no_zero_has_a_minus():
    document = make_document(("magnitude", "obs"))
    for cell in document["cells"]:
        for state in ("alone", "reflow"):
            cell[state]["top1"] = 0.0 if cell["method"] == "magnitude" else -1e-5
    report.add_gains(document)
    assert report.summarize(document)[1] == ("other criteria", "+0.0 (obs)", "+0.0 (obs)")
    assert "-0.0" not in "\n".join(report.format_table(document)) and "\u22120.0" not in report.render(document)


def test_the_mean_gain_of_each_kind():
    rows = report.summarize(make_document())
    # alone: 0.25 and 0.1 for magnitude; with REFLOW 0.6: 35 and 50 points more, in the mean 42.5.
    assert rows == [
        ("plain magnitude", "+0.0 (magnitude)", "+42.5 (magnitude)"),
        ("other criteria", "+10.0 (<obs>)", "+52.5 (<obs>)"),
        ("weights updated", "+20.0 (magnitude+obs)", "+62.5 (magnitude+obs)"),
    ]


def test_means_are_over_what_every_method_has():
    document = make_document()
    document["cells"].pop()  # magnitude+obs at 0.8
    assert report.summarize(document)[0] == ("plain magnitude", "+0.0 (magnitude)", "+35.0 (magnitude)")
    assert report.format_table(document)[5].split()[-1] == "-"
    document["cells"] = [document["cells"][0], document["cells"][4]]  # magnitude at 0.5, the other at 0.8
    assert report.summarize(document) == []


def test_a_method_that_recalibrates_is_no_weight_update():
    document = make_document(("magnitude", "magnitude+obs", "magnitude+least_squares"))
    for cell in document["cells"]:
        cell["recalibrates"] = cell["method"] == "magnitude+least_squares"
    assert [row.kind for row in report.summarize(document)][1:] == ["weights updated", "recalibrated by the repair"]


def test_gains_wait_for_the_baseline():
    document = make_document(("<obs>",))
    assert document["cells"][0]["alone"]["gain_points"] is None
    assert "<obs>" in "\n".join(report.format_table(document))
    assert "&lt;obs&gt;" in report.render(document)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_page_shows_every_cell_and_escapes_names(labelled):
    document = make_document(labelled=labelled)
    page = report.render(document)
    assert "<obs>" not in page and "<net>" not in page
    assert ("agreement with the dense model" in page) != labelled
    drawing = xml.etree.ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    for tag, state in (("rect", "alone"), ("circle", "with REFLOW")):
        titles = [element.find("title").text for element in drawing.iter(tag)]
        assert len(titles) == 6 and all(f" {state}: " in title for title in titles)
    positions = [float(circle.attrib["cx"]) for circle in drawing.iter("circle")][:3]
    assert positions[1] - positions[0] == pytest.approx(positions[2] - positions[1], abs=0.2)


def test_json_both_ways():
    document = make_document()
    assert report.from_json(to_json(document).encode()) == document


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b'{"version": 2}', b'{"version": 0}', b"\xff", b"[" * 10**5])
def test_json_of_something_else(text):
    with pytest.raises(InputError, match=r"compare.json must be what an earlier run wrote"):
        report.from_json(text)


def test_defaults_cover_the_kinds(command, monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "compare", lambda given: seen.append(given) or 0)
    assert command(compare, model="a/net.keras").code == 0
    (given,) = seen
    assert list(given.methods) == list(compare.METHODS) and list(given.sparsities) == list(compare.SPARSITIES)
    assert given.methods["cbs+chita"] == PruneConfig(criterion="cbs", repair="chita", allocation="lamp")
    assert given.methods["obs"] == PruneConfig(criterion="obs", repair="none", allocation="lamp")
    assert given.job.output_dir == "reflow_out/net-compared"


def test_magnitude_is_always_measured_and_nothing_twice(command, monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "compare", lambda given: seen.append(given) or 0)
    command(compare, model="x", methods="obs+woodfisher+moments,obs+woodfisher+moments", sparsities="0.5,0.50,.5")
    assert list(seen[0].methods) == ["magnitude", "obs+woodfisher+moments"] and seen[0].sparsities == [0.5]
    assert seen[0].methods["obs+woodfisher+moments"].repair == "woodfisher,moments"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"methods": ""}, "--methods must name at least one"),
        ({"sparsities": ""}, "--sparsities must name at least one"),
        ({"methods": "luck"}, "--methods must begin with one of magnitude, activation,"),
        ({"methods": "obs+luck"}, "Received: obs+luck"),
        ({"methods": "obs+obs+obs"}, "Received: obs+obs+obs"),
        ({"methods": "obs+reflow"}, "reflow follows every method. Received: obs+reflow"),
        ({"methods": "obs+auto"}, "Received: obs+auto"),
        ({"methods": "obs+"}, "Received: obs+"),
        ({"methods": "obs,"}, "--methods must begin with one of"),
        ({"sparsities": "0.5,1"}, "each in [0, 1). Received: 1"),
        ({"sparsities": "nan"}, "each in [0, 1). Received: nan"),
        ({"sparsities": "most"}, "each in [0, 1). Received: most"),
        ({"allocation": "best"}, "--allocation must be one of"),
        ({"calibration_samples": 0}, "--calibration_samples must be at least 1"),
        ({"output_dir": "/proc/reflow"}, "can be written to"),
        ({"data": "/no/such/folder"}, "Received: /no/such/folder"),
    ],
)
def test_bad_input(command, given, left, flags, message):
    done = command(compare, **given | flags)
    assert done.code == 2 and message in done.error and not done.out
    assert left() == {}


def test_a_file_without_images_of_its_own(command, inputs, tmp_path):
    assert "--data is needed" in command(compare, model=inputs.model, output_dir=tmp_path / "out").error


def test_it_does_not_write_into_its_own_input(command, given, inputs, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "compare.json").write_bytes(b"weights")
    done = command(compare, **given | {"weights": folder / "compare.json"})
    assert done.code == 2 and "--weights must not be inside --output_dir" in done.error


def test_interrupted_after_two_cells(command, given, tmp_path, monkeypatch):
    measured = []

    def measure(bench, config):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(config.sparsity)
        outcome = floor.Outcome(bench.dense.score, None, 4.0)
        return floor.Cell(outcome, outcome, False, (), 0.0)

    monkeypatch.setattr(floor.Bench, "measure", measure)
    asked = {"methods": "magnitude", "sparsities": "0.6,0.7,0.8"}
    done = command(compare, **given, **asked)
    assert done.code == 2 and "interrupted" in done.error
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())["cells"]) == 2
    measured.clear()
    done = command(compare, **given, **asked)
    assert done.code == 0 and measured == [0.8] and "magnitude" in done.out
    refused = command(compare, **given, **asked, seed=3)
    assert refused.code == 2 and "other settings, seed=0" in refused.error
    measured.clear()
    anew = command(compare, **given, methods="magnitude", sparsities="0.8", seed=3, overwrite=True)
    assert anew.code == 0 and measured == [0.8]


def test_a_preset_is_a_figure_of_its_own_on_every_kernel(command, given, tmp_path):
    asked = {name: value for name, value in given.items() if name not in ("target", "allocation")}
    done = command(compare, **asked, preset="figure_3", sparsities="0.6,0.9")
    assert done.code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.html",
        "compare.json",
        "compare.lock",
        "figure_3.svg",
    ]
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (document["settings"]["target"], document["settings"]["allocation"]) == ("storage", "global")
    assert {cell["method"] for cell in document["cells"]} == {"magnitude"}
    done = command(compare, **asked, preset="figure_4", sparsities="0.6,0.9")
    assert (
        done.code == 0 and (tmp_path / "out" / "figure_3.svg").exists() and (tmp_path / "out" / "figure_4.svg").exists()
    )
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["cells"] == document["cells"], "measured once"


def test_a_preset_has_methods_of_its_own(command, given):
    done = command(compare, **given, preset="figure_1", methods="obs")
    assert done.code == 2 and "leave --methods out. Received: --preset=figure_1" in done.error
    done = command(compare, **given, preset="figure_9")
    assert done.code == 2 and "figure_9" in done.error
