import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.runtimes.litert import LiteRT, load_tflite


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 6, 6, 3)).astype(np.float32)


def make_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([layers.Input((6, 6, 3)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(5)])


def convert(model, batch_size=1, int8=False, flex=False):
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((batch_size, 6, 6, 3), tf.float32)
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    if int8:
        converter.optimizations = {tf.lite.Optimize.DEFAULT}
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([image[np.newaxis]] for image in images(20, seed=1))
        converter.inference_input_type = converter.inference_output_type = tf.int8
    converter.allow_custom_ops = flex
    return converter.convert()


@pytest.fixture(scope="module")
def content():
    return convert(make_model())


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_batch_through_a_fixed_one(batch_size, count):
    model = make_model()
    runtime = LiteRT(convert(model, batch_size))
    assert runtime.input_shape == (batch_size, 6, 6, 3)
    batch = images(count)
    outputs = runtime.run(batch)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, model(batch).numpy(), rtol=1e-4, atol=1e-5)


def test_int8_is_fed_and_read_through_its_scales():
    model = make_model()
    content = convert(model, int8=True)
    batch = np.concatenate([images(3), 1e6 * images(1), -1e6 * images(1)])
    outputs = LiteRT(content).run(batch)
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    for image, output in zip(batch, outputs, strict=True):
        scale, zero_point = source["quantization"]
        quantized = np.clip(np.rint(image / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], quantized[np.newaxis])
        interpreter.invoke()
        scale, zero_point = target["quantization"]
        want = (interpreter.get_tensor(target["index"])[0].astype(np.float64) - zero_point) * scale
        np.testing.assert_allclose(output, want, rtol=1e-6)
    # Independently of the formula: the file approximates the model on ordinary images.
    want = model(batch[:3]).numpy()
    assert np.abs(outputs[:3] - want).max() < 0.1 * np.abs(want).max()


def test_it_says_what_it_is(content):
    assert LiteRT(content).name.startswith("LiteRT 2.")


@pytest.mark.parametrize("shape", [(2, 6, 6, 1), (6, 6, 3), (0, 6, 6, 3)])
def test_samples_of_another_shape_are_refused(content, shape):
    with pytest.raises(InputError, match=r"\(n, 6, 6, 3\)"):
        LiteRT(content).run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(content, share):
    with pytest.raises(InputError, match="whole"):
        LiteRT(content[: int(share * len(content))])


@pytest.mark.parametrize("junk", [b"", b"PK\x03\x04 a zip archive", b"\x1c\0\0\0TFL3 and then nothing"])
def test_junk_is_refused(junk):
    with pytest.raises(InputError, match="Received"):
        LiteRT(junk)


def test_an_operator_that_litert_lacks_is_named():
    class Odd(keras.Model):
        def call(self, inputs):
            return tf.raw_ops.Betainc(a=tf.exp(inputs), b=tf.exp(inputs), x=tf.sigmoid(inputs))

    model = Odd()
    model(images(1))
    with pytest.raises(InputError, match="Betainc"):
        LiteRT(convert(model, flex=True))


def test_several_inputs_are_one_row_a_sample():
    first, second = keras.Input((4,)), keras.Input((2, 3))
    model = keras.Model([first, second], layers.Concatenate()([first, layers.Flatten()(second)]))
    specs = tf.TensorSpec((1, 4), tf.float32, "first"), tf.TensorSpec((1, 2, 3), tf.float32, "second")
    function = tf.function(lambda a, b: model([a, b])).get_concrete_function(*specs)
    runtime = LiteRT(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    rows = np.arange(30, dtype=np.float32).reshape(3, 10)
    assert (runtime.num_inputs, runtime.input_shape, runtime.output_sizes) == (2, (1, 10), (10,))
    np.testing.assert_array_equal(runtime.run(rows), rows)
    with pytest.raises(InputError, match=r"\(n, 10\). Received: \(3, 4\)"):
        runtime.run(rows[:, :4])


def test_loading_from_disk(content, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    assert load_tflite(path).run(images(2)).shape == (2, 5)
    path.write_bytes(content[:100])
    for wrong, message in (
        (tmp_path, "Is a directory"),
        (tmp_path / "no.tflite", "No such file"),
        (path, "model.tflite"),
    ):
        with pytest.raises(InputError, match=message):
            load_tflite(wrong)


def test_loading_is_silent(content, capfd):
    LiteRT(content)
    assert capfd.readouterr().err == ""


def test_a_file_that_leaves_the_size_of_images_open_is_refused():
    """LiteRT would silently take images of one pixel."""
    spec = tf.TensorSpec((1, None, None, 3), tf.float32)
    function = tf.function(lambda x: tf.reduce_mean(tf.nn.relu(x), (1, 2)), autograph=False)
    content = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function(spec)]).convert()
    with pytest.raises(InputError, match=r"fix every dimension.*Received: \(1, -1, -1, 3\)"):
        LiteRT(content)


@pytest.mark.parametrize(
    "function, shapes",
    [
        (lambda x: tf.reduce_mean(x), r"\(1, 6, 6, 3\) -> \(\)"),
        (lambda x: tf.reshape(x, [-1])[:5], r"\(1, 6, 6, 3\) -> \(5,\)"),
        (lambda x: (tf.reduce_mean(x, [1, 2]), tf.reduce_mean(x)), r"-> .*\(\)"),
    ],
)
def test_files_without_an_axis_of_samples_are_refused(function, shapes):
    """Or outputs would be cut as if each number were one sample's."""
    found = tf.function(function).get_concrete_function(tf.TensorSpec((1, 6, 6, 3), tf.float32))
    content = tf.lite.TFLiteConverter.from_concrete_functions([found]).convert()
    with pytest.raises(InputError, match=rf"an axis of samples first in every input and output.* Received: .*{shapes}"):
        LiteRT(content)
