"""The words for what was counted, wherever a report speaks of it."""

import io

import pytest
from rich.console import Console

from reflow_tf.report import nouns, page, story, terminal


def _texts(report):
    console = Console(file=io.StringIO(), width=100)
    terminal.print_summary(report, console)
    return page.render(report), console.file.getvalue()


@pytest.mark.parametrize("labelled", [True, False])
def test_maps_are_counted_by_image_and_spoken_of_by_position(make_report, labelled):
    report = make_report(labelled=labelled, positions=256, collapsed_before=False)
    html, _ = _texts(report)
    assert nouns.prediction(report) == "position"
    assert "over the positions of 2,000\u00a0images, in the mean" in story.share_sentence(report)
    assert "95 % interval of the mean over images, by Student's t" in story.share_sentence(report)
    assert "Wilson" not in html
    assert "name the same class on all positions of 2,000\u00a0images" in story.proof_sentence(report)
    assert story.predictions_sentence(report).startswith("Share of the positions")
    if not labelled:
        assert "of the positions" in story.headline(report)


def test_one_prediction_an_image_has_wilson_intervals(make_report):
    report = make_report()
    assert "Top-1 accuracy on 2,000\u00a0images. Whiskers: 95 % Wilson interval." in story.share_sentence(report)


@pytest.mark.parametrize("labelled", [True, False])
def test_without_an_interval_none_is_shown(make_report, labelled):
    report = make_report(labelled=labelled, positions=256)
    for score in (report["accuracy"] or report["agreement"]).values():
        score["top1_interval"] = None
    html, summary = _texts(report)
    assert "Whiskers" not in html and 'class="whisker"' not in html
    assert "None" not in html and "None" not in summary


def test_samples_that_are_no_images_are_not_called_so(make_report):
    report = make_report(unit="sample", mcu=None)
    html, summary = _texts(report)
    assert "2,000\u00a0held-out samples" in html and "samples" in summary
    told = html.partition("<section")[0] + summary
    assert " image" not in told.replace("1,000 images", "")  # what the repair said of itself


def test_intervals_say_what_they_are():
    assert nouns.interval("image", 1) == "95 % Wilson interval"
    assert "Student" in nouns.interval("image", 9) and "ratio" in nouns.interval("sample", 1, is_ratio=True)
