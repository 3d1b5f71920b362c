"""tools/draw_tradeoff_picture.py: rows of a measurement as one picture."""

from xml.etree import ElementTree

import pytest

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("draw_tradeoff_picture")


def make_rows():
    plain = {"measure": "accuracy", "scored": "validation", "labelled": 100}
    rows = [plain | {"file": "float32", "hits": 80}, plain | {"file": "int8", "hits": 78}]
    rows += [{"measure": runtime, "file": "int8", "gain": gain} for runtime, gain in (("web", 1.27), ("aarch64", 2.4))]
    for pattern, (sparsity, hits, gain) in (
        ("unstructured", (0.5, 75, 1.36)),
        ("unstructured", (0.7, 60, 1.9)),
        ("block:2x1", (0.5, 70, 1.3)),
    ):
        file = {"file": "sparse", "pattern": pattern, "allocation": "uniform", "sparsity": sparsity}
        rows.append(plain | file | {"repair": "least_squares", "hits": hits})
        rows.append(plain | file | {"repair": "least_squares", "hits": 1, "scored": "held out"})
        rows += [{"measure": runtime, **file, "gain": gain} for runtime in ("web", "aarch64")]
    return rows


def test_every_point_is_where_its_row_says(tool):
    picture = ElementTree.fromstring(tool.draw(make_rows(), "MobileNetV2", "uniform"))
    titles = ["".join(circle.itertext()) for circle in picture.iter(f"{SVG}circle")]
    assert (
        sum(
            "single weights, refitted, 50 % zero: 1.36 times, top-1 75.0 %" in text.replace("\u00a0", " ")
            for text in titles
        )
        == 2
    )
    assert sum("blocks" in text for text in titles) == 1, "blocks are for ARM alone"
    circles = {"".join(circle.itertext()): circle for circle in picture.iter(f"{SVG}circle")}
    (fast,) = [circle for text, circle in circles.items() if "1.90 times" in text]
    (slow,) = [circle for text, circle in circles.items() if "single" in text and "1.36 times" in text]
    assert float(fast.get("cx")) > float(slow.get("cx")) and float(fast.get("cy")) > float(slow.get("cy"))


def test_int8_is_marked_where_its_cost_is_a_time(tool):
    words = [text.text for text in ElementTree.fromstring(tool.draw(make_rows(), "M", "uniform")).iter(f"{SVG}text")]
    assert words.count("int8") == 1
    assert words.count("dense") == 2


def test_it_stands_alone(tool):
    picture = ElementTree.fromstring(tool.draw(make_rows(), "MobileNetV2", "uniform"))
    style = picture.find(f"{SVG}style").text
    classes = {name for element in picture.iter() for name in element.get("class", "").split()}
    assert {name for name in classes if f".{name}" not in style} <= {"value", "label"}
    assert picture.get("aria-label").startswith("MobileNetV2: top-1 against speed")
