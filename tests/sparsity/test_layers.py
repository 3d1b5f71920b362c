import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from reflow_tf.sparsity.layers import Kind, LayerSpec


@given(st.permutations(range(4)), st.integers(0, 2), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_canonical_layout_is_a_bijection(axes, num_inputs, shape):
    spec = LayerSpec("k", Kind.CONV, tuple(shape), (axes[0],), tuple(axes[1 : 1 + num_inputs]))
    kernel = np.arange(spec.num_weights).reshape(shape)
    canonical = spec.to_canonical(kernel)
    assert canonical.shape == spec.canonical_shape
    np.testing.assert_array_equal(spec.from_canonical(canonical), kernel)


def test_conv_kernel_becomes_ohwi():
    spec = LayerSpec("k", Kind.CONV, (3, 5, 2, 7), (3,), (2,))
    kernel = np.arange(3 * 5 * 2 * 7).reshape(3, 5, 2, 7)
    assert spec.to_canonical(kernel)[6, 1, 4, 0] == kernel[1, 4, 0, 6]


def test_depthwise_kernel_has_one_input_and_numbers_channel_before_multiplier():
    spec = LayerSpec("k", Kind.DEPTHWISE_CONV, (3, 3, 4, 2), (2, 3), ())
    kernel = np.arange(3 * 3 * 4 * 2).reshape(3, 3, 4, 2)
    assert spec.canonical_shape == (8, 3, 3, 1)
    assert spec.to_canonical(kernel)[3 * 2 + 1, 0, 2, 0] == kernel[0, 2, 3, 1]


@pytest.mark.parametrize("axes", [((3,), (3,)), ((4,), (2,)), ((-1,), (2,))])
def test_axes_that_overlap_or_do_not_exist_are_refused(axes):
    with pytest.raises(ValueError, match="k: output_axes and input_axes must be disjoint axes"):
        LayerSpec("k", Kind.CONV, (3, 3, 2, 2), *axes)
