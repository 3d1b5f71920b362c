import numpy as np
import pytest

from reflow_tf.models.outputs import are_probabilities


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.9], [1.0, 0.0]], False),
        ([[-1.0, 2.0]], False),
        ([[1.0], [1.0]], False),
    ],
)
def test_what_looks_like_probabilities(outputs, expected):
    assert are_probabilities(np.array(outputs, np.float32)) is expected
