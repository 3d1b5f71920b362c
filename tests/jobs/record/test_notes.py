"""What notes say of the changes before pruning."""

import types

import numpy as np
import pytest

from reflow_tf.jobs.record.notes import _changes, doubt_inputs


@pytest.mark.parametrize(
    ("number", "streams", "kernels"),
    [(1, "of 1 linear stream of", "of 1 kernel are"), (2, "of 2 linear streams of", "of 2 kernels are")],
)
def test_one_is_spoken_of_as_one(number, streams, kernels):
    paths = ("path",) * number
    unmerged, turned, paired = _changes(types.SimpleNamespace(unmerged=paths, num_turned=number, paired=paths))
    assert unmerged.startswith(f"{number} batch norm{'s' * (number > 1)} had mean 0")
    assert streams in turned and kernels in paired


def make_run(confidence, num_right, labelled=True, number=100):
    """A dense model of such confidence, right in so many of a hundred in a hundred."""
    labels = np.zeros(200, np.int64)
    ranked = (np.arange(number) >= num_right).astype(np.int64)[:, None]
    signal = types.SimpleNamespace(ranked=ranked, confidence=confidence)
    evaluation = types.SimpleNamespace(labels=labels if labelled else None)
    given = types.SimpleNamespace(evaluation=evaluation, looked_into=np.arange(number) * 2, doubt=None)
    report = types.SimpleNamespace(signals={"dense": signal})
    return types.SimpleNamespace(given=given, result=types.SimpleNamespace(report=report))


def test_a_network_that_is_sure_and_wrong_sees_other_inputs_than_it_was_trained_on():
    said = "The dense model believes to be right with 78% and is with 11%: check whether --preprocess is "
    assert doubt_inputs(make_run(0.78, 11)).startswith(said)
    assert doubt_inputs(make_run(0.95, 70)) is None  # as overconfident as networks are
    assert doubt_inputs(make_run(0.2, 11)) is None  # of random weights
    assert doubt_inputs(make_run(0.78, 11, labelled=False)) is None
    assert doubt_inputs(make_run(0.78, 2, number=20)) is None
    unlabelled = make_run(0.78, 11, labelled=False)
    unlabelled.given.doubt = "Wrongly scaled."
    assert doubt_inputs(unlabelled) == "Wrongly scaled."
