import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import write_masks
from reflow_tf.repair.contract import PrunedModel, read_weights, show_nothing
from reflow_tf.repair.head import find_head, refit_head
from reflow_tf.sparsity.reconstruction import RIDGE, SHRINKAGE

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(200, 12)).astype(np.float32)
BATCHES = [VECTORS[:90], VECTORS[90:]]


def build(*, classes=4, activation="softmax", use_bias=True, seed=0):
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(16, activation="relu", name="hidden")
    head = layers.Dense(classes, activation, use_bias=use_bias, name="head", bias_initializer="normal")
    return keras.Sequential([keras.Input((12,)), hidden, head])


def prune(model, sparsity=0.6, layer_names=("hidden",)):
    kernels, dense = find_kernels(model), read_weights(model)
    scores = {path: np.abs(kernel) for path, kernel in kernels.read().items()}
    masks = {
        path: score >= np.quantile(score, sparsity)
        for path, score in scores.items()
        if path.split("/")[-2] in layer_names
    }
    write_masks(kernels, masks)
    return PrunedModel(model, masks, dense)


def features(model, inputs=VECTORS):
    return np.maximum(inputs @ np.array(model.layers[0].kernel) + np.array(model.layers[0].bias), 0).astype(np.float64)


def logits(model, inputs=VECTORS):
    head = model.layers[-1]
    return features(model, inputs) @ np.array(head.kernel) + (0 if head.bias is None else np.array(head.bias))


@pytest.mark.parametrize("use_bias", [True, False])
def test_it_is_the_ridge_regression_towards_the_dense_head(use_bias):
    model = build(use_bias=use_bias)
    target, before = logits(model), np.array(model.layers[-1].kernel, np.float64)
    pruned = prune(model)
    outcome = refit_head(pruned, BATCHES, show_nothing)
    x = features(model)
    centred, wanted = x - x.mean(0), target - target.mean(0)
    gram, cross = centred.T @ centred / len(x), centred.T @ wanted / len(x)
    pull = np.diag(SHRINKAGE * np.diag(gram) + RIDGE * np.diag(gram).mean())
    expected = np.linalg.solve((1 - SHRINKAGE) * gram + pull, (1 - SHRINKAGE) * cross + pull @ before)
    np.testing.assert_allclose(model.layers[-1].kernel, expected, rtol=1e-3, atol=1e-4)
    if use_bias:
        np.testing.assert_allclose(logits(model).mean(0), target.mean(0), atol=1e-4)
    assert (outcome.repaired, outcome.moved) == (("head/kernel",), ("kernel", "bias"))
    missed = np.sum((centred @ expected - wanted) ** 2) / np.sum(wanted**2)
    assert f"{missed:.1%} of their variance is lost" in outcome.statement


def test_a_network_that_lost_nothing_keeps_its_head():
    model = build()
    before = read_weights(model)
    refit_head(PrunedModel(model, {}, before), BATCHES, show_nothing)
    for value, old in zip(read_weights(model), before, strict=True):
        np.testing.assert_allclose(value, old, atol=1e-5)


def test_images_are_joined_by_views_and_the_prediction_comes_nearer():
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(24, 3, activation="relu", name="hidden")(image))
    model = keras.Model(image, layers.Dense(5, name="head")(x))
    images, others = np.split(np.random.default_rng(0).normal(1, 1, (96, 8, 8, 3)).astype(np.float32), [64])
    dense = np.array(model(others))
    pruned = prune(model, 0.8)
    lost = np.square(np.array(model(others)) - dense).mean()
    refit_head(pruned, [images], show_nothing)
    assert np.square(np.array(model(others)) - dense).mean() < 0.3 * lost
    kernels = find_kernels(model).read()
    assert all(not kernels[path][~mask].any() for path, mask in pruned.masks.items())


def test_zeros_of_a_pruned_head_stay_and_its_kept_weights_move():
    model = build()
    pruned = prune(model, 0.5, ("hidden", "head"))
    before = np.array(model.layers[-1].kernel)
    refit_head(pruned, BATCHES, show_nothing)
    after = np.array(model.layers[-1].kernel)
    assert np.array_equal(after == 0, before == 0) and np.abs(after - before).max() > 0.01


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        ([layers.Dense(4)], True),
        ([layers.Dense(4), layers.Softmax()], True),
        ([layers.Dense(4), layers.Activation("sigmoid"), layers.Reshape((2, 2))], True),
        ([layers.Dense(4), layers.Dense(3), layers.BatchNormalization()], False),
        ([layers.Reshape((4, 3)), layers.Conv1D(2, 1)], False),
    ],
)
def test_the_head_is_a_dense_that_gives_the_outputs(behind, found):
    from reflow_tf.models.execution import read_steps

    model = keras.Sequential([keras.Input((12,)), *behind])
    head = find_head(read_steps(model))
    assert (head is not None) == found
    if not found:
        before = read_weights(model)
        outcome = refit_head(PrunedModel(model, {}, before), BATCHES, show_nothing)
        assert outcome.repaired == () and "left alone" in outcome.statement
        assert all(map(np.array_equal, read_weights(model), before))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one calibration batch. Received: none"),
        ([VECTORS[:, :5]], "Received: "),
        ([np.full((4, 12), np.nan, np.float32)], "must be finite"),
    ],
)
def test_bad_batches_leave_the_model_as_it_was(batches, message):
    model = build()
    pruned = prune(model)
    before = read_weights(model)
    with pytest.raises(InputError, match=message):
        refit_head(pruned, batches, show_nothing)
    assert all(map(np.array_equal, read_weights(model), before))
