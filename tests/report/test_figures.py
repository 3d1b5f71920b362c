"""The pictures of the paper: what is drawn is what the cells say."""

import csv
import io
from xml.etree import ElementTree

import pytest

from reflow_tf.report import figures
from reflow_tf.report.charts import NARROW, WIDE
from reflow_tf.report.comparison import VERSION, add_gains, render
from reflow_tf.report.figures import FIGURES, can_draw, for_page, render_csv, render_svg

SVG = "{http://www.w3.org/2000/svg}"


def make_outcome(top1, ratios=(0.5, 0.001), histogram=(9, 1)):
    bounds = [max(0.0, top1 - 0.05), min(1.0, top1 + 0.05)]
    score = {"top1": top1, "top5": None, "n": 10, "top1_interval": bounds, "positions": 1}
    return score | {"variance_ratio": ratios[-1], "effective_classes": 2.0, "ratios": ratios, "histogram": histogram}


def make_document(methods, sparsities=(0.5, 0.8)):
    cells = []
    for sparsity in sparsities:
        for place, method in enumerate(methods):
            alone = make_outcome(round(1 - sparsity + 0.01 * place, 3))
            reflow = make_outcome(round(1 - sparsity + 0.2, 3), (1.0, 0.9), (5, 5))
            repair = method.partition("+")[2] or "none"
            about = {"method": method, "criterion": method.partition("+")[0], "repair": repair, "sparsity": sparsity}
            cells.append(
                about | {"alone": alone, "reflow": reflow, "recalibrates": False, "statements": [], "seconds": 1.0}
            )
    data = {"unit": "image", "calibration": 8, "evaluation": 10, "labelled": True, "task": "classification"}
    dense = make_outcome(0.9, (1.0, 1.0), (5, 5))
    document = {"version": VERSION, "settings": {"model": "net"}, "data": data, "dense": dense, "cells": cells}
    document["norms"] = {"paths": ["first", "second"], "unmerged": []}
    add_gains(document)
    return document


def read_titles(picture):
    return [title.text.replace("\u00a0", " ") for title in picture.iter(f"{SVG}title")]


@pytest.fixture(scope="module")
def document():
    methods = dict.fromkeys(name for figure in FIGURES.values() for name in figure.methods)
    return make_document(["magnitude", *methods])


@pytest.mark.parametrize("name", [name for name, figure in FIGURES.items() if figure.draw])
def test_every_figure_is_a_file_that_stands_alone(document, name):
    picture = ElementTree.fromstring(render_svg(document, name, "ResNet-20"))
    style = picture.find(f"{SVG}style").text
    classes = {word for element in picture.iter() for word in element.get("class", "").split()}
    assert {word for word in classes if f".{word}" not in style} <= {"value", "label"}
    assert picture.get("aria-label").startswith("ResNet-20: ")
    width, height = map(float, picture.get("viewBox").split()[2:])
    for element in picture.iter():
        for axis, size in (("x", width), ("x1", width), ("cx", width), ("y", height), ("y1", height), ("cy", height)):
            assert 0 <= float(element.get(axis, 0)) <= size, ElementTree.tostring(element)


def test_gains_are_points_over_magnitude_at_the_same_sparsity(document):
    titles = read_titles(ElementTree.fromstring(render_svg(document, "figure_1", "n")))
    place = 1 + figures.SELECTIONS.index("cbs")
    assert f"cbs at 50 %: +{place:.1f} points" in titles and f"cbs at 80 %: +{place:.1f} points" in titles
    assert "REFLOW at 80 %: +20.0 points" in titles and not any("chita" in title for title in titles)


def test_a_higher_gain_is_higher_up(document):
    picture = ElementTree.fromstring(render_svg(document, "figure_2", "n"))
    places = {circle.find(f"{SVG}title").text: float(circle.get("cy")) for circle in picture.iter(f"{SVG}circle")}
    named = {title.replace("\u00a0", " "): y for title, y in places.items()}
    assert named["REFLOW at 50 %: +20.0 points"] < min(y for title, y in named.items() if "woodfisher at 50" in title)


def test_accuracies_have_magnitude_itself_and_the_dense_network(document):
    picture = ElementTree.fromstring(render_svg(document, "figure_5", "n"))
    assert "magnitude at 80 %: 20.0 %" in read_titles(picture)
    assert sum(line.get("class") == "reference" for line in picture.iter(f"{SVG}line")) == 1


