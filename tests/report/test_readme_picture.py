"""tools/draw_readme_picture.py: the charts of the page as one file that stands alone."""

from xml.etree import ElementTree

import pytest

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("draw_readme_picture")


def test_it_stands_alone(tool, make_report):
    picture = ElementTree.fromstring(tool.draw(make_report()))
    assert picture.tag == f"{SVG}svg"
    assert len(picture.findall(f"{SVG}svg")) == 2
    classes = {name for element in picture.iter() for name in element.get("class", "").split()}
    style = picture.find(f"{SVG}style").text
    assert {name for name in classes if f".{name}" not in style} <= {"value", "label"}
    variables = {name.partition(")")[0] for name in style.split("var(")[1:]}
    assert all(style.count(f"{name}:") == 2 for name in variables), "a colour for light, and one for dark"
    assert "url(" not in style and "width: 100%" not in style


def test_it_says_what_it_shows(tool, make_report):
    picture = ElementTree.fromstring(tool.draw(make_report()))
    report = make_report()
    words = "".join(picture.itertext())
    assert report["model"]["name"] in words
    assert all(f"{100 * report['accuracy'][stage]['top1']:.1f}" in words for stage in ("dense", "pruned", "repaired"))
    assert picture.get("aria-label")
