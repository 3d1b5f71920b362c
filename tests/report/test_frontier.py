"""The sentence on top, the table and the page of a search, of documents made by hand."""

import copy
import re
from xml.etree import ElementTree

import pytest

from reflow_tf.errors import InputError
from reflow_tf.report import frontier
from reflow_tf.report.resumable import to_json

CELL = {
    "folder": "cell",
    "command": ["--model=a b.keras", "--target=cpu"],
    "differs": False,
    "size_bytes": 1000,
    "flash_bytes": None,
    "ram_bytes": None,
    "fits": True,
    "expected_error_points": 0.1,
    "seconds": 61.0,
    "files": {"model.tflite": 64 * "0"},
}


def make_cell(name, kind, share, top1, expected):
    score = {"top1": top1, "top1_interval": [top1 - 0.02, top1 + 0.02], "n": 500, "positions": 1}
    score |= {"drop_points": round(100 * (0.8 - top1), 4)}
    measured = {"name": name, "kind": kind, "cost": 100e6 * share, "cost_share": share, "score": score}
    measured |= {"cycles": None, "cycles_share": None}
    return CELL | measured | {"number_format": name.split()[-1], "expected_drop_points": expected}


@pytest.fixture
def document():
    cells = [
        make_cell("plain float32", "plain", 1.0, 0.8, 0.0),
        make_cell("plain int8", "plain", 0.5, 0.79, 0.5),
        make_cell("narrow 80 %, int8", "narrow", 0.4, 0.785, 0.8),
    ]
    return {
        "version": frontier.VERSION,
        "command": ["frontier"],
        "given": "network",
        "settings": {
            "model": "net<script>",
            "calibration_samples": 400,
            "seed": 0,
            "flash_budget": None,
            "ram_budget": None,
        },
        "device": {
            "name": "phone",
            "place": "on a Cortex-A76",
            "description": "instructions",
            "runtime": "aarch64",
            "unit": "instructions",
            "is_estimate": False,
            "estimates_cycles": False,
        },
        "data": {"unit": "image", "fitted": 300, "judged": 100, "evaluation": 500, "measure": "accuracy"},
        "max_accuracy_drop": 1.0,
        "cells": cells,
        "dropped": [{"name": "sparse 50 %, float32", "reason": "it would cost 0.98 of float32"}],
        "tried": [],
        "not_tried": ["sparse 80 %, float32"],
        "pending": [],
        "best": None,
        "notes": [],
        "seconds": 100.0,
        "answer": {
            "recommended": "narrow 80 %, int8",
            "best_plain": "plain int8",
            "best_at_equal_cost": "plain int8",
            "frontier": ["narrow 80 %, int8", "plain int8", "plain float32"],
        },
    }


def say(document):
    return frontier.headline(document).replace("\u00a0", " ")


def test_the_sentence_names_what_was_won_and_lost(document):
    assert say(document) == (
        "On a Cortex-A76 ship narrow 80 %, int8: 2.5 times fewer instructions than the float32 file and 1.2 times "
        "fewer instructions than plain int8. It lost 1.5 points of top-1 on 500 images, and was expected to lose "
        "0.8 ± 0.1 by 100 held-out calibration images."
    )


def test_where_nothing_that_is_pruned_wins(document):
    document["not_tried"] = []
    document["answer"]["recommended"] = "plain int8"
    assert say(document).startswith(
        "On a Cortex-A76 ship plain int8: nothing that was pruned beats it here. It takes 2.0 times fewer instructions "
        "than the float32 file. It lost 1.0 points"
    )
    document["answer"]["recommended"] = "plain float32"
    assert "beats it here. It lost 0.0 points" in say(document)


def test_where_nothing_can_be_trusted(document):
    document["answer"] = {"recommended": None, "best_plain": None, "best_at_equal_cost": None, "frontier": []}
    for cell in document["cells"]:
        cell["expected_drop_points"] += 5
    document["cells"][0]["fits"] = False
    assert say(document) == (
        "On a Cortex-A76 nothing that was tried can be trusted to lose at most 1 point of top-1. The least is "
        "expected of plain int8: 5.5 ± 0.1."
    )
    document["cells"][0]["fits"] = True
    document["answer"] = None
    assert "nothing that was tried" in say(document) and "nothing that was tried" in frontier.render(document)


def test_where_nothing_fits(document):
    document["settings"] |= {"flash_budget": 90_000, "ram_budget": 40_000}
    for cell, flash, ram in zip(document["cells"], (400_000, 100_000, 80_000), (90_000, 60_000, 50_000), strict=True):
        cell |= {"fits": False, "flash_bytes": flash, "ram_bytes": ram}
    document["answer"] = None
    assert say(document) == (
        "On a Cortex-A76 nothing that was tried fits. Nearest is narrow 80 %, int8, which needs 80,000 where "
        "--flash_budget=90000 and 50,000 where --ram_budget=40000."
    )
    assert "beyond a budget: it needs 80.0\u00a0kB of flash and 50.0\u00a0kB of RAM" in frontier.render(document)