def test_ratios_have_a_curve_for_each_sparsity_before_and_after(document):
    picture = ElementTree.fromstring(render_svg(document, "figure_3", "n"))
    curves = [path.get("class") for path in picture.iter(f"{SVG}path")]
    assert curves.count("curve stroke-pruned") == curves.count("curve stroke-repaired") == 2
    first = next(path for path in picture.iter(f"{SVG}path") if "pruned" in path.get("class"))
    ends = first.get("d").replace("L", "M").split("M")[1:]
    assert float(ends[0].split()[1]) < float(ends[1].split()[1]), "0.5 is higher up than 0.001"


@pytest.mark.parametrize("name", ["figure_1", "figure_2", "figure_5"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_curves_differ_and_their_intervals_are_seen(document, name, width):
    height, parts = FIGURES[name].draw(document, width)
    picture = ElementTree.fromstring("<svg>" + "".join(parts) + "</svg>")
    number = len(FIGURES[name].methods) + (2 if name == "figure_5" else 1)  # REFLOW, and magnitude itself
    drawn = [path.get("class") for path in picture.iter("path")]
    assert len(set(drawn)) == number and all(drawn.count(style) == 2 for style in drawn), "with its name once more"
    whiskers = [line for line in picture.iter("line") if "whisker" in line.get("class")]
    assert len(whiskers) == 2 * number
    assert {line.get("class").split()[1] for line in whiskers} == {style.split()[1] for style in drawn}
    assert len({line.get("x1") for line in whiskers}) == len(whiskers), "none covers another"
    assert all(0 < float(text.get("y")) <= height for text in picture.iter("text"))
    ends = [float(text.get("x")) + 7 * len(text.text) for text in picture.iter("text") if "label" in text.get("class")]
    assert max(ends) <= width


def test_ratios_stay_inside_of_their_panel():
    document = make_document(["magnitude"])
    document["cells"][0]["reflow"]["ratios"] = (40.0, 1.0)
    for width in (WIDE, NARROW):
        height, parts = FIGURES["figure_3"].draw(document, width)
        picture = ElementTree.fromstring("<svg>" + "".join(parts) + "</svg>")
        titles = [float(text.get("y")) for text in picture.iter("text") if "label" in text.get("class")]
        for path, title in zip(picture.iter("path"), (*titles[:1] * 2, *titles[1:] * 2), strict=True):
            for point in path.get("d").replace("L", "M").split("M")[1:]:
                assert title < float(point.split()[1]) <= height
        assert "10" in [text.text for text in picture.iter("text")]


def test_predictions_name_the_largest_class_of_every_bar(document):
    titles = read_titles(ElementTree.fromstring(render_svg(document, "figure_4", "n")))
    assert "80 % pruned, class 0: 90.0 %" in titles and titles.count("dense, class 1: 50.0 %") == 1
    assert titles.count("with REFLOW, class 0: 50.0 %") == 2


def test_the_table_has_every_cell_in_numbers(document):
    rows = list(csv.DictReader(io.StringIO(render_csv(document))))
    assert len(rows) == 2 * len(document["cells"])
    (row,) = [row for row in rows if (row["method"], row["sparsity"], row["state"]) == ("fisher", "0.8", "alone")]
    cell = next(cell for cell in document["cells"] if (cell["method"], cell["sparsity"]) == ("fisher", 0.8))
    assert float(row["top-1 accuracy"]) == cell["alone"]["top1"] and float(row["gain_points"]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("methods", "sparsities", "drawn"),
    [
        (["magnitude"], (0.5,), {"figure_3", "figure_4"}),
        (["activation"], (0.5, 0.8), set()),
        (["magnitude", *FIGURES["figure_1"].methods], (0.5,), {"figure_3", "figure_4"}),
        (["magnitude", *FIGURES["figure_1"].methods], (0.5, 0.8), {"figure_1", "figure_3", "figure_4"}),
    ],
)
def test_the_page_has_what_the_cells_are_enough_for(methods, sparsities, drawn):
    document = make_document(methods, sparsities)
    assert {name for name in FIGURES if can_draw(document, name)} == drawn
    page = render(document, for_page(document))
    assert all((FIGURES[name].title in page) == (name in drawn) for name in FIGURES if FIGURES[name].draw)
