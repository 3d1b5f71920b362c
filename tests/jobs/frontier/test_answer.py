"""Which file is recommended, by tables made by hand."""

import pytest

from reflow_tf.jobs.frontier.answer import Row, choose
from reflow_tf.jobs.frontier.devices import DEVICES

FLOAT = Row("plain float32", "plain", "float32", 1.0, 0.0)
INT8 = Row("plain int8", "plain", "int8", 0.5, 0.4)


def narrow(cost, drop, error=0.0):
    return Row("narrow", "narrow", "int8", cost, drop, error)


def sparse(cost, drop):
    return Row("sparse", "sparse", "float32", cost, drop)


@pytest.mark.parametrize(
    "rows, recommended",
    [
        ([FLOAT], "plain float32"),
        ([FLOAT, INT8], "plain int8"),
        ([FLOAT, INT8, narrow(0.4, 0.9)], "narrow"),
        ([FLOAT, INT8, narrow(0.4, 1.1)], "plain int8"),  # loses too much
        ([FLOAT, INT8, narrow(0.4, 0.9, error=0.1)], "plain int8"),  # and here perhaps
        ([FLOAT, INT8, narrow(0.495, 0.4)], "plain int8"),  # not worth it
        ([FLOAT, INT8, sparse(0.45, 0.5)], "sparse"),
        ([FLOAT, INT8, narrow(0.4, 0.5), sparse(0.395, 0.9)], "narrow"),  # as cheap, and loses less
        ([narrow(0.4, 0.5)], "narrow"),
        ([narrow(0.4, 5)], None),
    ],
)
def test_the_cheapest_that_hardly_loses_more_than_is_allowed(rows, recommended):
    assert choose(rows, 1.0, DEVICES["cortex_m4"]).recommended == recommended


def estimated(name, kind, number_format, counted, cycles, drop=0.0):
    return Row(name, kind, number_format, counted, drop, cycles=cycles)


DENSE = estimated("float32", "plain", "float32", 1.0, 1.0)


@pytest.mark.parametrize(
    "others, recommended",
    [
        # An old phone: int8 executes nearly as many instructions, and the estimate says that they are faster ones.
        ([estimated("int8", "plain", "int8", 0.95, 0.6)], "int8"),
        ([estimated("int8", "plain", "int8", 1.0, 0.6, drop=0.2)], "float32"),  # the count does not agree
        ([estimated("int8", "plain", "int8", 0.95, 0.76, drop=0.2)], "float32"),  # within the estimate's error
        # A tie within that error goes to what loses less.
        (
            [
                estimated("int8", "plain", "int8", 0.4, 0.45, drop=0.6),
                estimated("float16", "plain", "float16", 0.5, 0.5, drop=0.0),
            ],
            "float16",
        ),
        # Sparse kernels are other kernels, in the same number format, too; fewer channels are not.
        ([estimated("sparse", "sparse", "float32", 0.7, 0.76)], "float32"),
        ([estimated("sparse", "sparse", "float32", 0.7, 0.7)], "sparse"),
        ([estimated("narrow", "narrow", "float32", 0.8, 0.8)], "narrow"),
        (
            [
                estimated("int8", "plain", "int8", 0.5, 0.5, drop=0.1),
                estimated("narrow int8", "narrow", "int8", 0.4, 0.42, drop=0.5),
                estimated("sparse", "sparse", "float32", 0.3, 0.38, drop=0.6),
            ],
            "narrow int8",
        ),
    ],
)
def test_an_estimate_and_a_count_must_agree_beyond_its_error(others, recommended):
    assert choose([DENSE, *others], 1.0, DEVICES["phone"]).recommended == recommended


def test_no_file_beats_one_that_beats_it():
    rows = [estimated("a", "plain", "int8", 0.4, 0.9), estimated("b", "sparse", "float32", 0.9, 0.4)]
    assert not any(first.beats(second, DEVICES["phone"]) for first in rows for second in rows)


def test_what_is_timed_has_to_be_clearly_faster():
    rows = [FLOAT, INT8, narrow(0.47, 0.5)]
    assert choose(rows, 1.0, DEVICES["browser"]).recommended == "plain int8"
    assert choose(rows, 1.0, DEVICES["cortex_m4"]).recommended == "narrow"


def test_the_best_plain_conversion_and_the_best_at_its_cost():
    answer = choose([FLOAT, INT8, narrow(0.45, 0.2), sparse(0.3, 4)], 1.0, DEVICES["phone"])
    assert (answer.best_plain, answer.best_at_equal_cost) == ("plain int8", "narrow")


def test_the_frontier_is_what_nothing_dominates():
    rows = [FLOAT, INT8, narrow(0.5, 0.6), sparse(0.2, 9), Row("twin", "plain", "int8", 0.5, 0.4)]
    assert choose(rows, 1.0, DEVICES["phone"]).frontier == ("sparse", "plain int8", "twin", "plain float32")
