"""Real exceptions of the libraries below, each provoked here: one plain line comes out, with the words that decide."""

import contextlib
import io
import json
import os
import re
import struct
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from PIL import Image

from reflow_tf.data.decoding import decode_image
from reflow_tf.errors import InputError
from reflow_tf.foreign import MOST_CHARACTERS, say_why
from reflow_tf.models.loading import load_model
from reflow_tf.native_stderr import native_stderr_dropped

RAW = re.compile(
    r"[\x00-\x1f\x7f-\x9f]|x1b\[|\[1m|\\n|rguments received|tf\.Tensor|KerasTensor|<class|keras\.src|tensorflow\.python"
    r"|object at|at 0x|\{\{|\}\}|loc\(|error:|note:|config=|inspect|File \"|%arg|tensor<|\[Op:|site-packages"
)


def is_plain(text):
    opened = all(text.count(left) == text.count(right) for left, right in ("()", "[]", "{}"))
    return bool(text) and opened and not RAW.search(text) and len(text) <= MOST_CHARACTERS and text[-1] not in ".,:;"


class Failing(layers.Layer):
    """Keras calls it while it works out shapes."""

    def __init__(self, call):
        super().__init__()
        self._work = call

    def call(self, inputs):
        return self._work(inputs)


def small(*extra, shape=(8, 8, 3)):
    return keras.Sequential([layers.Input(shape), *extra, layers.Flatten(), layers.Dense(2)])


def say(text):
    raise RuntimeError(text)


