import io
import time

import pytest
from rich.console import Console

from reflow_tf.report.progress import stage, track


def _terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False, _environ={"TERM": "xterm"})


def test_short_work_is_never_mentioned():
    for console in (_terminal(), Console(file=io.StringIO())):
        with track([1, 2, 3], "Counting", console=console) as tracked:
            assert list(tracked) == [1, 2, 3]
        assert console.file.getvalue() == ""


def test_terminal_shows_a_bar_that_stays():
    console = _terminal()
    with track([[0] * 4, [0] * 6], "Recalibrating", total=10, size=len, console=console, delay_s=0.05) as tracked:
        for _ in tracked:
            time.sleep(0.15)
    text = console.file.getvalue()
    assert "Recalibrating" in text
    assert "10 of 10" in text


def test_bar_appears_during_a_long_first_item(wait_until):
    console = _terminal()
    with track(range(2), "Tracing", console=console, delay_s=0.05) as tracked:
        for _ in tracked:
            wait_until(lambda: "Tracing" in console.file.getvalue())


def test_log_gets_one_plain_line_when_the_work_is_done():
    console = Console(file=io.StringIO())
    with track(range(3), "Recalibrating [x]", console=console, delay_s=0.0) as tracked:
        for _ in tracked:
            assert console.file.getvalue() == ""
    text = console.file.getvalue()
    assert text.startswith("Recalibrating [x]: ")
    assert text.count("\n") == 1
    assert "\x1b" not in text


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_display_ends_with_the_work_when_it_fails(error):
    console, log = _terminal(), Console(file=io.StringIO())
    for target in (console, log):
        with pytest.raises(error), stage("Exporting", console=target, delay_s=0.0):
            time.sleep(0.2)
            raise error
    shown = console.file.getvalue()
    assert "Exporting" in shown
    assert shown.rstrip("\n").endswith("\x1b[?25h")  # the cursor is back
    time.sleep(0.3)
    assert console.file.getvalue() == shown
    assert log.file.getvalue() == ""


def test_an_iterable_can_be_gone_through_again():
    with track([1, 2], "Twice", console=_terminal()) as tracked:
        assert len(tracked) == 2
        assert [list(tracked), list(tracked)] == [[1, 2], [1, 2]]


def test_goes_to_standard_error_by_default(capfd):
    with stage("Working", delay_s=0.0):
        pass
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Working: ")