def test_what_was_not_tried_is_not_beaten(document):
    document["answer"]["recommended"] = "plain int8"
    assert "nothing that was tried in time beats it here; not tried: 1. It takes" in say(document)
    document["not_tried"] = []
    assert "nothing that was pruned beats it here." in say(document)


def test_numbers_do_not_lie_on_each_other(document):
    """Three files of one cost and score."""
    document["cells"] = [make_cell(f"plain {number}", "plain", 0.5, 0.79, 0.5) for number in range(3)]
    _, parts = frontier.draw(document, 800)
    placed = re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>([123])</text>', "".join(parts))
    numbers = [(x, y) for x, y, _ in placed if y != "346"]  # those of the axis are below
    assert len(numbers) == 3 and len(set(numbers)) == 3


def test_few_images_stay_in_the_picture(document):
    for cell, share in zip(document["cells"], (0.85, 0.9, 0.6), strict=True):
        cell["score"] |= {"top1": share, "top1_interval": [share - 0.2, min(1.0, share + 0.15)]}
    _, parts = frontier.draw(document, 800)
    marks = re.findall(r' (?:y|y1|y2|cy)="([-\d.]+)"', "".join(map(str, parts)))
    assert marks and all(0 <= float(mark) <= 380 for mark in marks)


def test_doubts_come_first(document):
    document["notes"] = [doubt := "Check --preprocess."]
    assert doubt in frontier.format_table(document) and doubt in frontier.render(document)


def test_milliseconds_are_told_apart_from_shares(document):
    assert frontier.format_table(document)[-3] == "Share: of what the float32 file costs."
    document["device"]["unit"] = "ms"
    assert frontier.format_table(document)[-3].endswith("at different times, compare less well.")


def test_small_networks_have_costs_that_can_be_told_apart(document):
    for cell, cost in zip(document["cells"], (43_210.0, 999_000.0, 1_200_000.0), strict=True):
        cell["cost"] = cost
    words = " ".join("\n".join(frontier.format_table(document)).split())
    assert all(cost in words for cost in ("float32 43.2 k ", "int8 999.0 k ", "int8 1.2 M "))


def test_units_have_words_of_their_own(document):
    document["device"]["unit"] = "ms"
    assert "2.5 times as fast as the float32 file and 1.2 times as fast as plain int8." in say(document)
    document["device"] |= {"unit": "cycles", "is_estimate": True, "runtime": "microcontroller"}
    assert "by estimate 2.5 times fewer cycles than the dense int8 file and by estimate 1.2 times" in say(document)
    document["data"]["measure"] = "agreement"
    assert "points of agreement with the dense network" in say(document)


def test_table_and_page_show_everything(document):
    lines = frontier.format_table(document)
    assert any(line.startswith("* narrow 80 %, int8") and "40.0" in line for line in lines)
    assert "left out: sparse 50 %, float32: it would cost 0.98 of float32" in lines
    assert "not tried for want of time: sparse 80 %, float32" in lines
    page = frontier.render(document)
    assert "<script>" not in page and "net&lt;script&gt;" in page
    assert "1. narrow 80 %, int8</a>" in page and "not tried for want of time" in page
    assert "--model=a b.keras" in page and 'class="ring"' in page
    wrong = copy.deepcopy(document)
    wrong["cells"][0]["differs"] = True
    wrong["cells"][1] |= {"fits": False, "flash_bytes": 9, "ram_bytes": 9}
    assert "its outputs there are wrong" in frontier.render(wrong) and "beyond a budget" in frontier.render(wrong)


def test_what_was_interrupted_says_so_and_draws_no_conclusion(document):
    document["cells"] = document["cells"][:2]
    document["answer"] |= {"recommended": "plain int8", "frontier": ["plain int8"]}
    document |= {"pending": ["narrow 80 %, int8", "sparse 50 %, int8"], "not_tried": [], "dropped": []}
    assert say(document).startswith(
        "Not finished: 2 files made, 2 to go; the same command goes on. On a Cortex-A76 ship"
    )
    assert "was pruned" not in say(document)
    assert frontier.render(document).count("not yet: the search was interrupted") == 2


def test_where_nothing_was_pruned_nothing_is_said_of_it(document):
    document["cells"] = document["cells"][:2]
    document["answer"] |= {"recommended": "plain int8", "frontier": ["plain int8"]}
    document["not_tried"] = []
    assert "nothing else was worth making, or could be made" in say(document) and "pruned" not in say(document)


def test_what_costs_more_is_never_said_to_cost_fewer_times_less(document):
    document["cells"][2]["cost_share"] = 1.17
    document["answer"]["best_plain"] = None
    assert "1.2 times more instructions than the float32 file" in say(document)


