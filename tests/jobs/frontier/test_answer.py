"""Which file is recommended, by tables made by hand."""

import dataclasses

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
    "rows, margin, recommended",
    [
        ([FLOAT], 1.0, "plain float32"),
        ([FLOAT, INT8], 1.0, "plain int8"),
        ([FLOAT, INT8, narrow(0.4, 0.9)], 1.0, "narrow"),
        ([FLOAT, INT8, narrow(0.4, 1.1)], 1.0, "plain int8"),  # loses too much
        ([FLOAT, INT8, narrow(0.4, 0.9, error=0.1)], 1.0, "plain int8"),  # and here perhaps
        ([FLOAT, INT8, narrow(0.495, 0.4)], 1.0, "plain int8"),  # not worth it
        ([FLOAT, INT8, sparse(0.45, 0.5)], 1.0, "sparse"),
        ([FLOAT, INT8, sparse(0.45, 0.5)], 1.25, "plain int8"),  # other instructions: within their error
        ([FLOAT, INT8, sparse(0.39, 0.5)], 1.25, "sparse"),
        ([FLOAT, INT8, sparse(0.42, 0.5), narrow(0.45, 0.5)], 1.25, "narrow"),  # like with like
        ([narrow(0.4, 0.5)], 1.0, "narrow"),
        ([narrow(0.4, 5)], 1.0, None),
    ],
)
def test_the_cheapest_that_hardly_loses_more_than_is_allowed(rows, margin, recommended):
    device = dataclasses.replace(DEVICES["phone"], margin=margin)
    assert choose(rows, 1.0, device).recommended == recommended


def test_what_is_timed_has_to_be_clearly_faster():
    rows = [FLOAT, INT8, narrow(0.47, 0.5)]
    assert choose(rows, 1.0, DEVICES["browser"]).recommended == "plain int8"
    assert choose(rows, 1.0, DEVICES["phone"]).recommended == "narrow"


def test_the_best_plain_conversion_and_the_best_at_its_cost():
    answer = choose([FLOAT, INT8, narrow(0.45, 0.2), sparse(0.3, 4)], 1.0, DEVICES["phone"])
    assert (answer.best_plain, answer.best_at_equal_cost) == ("plain int8", "narrow")


def test_the_frontier_is_what_nothing_dominates():
    rows = [FLOAT, INT8, narrow(0.5, 0.6), sparse(0.2, 9), Row("twin", "plain", "int8", 0.5, 0.4)]
    assert choose(rows, 1.0, DEVICES["phone"]).frontier == ("sparse", "plain int8", "twin", "plain float32")
