"""What the target of any CPU says of files in every number format."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.choices import TARGETS
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite


def build(activation="relu"):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation=activation)(image)
    return keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


SAMPLES = [np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)]


def judge(content):
    return TARGETS["cpu"].judge(read_operators(content))


@pytest.mark.parametrize(
    "flags, statement",
    [
        ({"quantize": "int8"}, "CPUs run this file in int8, with dense kernels."),
        ({"quantize": "int8", "io": "float"}, "CPUs run this file in int8, with dense kernels."),
        ({"quantize": "float16"}, "CPUs that have float16 arithmetic"),
        ({"quantize": "float16", "float16_arithmetic": False}, "CPUs run this file in float32"),
        ({}, "CPUs run this file in float32; int8"),
    ],
)
def test_the_statement_names_the_numbers(flags, statement):
    verdict = judge(export_tflite(build(), calibration=SAMPLES, **flags).content)
    assert verdict.eligible and verdict.fits and not verdict.blockers
    assert verdict.statement.startswith(statement)


def test_what_has_no_int8_form_is_named():
    verdict = judge(export_tflite(build(keras.ops.sin), quantize="int8", calibration=SAMPLES).content)
    assert not verdict.eligible and "part of it in float32" in verdict.statement
    assert {blocker.kind for blocker in verdict.blockers} == {"SIN"}
    assert all("no int8 form" in blocker.reason for blocker in verdict.blockers)


def test_weights_alone_in_int8_are_told_apart():
    converter = tf.lite.TFLiteConverter.from_keras_model(layers_of_many_weights())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    assert "weights in int8 alone" in judge(converter.convert()).statement


def layers_of_many_weights():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((64,)), layers.Dense(64)])


def test_zeros_gain_nothing():
    target = TARGETS["cpu"]
    assert "multiply by zero" in target.objection(None)
    assert not target.price(read_operators(export_tflite(build()).content)).prices
