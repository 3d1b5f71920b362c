import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.export.verification import _compare, _Edge, _match, check_masks

SPARSITY = 0.8


def prune(layer, to_canonical, attribute="kernel"):
    variable = getattr(layer, attribute)
    mask = np.random.default_rng(4).random(variable.shape) >= SPARSITY
    variable.assign(variable * mask)
    return mask.transpose(to_canonical)


# layer, the axes that bring its kernel to (output, *spatial, input), input shape
KINDS = {
    "conv": (lambda: layers.Conv2D(24, 3), (3, 0, 1, 2), (8, 8, 10)),
    "grouped": (lambda: layers.Conv2D(24, 3, groups=2), (3, 0, 1, 2), (8, 8, 10)),
    "dilated": (lambda: layers.Conv2D(24, 3, dilation_rate=2), (3, 0, 1, 2), (8, 8, 10)),
    "transposed": (lambda: layers.Conv2DTranspose(24, 3), (2, 0, 1, 3), (8, 8, 10)),
    "conv1d": (lambda: layers.Conv1D(24, 3), (2, 0, 1), (9, 10)),
    "conv1d_transposed": (lambda: layers.Conv1DTranspose(24, 3), (1, 0, 2), (9, 10)),
    "conv3d": (lambda: layers.Conv3D(12, 3), (4, 0, 1, 2, 3), (5, 5, 5, 6)),
    "conv3d_transposed": (lambda: layers.Conv3DTranspose(12, 3), (3, 0, 1, 2, 4), (5, 5, 5, 6)),
    "dense": (lambda: layers.Dense(30), (1, 0), (40,)),
    "dense_over_steps": (lambda: layers.Dense(30), (1, 0), (7, 40)),
    "square_dense": (lambda: layers.Dense(40), (1, 0), (40,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_found_in_the_files_layout(kind):
    make, axes, shape = KINDS[kind]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input(shape), make()])
    mask = prune(model.layers[0], axes)
    content = export_tflite(model).content
    (check,) = check_masks(content, {"layer/kernel": mask})
    assert check.ok
    assert (check.num_masked, check.num_extra_zeros, check.storage) == (np.count_nonzero(~mask), 0, "sparse")
    moved = np.roll(mask, 1, axis=0)
    (check,) = check_masks(content, {"layer/kernel": moved})
    assert not check.ok
    assert check.tensor is None
    assert "not zero" in check.closest


@pytest.mark.parametrize("rank", [1, 2])
def test_depthwise_and_separable_halves(rank):
    keras.utils.set_random_seed(0)
    layer = layers.SeparableConv1D(32, 5) if rank == 1 else layers.SeparableConv2D(32, 5, depth_multiplier=2)
    model = keras.Sequential([layers.Input((9,) * rank + (16,)), layer])
    depthwise = prune(layer, (*range(rank), rank, rank + 1), "depthwise_kernel")  # (*spatial, input, multiplier)
    pointwise = prune(layer, (rank + 1, *range(rank), rank), "pointwise_kernel")
    flat = depthwise.reshape(*depthwise.shape[:rank], -1)
    masks = {"s/depthwise_kernel": np.moveaxis(flat, -1, 0)[..., np.newaxis], "s/pointwise_kernel": pointwise}
    checks = check_masks(export_tflite(model).content, masks)
    assert [check.ok for check in checks] == [True, True]
    assert checks[0].tensor != checks[1].tensor


@pytest.fixture(scope="module")
def twins():
    """Four 1x1 convs of one shape with different zeros, a batch norm with dead channels after each."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((4, 4, 24))])
    rng = np.random.default_rng(0)
    masks = {}
    for index, sparsity in enumerate((0.0, 0.5, 0.8, 0.8)):
        conv = layers.Conv2D(24, 1, use_bias=False, name=f"twin_{index}")
        model.add(conv)
        model.add(layers.BatchNormalization())
        mask = rng.random(conv.kernel.shape) >= sparsity
        conv.kernel.assign(conv.kernel * mask)
        gamma = rng.choice([-1.0, 1.0], 24)
        gamma[index] = 0
        model.layers[-1].gamma.assign(gamma)
        masks[f"twin_{index}/kernel"] = mask.transpose(3, 0, 1, 2)
    return export_tflite(model).content, masks


def test_kernels_of_one_shape_are_told_apart(twins):
    content, masks = twins
    checks = check_masks(content, masks)
    assert all(check.ok for check in checks)
    assert len({check.tensor for check in checks}) == 4
    for index, (check, mask) in enumerate(zip(checks, masks.values(), strict=True)):
        assert check.num_extra_zeros == np.count_nonzero(mask[index])  # exactly the channel with a zero gamma


@pytest.mark.parametrize("order", [("full", "half"), ("half", "full")])
def test_the_tensor_with_the_fewest_unexplained_zeros_comes_first(order):
    flags = {"full": np.ones((4, 6), bool), "half": np.arange(24).reshape(4, 6) % 2 == 0}
    edges = _compare("layer/kernel", np.ones((4, 6), bool), {name: flags[name] for name in order}).edges
    assert [(edge.tensor, edge.num_extra_zeros) for edge in edges] == [("full", 0), ("half", 12)]


def test_masks_swapped_by_mistake_are_noticed(twins):
    content, masks = twins
    wrong = dict(masks)
    wrong["twin_3/kernel"] = masks["twin_2/kernel"]
    checks = {check.path: check for check in check_masks(content, wrong)}
    # Two equal masks now compete for the one tensor that fits them, and nobody claims twin_3's.
    assert checks["twin_0/kernel"].ok
    assert checks["twin_1/kernel"].ok
    assert checks["twin_2/kernel"].ok != checks["twin_3/kernel"].ok


def test_one_weight_that_survived_is_noticed(twins):
    content, masks = twins
    stricter = masks["twin_1/kernel"].copy()
    row = np.argwhere(stricter[:, 0, 0])
    output, inputs = next((o, i) for o, i in row if o != 1)  # channel 1 has a zero gamma: nothing survives there
    stricter[output, 0, 0, inputs] = False
    checks = {check.path: check for check in check_masks(content, {**masks, "twin_1/kernel": stricter})}
    assert not checks["twin_1/kernel"].ok
    assert "1 masked weights are not zero" in checks["twin_1/kernel"].closest


def test_a_shape_that_is_nowhere(twins):
    (check,) = check_masks(twins[0], {"a/kernel": np.ones((3, 3), bool)})
    assert (check.ok, check.tensor, check.storage) == (False, None, None)
    assert "(3, 3)" in check.closest


def test_empty_kernels_may_share_a_tensor():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((4, 4, 24)), layers.Conv2D(24, 1), layers.ReLU(), layers.Conv2D(24, 1)])
    for index in (0, 2):
        model.layers[index].kernel.assign(np.zeros((1, 1, 24, 24)))
    masks = {f"{model.layers[index].name}/kernel": np.zeros((24, 1, 1, 24), bool) for index in (0, 2)}
    assert all(check.ok for check in check_masks(export_tflite(model).content, masks))


def test_masks_must_be_boolean(twins):
    with pytest.raises(InputError, match="float32"):
        check_masks(twins[0], {"a/kernel": np.ones((24, 1, 1, 24), np.float32)})


def test_matching_serves_as_many_masks_as_possible():
    edges = {
        "keeps_all": [_Edge(1, False, "sparse"), _Edge(2, False, "dense")],  # fits both, and prefers the wrong one
        "half": [_Edge(3, False, "sparse")],
    }
    matched = _match(edges)
    assert {path: edge.tensor for path, edge in matched.items()} == {"keeps_all": "dense", "half": "sparse"}


def test_matching_prefers_names_and_then_exact_fits():
    edges = {
        "a": [_Edge(5, False, "three"), _Edge(0, True, "one"), _Edge(0, True, "two")],
        "b": [_Edge(0, False, "one")],
        "c": [_Edge(3, True, "four"), _Edge(0, True, "two")],
    }
    assert {path: edge.tensor for path, edge in _match(edges).items()} == {"a": "three", "b": "one", "c": "two"}


def test_a_mask_that_keeps_all_finds_its_own_tensor_though_rounding_made_zeros_there():
    keras.utils.set_random_seed(0)
    names = ["block1", "block11", "block2"]
    model = keras.Sequential([layers.Input((4, 4, 24)), *(layers.Conv2D(24, 1, name=name) for name in names)])
    model.layers[0].kernel.assign(np.where(np.arange(24) < 3, 0.0, np.array(model.layers[0].kernel)))
    masks = {f"{name}/kernel": np.ones((24, 1, 1, 24), bool) for name in names}
    checks = check_masks(export_tflite(model).content, masks)
    assert [check.tensor.split("/")[1] for check in checks] == [f"{name}_1" for name in names]
    assert [check.num_extra_zeros for check in checks] == [72, 0, 0]
