import math

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.export.equivalence import relative_difference
from reflow_tf.export.tflite import export_tflite


def build(*, scale=1.0, softmax=True, bias=0.0):
    """A network that takes 0 to 255 and sees which way up an image is; `bias` moves one logit."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu")(layers.Rescaling(scale)(image))
    logits = layers.Dense(4, bias_initializer=keras.initializers.Constant([bias, 0, 0, 0]))(layers.Flatten()(x))
    return keras.Model(image, layers.Softmax()(logits) if softmax else logits)


def content(model):
    return export_tflite(model, storage="dense").content


def test_a_file_is_like_itself():
    assert relative_difference(content(build()), content(build())) == 0


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_a_network_that_sees_its_image_mirrored_is_another(scale):
    model = build(scale=scale)
    mirrored = build(scale=scale)
    kernel = mirrored.layers[2].kernel
    kernel.assign(kernel.numpy()[::-1])
    assert relative_difference(content(model), content(mirrored)) > 1e-2


def test_logits_are_compared_and_not_what_softmax_makes_of_them():
    # The same ratio of differences with and without softmax; of probabilities, one is 1 and hides everything.
    expected = relative_difference(content(build(softmax=False)), content(build(softmax=False, bias=1e-3)))
    assert expected > 0
    assert relative_difference(content(build()), content(build(bias=1e-3))) == pytest.approx(expected, rel=1e-3)


def test_outputs_are_compared_where_only_one_of_the_files_ends_in_a_softmax():
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layers.Softmax()(image))
    reshaped = keras.Model(image, layers.Reshape((16, 16, 3))(layers.Softmax()(layers.Reshape((256, 1, 3))(image))))
    assert relative_difference(content(model), content(reshaped)) < 1e-6


def test_what_cannot_be_compared_is_infinitely_far(monkeypatch):
    model = build()
    broken = build()
    kernel = broken.layers[2].kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    assert relative_difference(content(model), content(broken)) == math.inf


def test_what_is_no_number_may_be_so_in_both():
    """Of the mean of an image around 0 there is no logarithm: that is the network's doing, not the rewriting's."""

    def build_two(bias=0.0):
        model = build(softmax=False, bias=bias)
        mean = layers.GlobalAveragePooling2D()(model.input)
        return keras.Model(model.input, [model.output, keras.ops.log(mean)])

    assert relative_difference(content(build_two()), content(build_two())) == 0
    assert 0 < relative_difference(content(build_two()), content(build_two(bias=0.1))) < 1
    other = build_two()
    other = keras.Model(other.input, [other.outputs[0], keras.ops.exp(layers.GlobalAveragePooling2D()(other.input))])
    assert relative_difference(content(build_two()), content(other)) == math.inf
