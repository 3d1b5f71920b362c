"""Whether pixels are scaled as a network was trained with, by its first batch norm."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.data.batches import CalibrationSet
from reflow_tf.data.preprocessing import SCALINGS, Preprocessing
from reflow_tf.jobs.scaling import doubt_scaling, measure_first_norm, warn_of_scaling


class Photos:
    """Images in 0..255 of all kinds of contrast."""

    def image(self, index):
        rng = np.random.default_rng(index)
        return rng.normal(rng.uniform(80, 170), 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)

    def name_of(self, index):
        return f"photo {index}"


def make_set(scaling, number=64):
    return CalibrationSet(Photos(), np.arange(number), Preprocessing((16, 16), 3, scaling), 16)


def train(scaling, build=None):
    """A network whose batch norms know images of that scaling."""
    keras.utils.set_random_seed(0)
    model = (build or build_plain)()
    model(np.concatenate(list(make_set(scaling, 256))), training=True)
    return model


def build_plain():
    norm = {"momentum": 0.0}
    x = layers.BatchNormalization(**norm)(layers.Conv2D(8, 3)(image := keras.Input((16, 16, 3))))
    x = layers.BatchNormalization(**norm)(layers.Conv2D(8, 3)(layers.ReLU()(x)))
    return keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def build_nested():
    return keras.Sequential([keras.Input((16, 16, 3)), build_plain(), layers.Dense(2)])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = build_plain()

    def call(self, inputs):
        return self.inner(inputs)


@pytest.mark.parametrize("trained", SCALINGS)
@pytest.mark.parametrize("given", SCALINGS)
def test_another_scaling_is_doubted_and_the_right_one_named(trained, given):
    doubt = doubt_scaling(train(trained), make_set(given))
    alike = [{"tf", "lite"}, {"none", "caffe"}]
    if trained == given or {trained, given} in alike:
        assert doubt is None
        return
    assert doubt.startswith(f"With --preprocess={given} the images reach the first batch norm with ")
    named = next(scaling for scaling in SCALINGS if f"with --preprocess={scaling} with " in doubt)
    assert named == trained or {named, trained} in alike
    assert doubt.endswith("times: is that what it was trained with?")


@pytest.mark.parametrize("build", [build_plain, build_nested, Subclassed])
def test_the_ratio_is_the_square_of_the_scales_in_any_kind_of_model(build):
    model = train("unit", build)
    before = [np.array(weight) for weight in model.weights]
    images = np.concatenate(list(make_set("unit", 256)))
    assert measure_first_norm(model, images) == pytest.approx(1, rel=0.05)
    assert measure_first_norm(model, 4 * images) == pytest.approx(16, rel=0.05)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert np.isfinite(model.predict(images, verbose=0)).all()  # and its batch norms compute again


def test_a_scale_that_no_scaling_has_is_told_where_it_is_far_off(capsys):
    model = train("unit")
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    variance = np.array(norm.moving_variance)
    norm.moving_variance.assign(variance / 30)
    said = warn_of_scaling(model, make_set("unit"))
    assert said.endswith(": check whether --preprocess is what it was trained with.")
    assert capsys.readouterr().err == f"note: {said}\n"
    norm.moving_variance.assign(variance / 9)  # perhaps the images are others
    assert warn_of_scaling(model, make_set("unit")) is None and not capsys.readouterr().err


def test_nothing_is_said_where_nobody_knows():
    untrained, plain = build_plain(), keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(2)])
    merged = train("unit")
    norm = next(layer for layer in merged.layers if isinstance(layer, layers.BatchNormalization))
    norm.moving_mean.assign(np.zeros(8))
    norm.moving_variance.assign(np.ones(8))
    for model in (untrained, plain, merged):
        assert doubt_scaling(model, make_set("none")) is None
    samples = dataclasses.make_dataclass("Samples", ["preprocessing"])(object())
    assert doubt_scaling(train("unit"), samples) is None
