import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.choices import TARGETS
from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs.explanation import explain
from reflow_tf.targets.storage import Storage


def build(size=16, zeros=0.9, padding="same", strides=2, channels=3):
    """A stem, two blocks, a mean: as keras.applications pads it, 90 % of the 1x1 weights zero."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    image = keras.Input((size, size, channels))
    x = layers.Conv2D(16, 3, strides, padding=padding, activation="relu", name="stem")(image)
    for block in (1, 2):
        x = layers.DepthwiseConv2D(3, block, padding="same", name=f"spatial_{block}")(x)
        x = layers.Conv2D(64, 1, activation="relu", name=f"project_{block}")(x)
    model = keras.Model(image, layers.Dense(4, name="classes")(layers.GlobalAveragePooling2D(name="pool")(x)))
    for block in (1, 2):
        kernel = model.get_layer(f"project_{block}").kernel
        kernel.assign(kernel.numpy() * (rng.random(kernel.shape) >= zeros))
    return model


def test_the_paddings_of_keras_are_in_the_way_until_they_are_rewritten():
    explained = explain(export_tflite(build()).content)
    assert not explained.as_given.eligible
    assert not explained.as_given.fits
    (blocker,) = explained.as_given.blockers
    assert (blocker.operator, blocker.kind) == ("stem, spatial_2", "CONV_2D, DEPTHWISE_CONV_2D")
    assert blocker.reason == "padding (0,1,0,1); needs 1 on every side"
    # What the remedy promises is kept: the rewritten file lacks nothing.
    assert blocker.remedy == "--rewrite=exact does it without changing the outputs"
    assert explained.applied
    assert explained.rewritten.eligible
    assert explained.rewritten.blockers == ()
    assert explained.rewritten.speedups["browser"] > 1
    assert explained.can_be_eligible


def test_a_dense_model_lacks_zeros_and_nothing_else_once_it_is_rewritten():
    explained = explain(export_tflite(build(zeros=0), storage="dense").content)
    assert not explained.rewritten.eligible
    assert explained.rewritten.fits
    (blocker,) = explained.rewritten.blockers
    assert "0 of 5,120 weights are zero (0.0%); needs more than two thirds" in blocker.reason
    assert explained.can_be_eligible


def test_what_no_rewrite_can_mend():
    explained = explain(export_tflite(build(channels=4)).content)
    assert any(blocker.reason == "reads 4 channels; needs 3" for blocker in explained.as_given.blockers)
    assert not explained.rewritten.fits
    assert not explained.can_be_eligible


def test_int8_is_blocked_by_its_type():
    batches = [np.random.default_rng(0).random((4, 16, 16, 3), np.float32)]
    explained = explain(export_tflite(build(), quantize="int8", calibration=batches).content)
    (blocker,) = explained.as_given.blockers
    assert blocker.reason == "int8 values; sparse kernels exist for float32 and float16 only"
    assert blocker.remedy.startswith("no remedy")
    assert not explained.can_be_eligible


def test_dynamic_range_quantization_is_blocked_by_its_filters():
    function = tf.function(build(channels=3), autograph=False).get_concrete_function(tf.TensorSpec((1, 16, 16, 3)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    reasons = {blocker.reason for blocker in explain(converter.convert()).as_given.blockers}
    said = "int8 filters, though the values are float32; sparse kernels exist for float32 and float16 filters only"
    assert said in reasons and not any(reason.startswith("float32 values") for reason in reasons)


def test_storage_welcomes_every_file():
    explained = explain(export_tflite(build(channels=4)).content, Storage())
    assert explained.as_given is explained.rewritten
    assert explained.as_given.eligible
    assert explained.as_given.speedups == {}
    assert (explained.applied, explained.refused) == ((), ())


@pytest.mark.parametrize("target", ["xnnpack", "cpu", "storage", "tflm"])
def test_of_sparse_floats_whoever_ships_them_is_warned_whatever_the_target(target):
    """The file that XNNPACK runs dense, too: what is stored decides, and LiteRT runs it somewhere."""

    def warn(**options):
        verdict = explain(export_tflite(build(), **options).content, TARGETS[target]).as_given
        return [warning.partition(" (")[0] for warning in verdict.warnings]

    is_warned = target != "tflm"  # in which nothing is forced
    assert warn(storage="sparse") == ["Never force float16 arithmetic on this file"] * is_warned
    assert warn(storage="dense") == []
    samples = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    assert warn(storage="sparse", quantize="int8", calibration=[samples]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "MobileNetV3Small"])
def test_what_keras_applications_lack_is_what_exact_rewriting_does(name):
    keras.utils.set_random_seed(0)
    settings = {"alpha": 0.35} if name == "MobileNetV2" else {}
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=10, **settings)
    explained = explain(export_tflite(model, storage="dense").content)
    assert not explained.as_given.fits
    assert all("--rewrite=exact" in blocker.remedy for blocker in explained.as_given.blockers)
    assert explained.rewritten.fits, explained.rewritten.blockers


def convert(shape):
    model = build()
    function = tf.function(lambda images: model(images), autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()


def test_an_open_batch_is_judged_as_a_batch_of_one():
    explained = explain(convert((None, 16, 16, 3)))
    assert [applied.rewrite for applied in explained.applied] == ["rotation"]
    assert explained.rewritten.fits


def test_an_open_size_is_refused():
    with pytest.raises(InputError, match=r"every dimension of its input but the batch. Received: \[1, -1, -1, 3\]"):
        explain(convert((1, None, None, 3)))
