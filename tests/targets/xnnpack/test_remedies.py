"""What the remedies promise of --rewrite=exact is what it does."""

import pytest

from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.jobs.explanation import explain
from reflow_tf.targets.xnnpack import XNNPack
from reflow_tf.targets.xnnpack.remedies import EXACT

# What a remedy alone would promise, and the reason why it does not hold there.
REFUSED = {
    "stem SAME, max pool": "poolings have no explicit padding",
    "stem SAME, depth to space": "no mirror image of DEPTH_TO_SPACE is known",
}


def promises(blockers):
    return [blocker for blocker in blockers if "--rewrite=exact" in blocker.remedy]


def test_whatever_is_promised_is_done_or_refused_with_a_reason(files):
    promised, broken = 0, set()
    for name, case in files.items():
        rewritten = rewrite_exact(case.dense)
        made = promises(XNNPack().judge(read_operators(case.dense)).blockers)
        left = promises(XNNPack().judge(read_operators(rewritten.content)).blockers)
        promised += bool(made)
        if left:
            assert rewritten.refused, name
            broken.add(name)
    assert promised >= 8
    assert broken == set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_promise_that_does_not_hold_is_withdrawn(files, name):
    explained = explain(files[name].dense)
    assert not explained.applied
    for verdict in (explained.as_given, explained.rewritten):
        for blockers in (verdict.blockers, [each for cluster in verdict.clusters for each in cluster.blockers]):
            (blocker,) = promises(blockers)
            assert blocker.reason == "padding (0,1,0,1); needs 1 on every side"
            assert blocker.remedy.startswith("--rewrite=exact cannot do it here: ")
            assert REFUSED[name] in blocker.remedy


def test_a_promise_that_holds_stays(files):
    explained = explain(files["stem SAME"].dense)
    assert [blocker.remedy for blocker in explained.as_given.blockers] == [EXACT]
    assert promises(explained.rewritten.blockers) == []


@pytest.mark.parametrize(
    "name", ["stem with stride 1, SAME behind", "stem of 1 channel, SAME", "no stem, times a scalar"]
)
def test_nothing_is_promised_where_no_cluster_can_begin(files, name):
    blockers = XNNPack().judge(read_operators(files[name].content)).blockers
    assert blockers
    assert promises(blockers) == []


@pytest.mark.parametrize(
    "name",
    [
        "stem SAME",
        "stem SAME, odd",
        "times a scalar",
        "squeeze, dropped",
        "padding read twice",
        "1x1 head, sparse",
        "average pool",
    ],
)
def test_a_file_that_lacks_nothing_but_rewriting_runs_sparse_after_it(files, name):
    before = XNNPack().judge(read_operators(files[name].content))
    after = XNNPack().judge(read_operators(store_sparse(rewrite_exact(files[name].dense).content)))
    assert not before.eligible
    assert {blocker.remedy for blocker in before.blockers} == {EXACT}
    assert after.eligible
    assert after.corrupted_by == ()
    assert after.blockers == ()
