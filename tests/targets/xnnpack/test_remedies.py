"""What the remedies promise of --rewrite=exact is what it does."""

import pytest

from reflow_tf.explanation import explain
from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.targets.xnnpack import XNNPack
from reflow_tf.targets.xnnpack.remedies import EXACT


def test_no_promise_is_left_after_rewriting(files):
    promised = 0
    for name, case in files.items():
        explained = explain(case.dense)
        promised += any("--rewrite=exact" in blocker.remedy for blocker in explained.as_given.blockers)
        left = [blocker for blocker in explained.rewritten.blockers if "--rewrite=exact" in blocker.remedy]
        assert not left, (name, left, explained.refused)
    assert promised >= 8


@pytest.mark.parametrize(
    "name",
    ["stem SAME", "stem SAME, odd", "times a scalar", "squeeze, dropped", "padding read twice", "1x1 head, sparse"],
)
def test_a_file_that_lacks_nothing_but_rewriting_runs_sparse_after_it(files, name):
    before = XNNPack().judge(read_operators(files[name].content))
    after = XNNPack().judge(read_operators(store_sparse(rewrite_exact(files[name].dense).content)))
    assert not before.eligible
    assert {blocker.remedy for blocker in before.blockers} == {EXACT}
    assert after.eligible
    assert after.corrupted_by == ()
    assert after.blockers == ()
