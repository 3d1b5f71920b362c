import pytest

from reflow_tf.report import wording


@pytest.mark.parametrize(
    ("fraction", "digits", "shown"),
    [
        (0.9256, 1, "92.6 %"),
        (1, 1, "100.0 %"),
        (0.0, 0, "0 %"),
        (0.9996, 0, "99.96 %"),  # not all: never 100 %
        (0.0004, 1, "0.04 %"),  # not nothing: never 0 %
        (None, 1, "\u2013"),
    ],
)
def test_percent(fraction, digits, shown):
    assert wording.percent(fraction, digits).replace("\u00a0", " ") == shown


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0, 2, "0"),
        (0.8, 2, "0.80"),
        (9.96, 2, "10"),
        (0.00317, 2, "0.0032"),
        (184.2, 2, "184"),
        (3.1e-6, 2, "3.1\u00d710⁻⁶"),
        (2e7, 1, "2\u00d710⁷"),
        (0.999, 2, "1.0"),
        (None, 2, "\u2013"),
    ],
)
def test_significant(value, digits, shown):
    assert wording.significant(value, digits) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (8_868_352, "8.87 MB"), (10**9, "1000 MB")]
)
def test_size(size_bytes, shown):
    assert wording.size(size_bytes).replace("\u00a0", " ") == shown


@pytest.mark.parametrize(
    ("drop", "shown"), [(-1.6, "\u22121.6 points"), (0.3, "+0.3 points"), (-0.01, "±0.0 points"), (0, "±0.0 points")]
)
def test_points(drop, shown):
    assert wording.points(drop).replace("\u00a0", " ") == shown


@pytest.mark.parametrize(("duration", "shown"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (75.2, "1 min 15 s")])
def test_seconds(duration, shown):
    assert wording.seconds(duration).replace("\u00a0", " ") == shown


@pytest.mark.parametrize(("number", "noun", "shown"), [(1, "kernel", "1 kernel"), (0, "kernel", "0 kernels")])
def test_plural(number, noun, shown):
    assert wording.plural(number, noun).replace("\u00a0", " ") == shown


def test_skips_are_grouped_by_reason_most_frequent_first():
    skipped = [{"path": path, "reason": reason} for path, reason in (("a", "x"), ("b", "y"), ("c", "y"))]
    assert wording.grouped_skips(skipped) == [("y", ["b", "c"]), ("x", ["a"])]


def test_a_megabyte_is_none_of_a_thousand_kilobytes():
    assert [wording.size(n).replace("\u00a0", " ") for n in (999_499, 999_500, 1_000_000)] == [
        "999 kB",
        "1.00 MB",
        "1.00 MB",
    ]


def test_points_that_are_shown_as_none_have_no_sign():
    assert wording.points(-0.04) == "±0.0\u00a0points" and wording.points(-0.04, 2) == "\u22120.04\u00a0points"
