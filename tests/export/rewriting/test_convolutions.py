"""Padding as XNNPACK wants it is recognised, so that it is not written again."""

import pytest

from reflow_tf.export.rewriting import rewrite_exact


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_padding_is_written_once(draw, kernel):
    """The padding of a 1x1 kernel is none, and no PAD says so."""
    sketch = draw.Sketch(1, 17, 17, 3)
    content = sketch.classify(sketch.depthwise(sketch.stem(), kernel, 2, name="down"))
    once = rewrite_exact(content)
    assert [applied.operators for applied in once.applied] == [("stem", "down")]
    twice = rewrite_exact(once.content)
    assert twice.content is once.content and twice.applied == twice.refused == ()
