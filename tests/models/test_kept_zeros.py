import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 6, 6, 3)).astype(np.float32), RNG.integers(0, 4, 64)


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            *(keras.Input((6, 6, 3)), layers.Conv2D(8, 3, name="conv"), layers.BatchNormalization(), layers.ReLU()),
            *(layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax", name="classes")),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


def test_masked_weights_stay_zero_while_others_learn():
    model = build()
    masks = {spec.path: RNG.random(spec.canonical_shape) < 0.5 for spec in find_kernels(model).specs}
    before = find_kernels(model).read()
    model.fit(X, Y, epochs=2, batch_size=16, verbose=0, callbacks=[reflow_tf.keep_zeros(model, masks)])
    for path, kernel in find_kernels(model).read().items():
        assert not kernel[~masks[path]].any() and not np.signbit(kernel[~masks[path]]).any()
        assert (kernel[masks[path]] != before[path][masks[path]]).mean() > 0.5


def test_without_masks_the_zeros_that_are_there_stay():
    model = build()
    result = reflow_tf.prune(
        model, reflow_tf.PruneConfig(sparsity=0.5, target="storage", repair="none"), inplace=True
    ).model
    before = find_kernels(result).read()
    result.fit(X, Y, batch_size=16, verbose=0, callbacks=[reflow_tf.keep_zeros(result)])
    after = find_kernels(result).read()
    assert all(np.array_equal(kernel == 0, after[path] == 0) for path, kernel in before.items())
    assert any((kernel == 0).any() for kernel in before.values())


def test_masks_of_other_models_are_refused():
    model = build()
    with pytest.raises(InputError, match=r"of a kernel of the model\. Received: other/kernel"):
        reflow_tf.keep_zeros(model, {"other/kernel": np.ones(1, bool)})
    with pytest.raises(InputError, match=r"\(8, 3, 3, 3\) \(output, \*spatial, input\)\. Received: \(2, 2\)"):
        reflow_tf.keep_zeros(model, {"conv/kernel": np.ones((2, 2), bool)})
    with pytest.raises(InputError, match=r"of conv/kernel must be boolean, True = kept\. Received: uint8"):
        reflow_tf.keep_zeros(model, {"conv/kernel": np.ones((8, 3, 3, 3), np.uint8)})
    with pytest.raises(InputError, match=r"of conv/kernel must be boolean, True = kept\. Received: int64"):
        reflow_tf.keep_zeros(model, {"conv/kernel": [1, 0]})