def rewrite(path, name, change):
    """One member of an archive changed."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def keras_unknown_argument(folder, depth):
    inner = keras.Sequential([layers.Input((8, 8, 3)), layers.DepthwiseConv2D(3)])
    for _ in range(depth):
        inner = keras.Sequential([layers.Input((8, 8, 3)), inner])
    inner.save(folder / "m.keras")
    old, new = b'"class_name": "DepthwiseConv2D", "config": {', b'"groups": 1, '
    rewrite(folder / "m.keras", "config.json", lambda text: text.replace(old, old + new))
    keras.models.load_model(folder / "m.keras", compile=False)


def keras_cut_weights(folder):
    small(layers.Conv2D(4, 3)).save(folder / "m.keras")
    rewrite(folder / "m.keras", "model.weights.h5", lambda content: content[:2000])
    keras.models.load_model(folder / "m.keras", compile=False)


def keras_broken_json(folder):
    small().save(folder / "m.keras")
    rewrite(folder / "m.keras", "config.json", lambda content: content[:50])
    keras.models.load_model(folder / "m.keras", compile=False)


def keras_other_weights(folder):
    small(layers.Conv2D(4, 3, name="stem")).save_weights(folder / "m.weights.h5")
    small(layers.Conv2D(5, 3, name="stem")).load_weights(folder / "m.weights.h5")


def keras_traced_scope(folder):
    model = small(layers.Conv2D(4, 1, name="conv 1"))
    try:
        tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec((1, 8, 8, 3)))
    finally:
        keras.utils.clear_session()  # Keras does not leave the scope that it could not enter


def keras_at_run_time(folder):
    model = small(Failing(lambda x: tf.ensure_shape(tf.boolean_mask(x, x[:, 0, 0, 0] > 9), (3, 8, 8, 3))))
    model.predict(np.zeros((2, 8, 8, 3), "float32"), verbose=0)


def keras_h5_without_model(folder):
    with h5py.File(folder / "m.h5", "w") as file:
        file["a"] = np.zeros(3)
    keras.models.load_model(folder / "m.h5", compile=False)


def convert(compute, *shape, flex=False):
    function = tf.function(compute, autograph=False).get_concrete_function(tf.TensorSpec(shape))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    if flex:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    with native_stderr_dropped():
        return converter.convert()


def converter_rank(folder):
    model = small(layers.Conv1D(4, 3, data_format="channels_first"), shape=(3, 16))
    convert(lambda x: model(x), 1, 3, 16)


def open_litert(content):
    with native_stderr_dropped():
        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
    return interpreter


def pool_volume(x):
    return tf.nn.max_pool3d(x, 2, 2, "VALID")


def cut_png(folder):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(stream, "PNG")
    Image.open(io.BytesIO(stream.getvalue()[:300])).load()


def pickled_array(folder):
    np.savez(folder / "x.npz", x=np.array([{}], object))
    with np.load(folder / "x.npz") as archive:
        archive["x"]


def cut_hdf5(folder):
    with h5py.File(folder / "x.h5", "w") as file:
        file["a"] = np.zeros(3000)
    (folder / "x.h5").write_bytes((folder / "x.h5").read_bytes()[:9000])
    h5py.File(folder / "x.h5")


def missing_group(folder):
    with h5py.File(folder / "x.h5", "w") as file:
        file["a"] = np.zeros(3)
    with h5py.File(folder / "x.h5") as file:
        file["b/c"]


def garbage(path):
    path.write_bytes(b"garbage" * 100)
    return path


CASES = {
    "keras, unknown argument": (lambda f: keras_unknown_argument(f, 0), "passed to DepthwiseConv2D: {'groups': 1}"),
    "keras, the same two models down": (lambda f: keras_unknown_argument(f, 2), "to DepthwiseConv2D: {'groups': 1}"),
    "keras, unknown class": (
        lambda f: layers.deserialize({"class_name": "No", "config": {"a": {"b": 1}}, "module": "x.y"}),
        "Could not locate class 'No'",
    ),
    "keras, cut weights": (keras_cut_weights, "truncated file"),
    "keras, broken config": (keras_broken_json, "line 1 column"),
    "keras, weights of another model": (keras_other_weights, "stem: The shape of the target variable"),
    "keras, .h5 without a model": (keras_h5_without_model, "No model config found"),
    "keras, wrong shape": (
        lambda f: small()(np.zeros((1, 9, 9, 3), "float32")),
        "expected axis -1 of input shape to have value 192",
    ),
    "keras, scope of a layer": (keras_traced_scope, "'conv 1' is not a valid scope name"),
    "keras, own layer": (lambda f: small(Failing(lambda x: say("the gate\nneeds a key"))), "the gate needs a key"),
    "keras, shapes": (lambda f: small(Failing(lambda x: tf.reshape(x, (7, 5)))), "must be evenly divisible"),
    "keras, small image": (lambda f: layers.Conv2D(4, 5)(layers.Input((2, 2, 3))), "would be zero or negative"),
    "keras, at run time": (keras_at_run_time, "is not compatible with expected shape [3,8,8,3]"),
    "keras, shapes that differ": (
        lambda f: layers.Concatenate()([layers.Input((2, 3)), layers.Input((3, 3))]),
        "requires inputs with matching shapes",
    ),
    "tensorflow, at once": (lambda f: tf.matmul(tf.zeros((2, 3)), tf.zeros((2, 3))), "incompatible: In[0]: [2,3]"),
    "tensorflow, in a graph": (
        lambda f: tf.function(tf.io.decode_png)(tf.constant(b"abc")),
        "Unknown image file format",
    ),
    "tensorflow, no file": (lambda f: tf.io.read_file("/no/such/file"), "No such file or directory"),
    "converter, Flex": (lambda f: convert(pool_volume, 1, 8, 8, 8, 1), "no TFLite operator for MaxPool3D"),
    "converter, Flex and custom": (
        lambda f: convert(lambda x: tf.math.erfinv(tf.image.resize(x, (16, 16), "bicubic")), 1, 8, 8, 1),
        "no TFLite operator for ResizeBicubic, Erfinv",
    ),
    "converter, ranks": (converter_rank, "op x should be of the same rank with y"),
    "litert, Flex": (
        lambda f: open_litert(convert(pool_volume, 1, 8, 8, 8, 1, flex=True)),
        "no TFLite operator for MaxPool3D",
    ),
    "litert, damaged": (lambda f: open_litert(b"\0\0\0\0TFL3" + bytes(100)), "not a valid Flatbuffer"),
    "litert, shape": (
        lambda f: open_litert(convert(lambda x: 2 * x, 1, 8)).set_tensor(0, np.zeros((2, 8), np.float32)),
        "Dimension mismatch",
    ),
    "h5py, garbage": (lambda f: h5py.File(garbage(f / "x.h5")), "file signature not found"),
    "h5py, cut": (cut_hdf5, "truncated file"),
    "h5py, nothing there": (lambda f: h5py.File(f / "no.h5"), "No such file or directory"),
    "h5py, no such group": (missing_group, "component not found"),
    "zipfile, garbage": (lambda f: zipfile.ZipFile(garbage(f / "x.zip")), "not a zip file"),
    "PIL, garbage": (lambda f: Image.open(io.BytesIO(b"garbage")), "cannot identify image file"),
    "PIL, cut": (cut_png, "truncated"),
    "numpy, pickled": (pickled_array, "Object arrays cannot be loaded"),
    "numpy, no archive": (lambda f: np.load(garbage(f / "x.npz")), "pickled"),
    "numpy, shapes": (lambda f: np.zeros(5).reshape(2, 3), "cannot reshape array of size 5 into shape (2,3)"),
    "safetensors": (lambda f: safetensors.numpy.load_file(garbage(f / "x.safetensors")), "header too large"),
    "json": (lambda f: json.loads("{"), "Expecting property name"),
    "struct": (lambda f: struct.unpack("<I", b"ab"), "requires a buffer of 4 bytes"),
    "zlib": (lambda f: zlib.decompress(b"ab"), "incorrect header check"),
    "a key": (lambda f: {}["model_weights"], "nothing in it is called 'model_weights'"),
    "no message": (lambda f: exec("raise EOFError"), "EOFError"),
    "system": (lambda f: os.stat(f / "no"), "No such file or directory"),
}


def provoke(work, folder):
    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(Exception) as caught:
        work(folder)
    return caught.value


@pytest.mark.parametrize(("work", "decisive"), CASES.values(), ids=CASES)
def test_one_plain_line_with_the_decisive_words(work, decisive, tmp_path):
    error = provoke(work, tmp_path)
    said = say_why(error)
    assert is_plain(said), said
    assert decisive in said


def test_terminal_codes_that_were_spelled_out_go_too():
    message = (
        "Exception encountered when calling A.call().\n\n\x1b[1mno\x1b[0m\n\nArguments received by A.call():\n  • x"
    )
    assert say_why(ValueError(repr(message))) == "no"


def test_a_sentence_is_never_cut():
    first, second = "The first sentence (with a remark) stays.", f"The second is {'very ' * 50}long."
    assert say_why(ValueError(f"{first} {second}")) == first[:-1]
    clauses = f"one clause, another clause, {'a third that never ends ' * 20}"
    assert say_why(ValueError(clauses)) == "one clause, another clause"
    assert say_why(ValueError("x" * 1000)) == "ValueError without a message in words"


def test_our_own_words_stay_as_they_are():
    text = f"--data must be a folder. Received: {'x' * 300}"
    assert say_why(InputError(text)) == text


def test_a_file_that_keras_refuses(tmp_path):
    with contextlib.suppress(TypeError):
        keras_unknown_argument(tmp_path, 1)
    rewrite(tmp_path / "m.keras", "config.json", lambda text: text.replace(b'"groups": 1', b'"colour": 1'))
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path / "m.keras"))
    message = str(caught.value)
    assert message.endswith(f" Received: {tmp_path / 'm.keras'}") and "DepthwiseConv2D: {'colour': 1}" in message
    assert not RAW.search(message.partition(" Received: ")[0]) and len(message) < 300 + len(str(tmp_path))


def test_an_image_that_pillow_refuses():
    with pytest.raises(InputError, match=r"\(cannot identify image file\)\. Received: a\.png$"):
        decode_image(io.BytesIO(b"garbage"), "a.png")