def test_files_that_compute_something_else_are_no_question_of_points(document):
    for cell in document["cells"]:
        cell["differs"] = True
    document["answer"] = None
    assert say(document) == (
        "On a Cortex-A76 nothing that was tried can be shipped: whatever fits computes something else there."
    )


def test_the_best_at_equal_cost_is_told_where_it_is_a_third_one(document):
    sentence = "At no more than the cost of plain int8, sparse 50 %, int8 is expected to lose least: 0.1 ± 0.1 points."
    assert not any("At no more" in line for line in frontier.format_table(document))
    document["cells"].append(make_cell("sparse 50 %, int8", "sparse", 0.5, 0.8, 0.1))
    document["answer"]["best_at_equal_cost"] = "sparse 50 %, int8"
    assert sentence in frontier.format_table(document) and sentence in frontier.render(document)


def test_the_frontier_is_drawn_from_file_to_file(document):
    def corners():
        return [path.count("L") for path in re.findall(r'<path d="(M[^"]*)" class="curve', frontier.render(document))]

    assert corners() == [2, 2]  # on the wide and the narrow picture
    document["answer"]["frontier"] = ["plain int8"]
    assert corners() == []


def test_json_comes_back(document):
    assert frontier.from_json(to_json(document).encode()) == document


def without(document, key, *, of_cells=False):
    changed = copy.deepcopy(document)
    del (changed["cells"][0] if of_cells else changed)[key]
    return changed


def test_a_document_that_lacks_something_is_refused(document):
    damaged = [without(document, key) for key in ("settings", "cells", "notes", "seconds", "best")]
    damaged += [without(document, key, of_cells=True) for key in ("files", "score", "folder")]
    damaged += [document | {"cells": None}, document | {"settings": []}, document | {"cells": [None]}]
    for each in damaged:
        with pytest.raises(InputError, match=r"frontier\.json must be what an earlier search wrote.+Received: "):
            frontier.from_json(to_json(each).encode())


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"version": 99, "settings": {}, "cells": [], "device": {}}'])
def test_something_else_is_refused(text):
    with pytest.raises(InputError, match=r"frontier\.json must be what an earlier search wrote.+Received: "):
        frontier.from_json(text)


def test_an_estimate_stands_beside_the_count(document):
    document["device"]["estimates_cycles"] = True
    for cell, cycles in zip(document["cells"], (1.0, 0.55, 0.45), strict=True):
        cell |= {"cycles": 90e6 * cycles, "cycles_share": cycles}
    assert say(document).startswith(
        "On a Cortex-A76 ship narrow 80 %, int8: by estimate 2.2 times fewer cycles, with 2.5 times fewer "
        "instructions, than the float32 file and by estimate 1.2 times fewer cycles, with 1.2 times fewer "
        "instructions, than plain int8."
    )
    heading, *rows = frontier.format_table(document)[2:6]
    assert "cycles (estimate)" in heading
    assert "0.45" in rows[0] and "0.40" in rows[0]
    page = frontier.render(document)
    assert "cycles (estimate)" in page and "cycles, by estimate, as a share" in page


def test_the_picture_stands_alone_and_names_every_file(document, load_tool):
    tool = load_tool("draw_frontier_picture")
    picture = ElementTree.fromstring(tool.draw(document, "A title"))
    space = "{http://www.w3.org/2000/svg}"
    words = [text.text.replace("\u00a0", " ") for text in picture.iter(f"{space}text")]
    assert "A title" in words and {"1  narrow 80 %, int8", "2  plain int8", "3  plain float32"} <= set(words)
    assert "0.40, 78.5 %" in words
    style = picture.find(f"{space}style").text
    classes = {name for element in picture.iter() for name in element.get("class", "").split()}
    assert {name for name in classes if f".{name}" not in style} <= {"value", "label"}
    assert picture.get("aria-label").startswith("On a Cortex-A76 ship narrow 80 %, int8")


def test_of_a_finished_file_nothing_was_pruned(document):
    cells = [
        make_cell("as it is", "plain", 1.0, 0.8, 0.0),
        make_cell("without its zeros", "sparse", 0.5, 0.8, 0.0),
        make_cell("with float16 arithmetic", "converted", 0.6, 0.8, 0.0),
    ]
    cells[0]["command"] = []
    answer = {"recommended": "without its zeros", "best_plain": "as it is"}
    document |= {"given": "file", "cells": cells, "not_tried": [], "answer": document["answer"] | answer}
    sentence = frontier.headline(document)
    assert sentence.startswith(
        "On a Cortex-A76 ship the file without its zeros: 2.0 times fewer instructions than the file"
    )
    page = frontier.render(document)
    assert (
        page.count("reflow_tf.tools.rewrite") == 2 and "circles: pruned" not in page and "images that judge" not in page
    )
    document["answer"] |= {"recommended": "as it is"}
    beaten = "On a Cortex-A76 ship the file as it is: nothing that could be made of it beats it here. It lost 0.0"
    assert frontier.headline(document).startswith(beaten)
