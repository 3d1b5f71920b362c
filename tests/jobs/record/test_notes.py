"""What notes say of the changes before pruning."""

import types

import pytest

from reflow_tf.jobs.record.notes import _changes


@pytest.mark.parametrize(
    ("number", "streams", "kernels"),
    [(1, "of 1 linear stream of", "of 1 kernel are"), (2, "of 2 linear streams of", "of 2 kernels are")],
)
def test_one_is_spoken_of_as_one(number, streams, kernels):
    turned, paired = _changes(types.SimpleNamespace(num_turned=number, paired=("path",) * number))
    assert streams in turned and kernels in paired
