import re
from html.parser import HTMLParser

import pytest

from reflow_tf.report import limits, page

from .sample import NARROWING

VOID = {"meta", "br", "hr", "img", "input", "link"}
SECTIONS = {"accuracy", "signal", "predictions", "sparsity", "bytes", "speed", "proof", "skipped", "notes", "run"}


class Reader(HTMLParser):
    """Fails on a tag that is closed in the wrong place; remembers elements, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).replace("\u00a0", " ").split())


def test_every_kind_of_run_gives_a_well_formed_page(any_report):
    html = page.render(any_report)
    reader = Reader(html)
    assert html.startswith("<!doctype html>")
    ids = {attributes["id"] for tag, attributes in reader.attributes if tag == "section"}
    left_out = set() if any_report["signal"]["predictions"] else {"predictions"}
    assert ids == SECTIONS - left_out | ({"device"} if any_report["mcu"] else set())
    assert len(html.encode()) < 600_000
    for unformatted in ("None", "nan%", "inf", "Undefined", "Markup("):
        assert unformatted not in html.replace("info", ""), unformatted


def test_needs_nothing_from_elsewhere(any_report):
    html = page.render(any_report)
    reader = Reader(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert not [pair for pair in reader.attributes if {"src", "href", "srcset", "data"} & set(pair[1])]
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_names_never_become_markup(make_report):
    evil = "<script>alert('x')</script>\"&"
    report = make_report(name=evil, prefix=evil)
    for skip in report["skipped"]:
        skip["reason"] = evil
    for tensor in report["file"]["tensors"]:
        tensor["name"] = tensor["storage"] = evil
    report["notes"], report["command"] = [evil], [evil]
    report["config"] = {evil: {evil: evil}}
    report["repair"]["name"] = evil
    report["repair"]["steps"][0] |= {"name": evil, "statement": evil}
    target = report["target"]
    target |= dict.fromkeys(("name", "description", "statement"), evil) | {"version_notes": [evil]}
    target["blockers"] = [dict.fromkeys(("operator", "kind", "reason", "remedy"), evil)]
    target["clusters"][0] |= {"first": evil, "last": evil}
    target["rewrites"][0]["statement"] = evil
    target["refused"] = [{"rewrite": evil, "operator": evil, "reason": evil}]
    report["latency"]["web"]["runtime"] = report["instructions"]["aarch64"]["runtime"] = evil
    report["seconds"] = {evil: 1.0}
    html = page.render(report)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "script" not in Reader(html).tags


def test_shows_the_numbers_of_the_report(make_report):
    text = Reader(page.render(make_report())).text
    for expected in (
        "92.6 %",
        "11.3 %",
        "91.0 %",
        "89.7\u201392.2 %",
        "2.96 MB",
        "8.87 MB",
        "34 kernels",
        "resolved.seed",
    ):
        assert expected in text, expected
    assert "The signal collapsed when the model was pruned, and came back." in text
    assert "block_16_project_BN" in text
    assert "xnnpack runs only 1x1 convolutions sparse" in text


def test_every_picture_has_words(any_report):
    pictures = [attributes for tag, attributes in Reader(page.render(any_report)).attributes if tag == "svg"]
    assert pictures
    for picture in pictures:
        assert picture["role"] == "img"
        assert len(picture["aria-label"]) > 30


def _pictures(html, section):
    body = re.search(rf'<section id="{section}">.*?</section>', html, re.DOTALL)[0]
    return re.findall(r"<svg.*?</svg>", body, re.DOTALL)


def test_pictures_come_for_a_wide_page_and_for_a_phone(make_report):
    html = page.render(make_report())
    for section in ("accuracy", "signal", "predictions", "sparsity"):
        assert [re.search(r'class="(\w+)"', picture)[1] for picture in _pictures(html, section)] == ["wide", "narrow"]


@pytest.mark.parametrize(("labelled", "stages"), [(True, 4), (False, 3)])
def test_accuracy_has_a_column_and_an_interval_a_stage(make_report, labelled, stages):
    picture = _pictures(page.render(make_report(labelled=labelled)), "accuracy")[0]
    assert picture.count("<rect") == stages
    assert picture.count('class="whisker"') == 3 * stages


def test_depth_has_a_point_a_batch_norm(make_report):
    report = make_report()
    report["signal"]["layers"][3]["pruned"]["ratio"] = None
    report["signal"]["layers"][7]["repaired"]["ratio"] = 0.0
    picture = _pictures(page.render(report), "signal")[0]
    assert picture.count("<rect") == 51
    assert picture.count("<circle") == 52
    pruned = re.search(r'<path d="([^"]*)" class="curve stroke-pruned"', picture)[1]
    assert pruned.count("M") == 2  # a gap where the ratio is not known


def test_depth_stays_inside_its_frame_for_extreme_ratios(make_report):
    report = make_report(num_kernels=3)
    for layer, ratio in zip(report["signal"]["layers"], (1e6, 1e-12, 0.0), strict=True):
        layer["pruned"]["ratio"] = ratio
    picture = _pictures(page.render(report), "signal")[0]
    heights = [float(y) for y in re.findall(r'<rect x="[^"]*" y="([^"]*)"', picture)]
    assert len(heights) == 3
    assert all(0 <= y <= 290 for y in heights)


def test_models_without_batch_norms_have_no_depth_picture(make_report):
    html = page.render(make_report(batch_norms=False))
    assert not _pictures(html, "signal")
    assert "The model has no batch normalization" in Reader(html).text


def test_few_classes_are_drawn_one_by_one(make_report):
    picture = _pictures(page.render(make_report(num_classes=10)), "predictions")[0]
    assert picture.count("<rect") == 30


def test_many_classes_are_drawn_by_share_with_the_rest_as_one(make_report):
    picture = _pictures(page.render(make_report(num_classes=1000)), "predictions")[0]
    assert picture.count("<rect") <= 3 * 25
    assert "class 333: 87" in picture
    assert "other classes" in picture


def test_sparsity_is_drawn_for_every_kernel(make_report):
    report = make_report()
    picture = _pictures(page.render(report), "sparsity")[0]
    assert picture.count("<rect") == 3 * len(report["sparsity"]["layers"])


def test_bytes_add_up_to_the_file(any_report):
    rows = page.size_rows(any_report)
    assert len(rows) <= 16
    assert sum(row.size_bytes for row in rows) == any_report["size_bytes"]["file"]
    assert sum(row.dense_size_bytes for row in rows) == any_report["size_bytes"]["dense_file"]


def test_a_mask_that_is_not_in_the_file_is_shown_at_once(make_report):
    report = make_report()
    proof = r'<section id="proof">.*?<details class="long"( open)?>'
    assert re.search(proof, page.render(report), re.DOTALL)[1] is None
    report["masks_in_file"][0] |= {"ok": False, "tensor": None, "storage": None}
    html = page.render(report)
    assert re.search(proof, html, re.DOTALL)[1]
    assert "33 of 34 masks found again" in Reader(html).text


def test_gate_is_shown_when_there_is_one(make_report):
    assert "The accuracy gate was passed" in page.render(make_report(max_accuracy_drop=2.0))
    assert "The accuracy gate was missed" in page.render(make_report(max_accuracy_drop=1.0))
    assert "accuracy gate" not in page.render(make_report(max_accuracy_drop=None))


def test_a_budget_is_shown_when_there_is_one(make_report):
    budget = {
        "name": "max_size_bytes",
        "value": 4_000_000,
        "estimate": 3_990_000,
        "measured": 3_989_000,
        "passed": True,
    }
    html = page.render(make_report(budget=budget))
    assert (
        '<p class="gate"><span class="nowrap">--max_size_bytes=4000000</span> was kept' in html
        and "the sparsity asked for" not in html
    )
    assert len(_pictures(html, "sparsity")) == 2
    missed = page.render(make_report(budget=budget | {"value": 400, "passed": False}))
    assert '<p class="gate missed"><span class="nowrap">--max_size_bytes=400</span> was missed' in missed
    assert "--max_size_bytes" not in (plain := page.render(make_report())) and "the sparsity asked for" in plain


def test_is_deterministic(make_report):
    assert page.render(make_report()) == page.render(make_report())


def test_rejects_a_wrong_report(make_report):
    report = make_report()
    del report["parity"]
    with pytest.raises(ValueError, match="parity"):
        page.render(report)


def test_speed_is_shown_where_it_was_measured_and_asked_for_where_not(make_report):
    text = Reader(page.render(make_report())).text
    assert "LiteRT.js 2.5.3, 1 thread, 50 pairs of runs16.6 ms6.70 ms2.482.42 to 2.53" in text  # cells without spaces
    assert "--benchmark=web" not in text
    text = Reader(page.render(make_report(eligible=False, timed=False))).text
    assert "--benchmark=web times the file" in text
    assert "padding (0,1,0,1)" in text


def test_every_repair_is_told_and_what_else_there_is(make_report):
    html = page.render(make_report(repair="auto"))
    assert html.index("auto says what it did.") < html.index("obs moved the weights of 34 kernels.")
    assert "--repair=auto" in page.render(make_report(collapsed_after=True)) and "--repair=auto" not in html


def test_a_stage_has_one_distance_from_dense_on_the_whole_page(make_report):
    """That on the same images; dense may have been scored on more."""
    report = make_report()
    report["accuracy"]["file"]["drop_points"] = 17.4
    html = page.render(report)
    assert html.count(">\u221217.4\u00a0points<") == 1  # the wide picture
    assert html.count(">\u221217.4\u00a0pt<") == 1  # the narrow one


def test_neither_a_flag_nor_top_1_is_broken_over_lines(make_report):
    report = make_report()
    report["accuracy"]["repaired"] |= {"top1": 0.5, "drop_points": 42.6}
    html = page.render(report)
    assert '<span class="nowrap">--repair=auto</span>' in html
    assert '<span class="nowrap">top-1</span>' in html.partition("</h1>")[0]
    report = make_report(name="<b>top-1")
    assert "<b>" not in page.render(report).partition("<h1>")[2].partition("</h1>")[0]


def test_no_column_for_a_top_5_that_nothing_has(make_report):
    assert '<th scope="col" class="number">top-5</th>' not in page.render(make_report(num_classes=3))
    assert '<th scope="col" class="number">top-5</th>' in page.render(make_report())


def test_channels_that_were_removed_take_the_place_of_zeros(make_report):
    report = make_report()
    report["narrowing"] = NARROWING
    assert _sections(report) == SECTIONS | {"channels"}
    report["sparsity"]["layers"] = []
    assert _sections(report) == SECTIONS - {"sparsity"} | {"channels"}
    reader = Reader(page.render(report))
    assert "Multiply-adds left70.0 %" in reader.text
    assert "a/kernelb/kernel3224" in reader.text and "stays: is an output of the network" in reader.text


def _sections(report):
    reader = Reader(page.render(report))
    return {attributes["id"] for tag, attributes in reader.attributes if tag == "section"}


@pytest.mark.parametrize(
    "limit, drop, words",
    [
        (10.5, 10.4, "passed: the file is at \u221210.4 points against dense, a drop of 10.5 is allowed"),
        (2.75, 2.78, "missed: the file is at \u22122.8 points against dense, a drop of 2.75 is allowed"),
        (2.75, 2.751, "missed: the file is at \u22122.8 points against dense, a drop of 2.75 is allowed"),
        (2, 2.03, "missed: the file is at \u22122.03 points against dense, a drop of 2 is allowed"),
        (1.25, 1.249, "passed: the file is at \u22121.2 points against dense, a drop of 1.25 is allowed"),
        (1, 0.99, "passed: the file is at \u22120.99 points against dense, a drop of 1 is allowed"),
        (1, -0.5, "passed: the file is at +0.5 points against dense, a drop of 1 is allowed"),
    ],
)
def test_the_gate_says_what_is_allowed_and_on_which_side_of_it_the_file_is(limit, drop, words):
    gate = {"passed": drop <= limit, "max_accuracy_drop": limit, "drop_points": drop}
    assert words in limits.gate_sentence({"gate": gate}).replace("\u00a0", " ")
