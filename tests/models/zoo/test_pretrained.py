"""What `--weights` means for a name of the zoo."""

import dataclasses
import json

import h5py
import keras
import numpy as np
import pytest

from reflow_tf.errors import InputError
from reflow_tf.models.zoo import embedded
from reflow_tf.models.zoo.architectures import ARCHITECTURES
from reflow_tf.models.zoo.pretrained import build_pretrained
from reflow_tf.models.zoo.resnet20 import build_resnet20

RESNET20 = ARCHITECTURES["resnet20"]


def assert_same_weights(a, b):
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def seven_classes():
    keras.utils.set_random_seed(5)
    return build_resnet20(32, 7)


@pytest.mark.parametrize("file_name", ["w.weights.h5", "w.keras"])
def test_keras_weights_bring_their_number_of_classes(file_name, seven_classes, tmp_path):
    path = tmp_path / file_name
    seven_classes.save(path) if file_name == "w.keras" else seven_classes.save_weights(path)
    built = build_pretrained(RESNET20, str(path), None)
    assert built.model.output_shape == (None, 7)
    assert_same_weights(built.model, seven_classes)
    assert built.preprocessing == RESNET20.preprocessing


def test_keras_weights_of_a_trained_model_with_optimizer(seven_classes, tmp_path):
    model = keras.models.clone_model(seven_classes)
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "trained.keras")
    assert_same_weights(build_pretrained(RESNET20, str(tmp_path / "trained.keras"), None).model, model)


@pytest.mark.parametrize("is_whole_model", [True, False])
def test_weights_that_keras_2_wrote(is_whole_model, seven_classes, tmp_path):
    path = tmp_path / "w.h5"
    seven_classes.save(path)
    if not is_whole_model:  # what Keras 2's save_weights writes: the same group, at the root of a file
        with h5py.File(path) as whole, h5py.File(tmp_path / "alone.h5", "w") as alone:
            alone.attrs.update(whole["model_weights"].attrs)
            for name in whole["model_weights"]:
                whole.copy(f"model_weights/{name}", alone)
        path = tmp_path / "alone.h5"
    built = build_pretrained(RESNET20, str(path), None)
    assert built.model.output_shape == (None, 7)
    assert_same_weights(built.model, seven_classes)


def test_a_configuration_that_keras_3_rejects_does_not_matter(tmp_path):
    # MLPerf Tiny's vww_96.h5 was written by Keras 2.4, whose depthwise convolutions say `groups`
    model = ARCHITECTURES["mobilenet_v1_025"].build(32, 2)
    path = tmp_path / "vww_96.h5"
    model.save(path)
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"depth_multiplier"', '"groups": 1, "depth"')
    with pytest.raises(TypeError, match="groups"):
        keras.models.load_model(path)
    assert_same_weights(build_pretrained(ARCHITECTURES["mobilenet_v1_025"], str(path), 32).model, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v3_small", "efficientnet_b0"])
def test_keras_weights_of_other_kinds_of_classifier(name, tmp_path):
    # mobilenet and mobilenet_v3 end in a 1x1 convolution; efficientnet_b0 has Normalization and Dropout
    model = ARCHITECTURES[name].build(32, 3)
    model.save_weights(tmp_path / "w.weights.h5")
    built = build_pretrained(ARCHITECTURES[name], str(tmp_path / "w.weights.h5"), 32)
    assert built.model.output_shape == (None, 3)
    assert_same_weights(built.model, model)


@pytest.mark.slow
@pytest.mark.parametrize("file_name", ["w.weights.h5", "w.h5"])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2"])
def test_keras_weights_of_another_architecture_are_refused(name, file_name, seven_classes, tmp_path):
    path = tmp_path / file_name
    seven_classes.save(path) if file_name == "w.h5" else seven_classes.save_weights(path)
    with pytest.raises(InputError, match=name):
        build_pretrained(ARCHITECTURES[name], str(path), 32)


def test_keras_weights_of_a_deeper_network_are_refused(tmp_path):
    inputs = keras.Input((4,))
    deep = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(2)(keras.layers.Dense(2)(inputs))))
    deep.save_weights(tmp_path / "deep.weights.h5")
    shallow = dataclasses.replace(
        RESNET20, build=lambda size, n: keras.Sequential([inputs, keras.layers.Dense(2), keras.layers.Dense(2)])
    )
    with pytest.raises(InputError, match=r"16 values.*25 values"):
        build_pretrained(shallow, str(tmp_path / "deep.weights.h5"), None)


def test_keras_weights_of_equal_count_and_other_shapes_are_refused(tmp_path):
    inputs = keras.Input((5,))
    keras.Sequential([inputs, keras.layers.Dense(3, use_bias=False)]).save_weights(tmp_path / "w.weights.h5")
    other = dataclasses.replace(
        RESNET20, build=lambda size, n: keras.Sequential([keras.Input((3,)), keras.layers.Dense(5, use_bias=False)])
    )
    with pytest.raises(InputError, match="must fit resnet20"):
        build_pretrained(other, str(tmp_path / "w.weights.h5"), None)


