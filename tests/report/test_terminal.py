import io
import re

import pytest
from rich.console import Console

from reflow_tf.report.terminal import print_summary


def _printed(report, **options):
    file = io.StringIO()
    print_summary(report, Console(file=file, **options))
    return file.getvalue()


def test_fits_eighty_columns_without_control_characters(any_report):
    text = _printed(any_report, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "None" not in text
    assert "\u00a0" not in text  # so that grep '92.6 %' finds it


def test_shows_every_stage_with_its_numbers(make_report):
    text = _printed(make_report(), width=80)
    rows = {
        line.split()[0]: line.split() for line in text.splitlines() if re.match(r" (dense|pruned|repaired|file) ", line)
    }
    assert rows["dense"] == ["dense", "92.6", "%", "91.4\u201393.7", "%", "98.3", "%", "2,000", "10", "1"]
    assert rows["pruned"] == ["pruned", "11.3", "%", "10.0\u201312.8", "%", "42.3", "%", "2,000", "1.6", "0.0016"]
    assert rows["repaired"] == ["repaired", "91.0", "%", "89.7\u201392.2", "%", "97.3", "%", "2,000", "10", "0.80"]
    assert "8.87 MB dense → 2.96 MB; with gzip 2.55 MB" in text
    assert "The signal collapsed when the model was pruned, and came back." in text
    assert "18 kernels: xnnpack runs only 1x1 convolutions sparse" in text


def test_without_labels_there_is_agreement_and_no_top5(make_report):
    text = _printed(make_report(labelled=False), width=80)
    assert "ment" in text
    assert "top-5" not in text


def test_colours_only_on_a_terminal(make_report):
    assert "\x1b[" in _printed(
        make_report(), width=80, force_terminal=True, color_system="standard", legacy_windows=False
    )


def test_names_are_not_read_as_styles(make_report):
    report = make_report(name="[red]net[/]")
    report["notes"] = ["[bold]as it is[/bold] :warning:"]
    text = _printed(report, width=100)
    assert "[red]net[/]" in text
    assert "[bold]as it is[/bold] :warning:" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_of_another_encoding_is_no_error(make_report, encoding):
    report = make_report(name="モデル")
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_summary(report, Console(file=file, width=80))
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert "8.87 MB dense -> 2.96 MB" in text
    assert "3.1x10^-5" in text


def test_goes_to_standard_output_by_default(make_report, capsys):
    print_summary(make_report())
    captured = capsys.readouterr()
    assert "REFLOW brought mobilenet_v2 back" in captured.out
    assert not captured.err


def test_what_stands_in_the_way_is_printed_with_its_remedy(make_report):
    text = " ".join(_printed(make_report(eligible=False, timed=False), width=100).split())
    assert "target XNNPACK runs nothing sparse." in text
    assert "Conv1: padding (0,1,0,1); needs 1 on every side; --rewrite=exact does it" in text
    assert "speed LiteRT.js" not in text
    assert "speed LiteRT.js 2.5.3, 1 thread" in " ".join(_printed(make_report(), width=100).split())


def test_every_repair_is_printed_and_what_else_there_is(make_report):
    text = " ".join(_printed(make_report(repair="auto"), width=100).split())
    assert "repair auto says what it did. obs moved the weights of 34 kernels. Moving means" in text
    assert "--repair=auto" not in text
    assert "--allocation=auto --repair=auto" in _printed(make_report(collapsed_after=True), width=100)


@pytest.mark.parametrize("length", range(1, 40))
def test_a_number_and_its_unit_stay_on_one_line(make_report, length):
    text = _printed(make_report(name="n" * length), width=80)
    assert not re.search(r"^\s*%", text, re.MULTILINE)


@pytest.mark.parametrize("quantize", ["none", "int8", "float16"])
def test_the_widest_table_loses_nothing_at_eighty_columns(make_report, quantize):
    report = make_report()
    report["file"]["quantize"] = quantize
    for score in report["accuracy"].values():
        score |= {"top1": 1.0, "top1_interval": [0.987, 1.0], "top5": 1.0, "n": 50_000}
    table = _printed(report, width=80).partition(" signal ")[0]
    assert "…" not in table
    assert "variance at" in table and "last norm" in table


def test_no_column_for_a_top_5_that_nothing_has(make_report):
    assert "top-5" not in _printed(make_report(num_classes=3), width=80)
    assert "top-5" in _printed(make_report(), width=80)
