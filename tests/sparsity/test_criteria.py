import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given

from reflow_tf.sparsity.criteria import CRITERIA, magnitude


def test_magnitude_by_hand():
    np.testing.assert_array_equal(magnitude(np.array([[-3.0, 0.0], [2.0, -0.5]]), {}), [[3.0, 0.0], [2.0, 0.5]])


@pytest.mark.parametrize("name", list(CRITERIA))
@given(
    kernel=hnp.arrays(
        np.float32, (3, 2, 2, 4), elements=hnp.from_dtype(np.dtype("f4"), allow_nan=False, allow_infinity=False)
    )
)
def test_scores_have_the_kernels_shape_and_are_finite_and_not_negative(name, kernel):
    scores = CRITERIA[name](kernel, {})
    assert scores.shape == kernel.shape and scores.dtype == kernel.dtype
    assert np.isfinite(scores).all() and (scores >= 0).all()