@pytest.mark.parametrize("file_name", ["w.weights.h5", "w.keras", "w.h5"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_keras_weights_are_refused(file_name, share, seven_classes, tmp_path):
    path = tmp_path / file_name
    seven_classes.save_weights(path) if file_name == "w.weights.h5" else seven_classes.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="complete file of Keras weights"):
        build_pretrained(RESNET20, str(path), None)


@pytest.mark.parametrize(("place", "value"), [((6, 8), 1), ((8, 10), 99)], ids=["encrypted", "unknown compression"])
def test_archives_that_python_does_not_unpack_are_refused(place, value, seven_classes, tmp_path):
    path = tmp_path / "w.keras"
    seven_classes.save(path)
    content = bytearray(path.read_bytes())
    member = b"model.weights.h5"
    for signature, length, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), (30, 46), place, strict=True):
        starts = [found for found in range(len(content)) if content.startswith(signature, found)]
        (start,) = (start for start in starts if content.startswith(member, start + length))
        content[start + offset] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match="complete file of Keras weights"):
        build_pretrained(RESNET20, str(path), None)


def test_random_weights_follow_the_seed():
    keras.utils.set_random_seed(1)
    first = build_pretrained(RESNET20, "random", None).model
    keras.utils.set_random_seed(1)
    assert_same_weights(first, build_pretrained(RESNET20, "random", None).model)


def test_image_size_reaches_model_and_preprocessing():
    built = build_pretrained(RESNET20, "random", 48)
    assert built.model.input_shape == (None, 48, 48, 3)
    assert built.preprocessing == dataclasses.replace(RESNET20.preprocessing, size=(48, 48))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet20", None, "--weights=random or a path is required"),
        ("efficientnet_lite0", "imagenet", "--weights=random or a path is required"),
        ("resnet50", "fashion_mnist", "embedded for mobilenet_v2, resnet8, mobilenet_v1_025. Received"),
        ("resnet20", "imagenette", r"must be fashion_mnist, imagenet, random, or a path that ends in \.weights\.h5"),
        ("resnet20", "model.hdf5", r"path that ends in \.weights\.h5"),
        ("ds_cnn", None, "--weights=random or a path is required"),
        ("resnet20", "missing.safetensors", "must be an existing file"),
    ],
)
def test_weights_that_there_are_not(name, weights, message):
    with pytest.raises(InputError, match=message):
        build_pretrained(ARCHITECTURES[name], weights, None)


@pytest.mark.parametrize(("name", "size"), [("resnet20", 0), ("resnet20", -32), ("mobilenet_v2", 16), ("ds_cnn", 49)])
def test_an_image_size_that_cannot_be(name, size):
    with pytest.raises(InputError, match=f"image_size.*Received: {size}"):
        build_pretrained(ARCHITECTURES[name], "random", size)


def test_imagenet_is_the_default_where_keras_has_it_and_needs_the_network():
    def fail():
        raise Exception("URL fetch failure on https://host/file")  # what keras.utils.get_file raises

    with pytest.raises(InputError, match=r"needs the network.*URL fetch failure"):
        build_pretrained(dataclasses.replace(ARCHITECTURES["mobilenet"], download=fail), None, None)


@pytest.mark.slow
def test_imagenet_at_another_size_computes_what_a_network_of_that_size_computes():
    architecture = ARCHITECTURES["mobilenet_v2"]
    original = architecture.build(64, 4)  # every stage even: ZeroPadding2D is (0, 1) throughout
    fake = dataclasses.replace(architecture, download=lambda: original, num_classes=4)
    resized = build_pretrained(fake, "imagenet", 52)  # 52, 26, 13: ZeroPadding2D before the 13 is (1, 1)
    expected = architecture.build(52, 4)
    expected.set_weights(original.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 52, 52, 3)).astype(np.float32)
    np.testing.assert_array_equal(resized.model(x, training=False), expected(x, training=False))
    assert resized.preprocessing.size == (52, 52)
    assert original.input_shape == (None, 64, 64, 3)


def test_embedded_weights_are_read_as_their_card_says(tmp_path, monkeypatch):
    files = embedded.EmbeddedWeights("small", build_resnet20)
    architecture = dataclasses.replace(RESNET20, embedded=files)
    model = build_resnet20(16, 10)
    model.save_weights(tmp_path / "small.weights.h5")
    (tmp_path / "small.json").write_text(json.dumps({"image_size": 16, "preprocess": "tf"}))
    monkeypatch.setattr(embedded, "locate_weights", lambda: tmp_path)
    built = build_pretrained(architecture, None, None)
    assert_same_weights(built.model, model)
    assert built.default_data == "fashion_mnist"
    assert (built.preprocessing.size, built.preprocessing.scaling) == ((16, 16), "tf")
    assert built.preprocessing.crop_fraction == 1.0
    larger = build_pretrained(architecture, "fashion_mnist", 64)
    assert larger.model.input_shape == (None, 64, 64, 3)
    assert_same_weights(larger.model, model)
