"""From `--model` to a usable Keras model, or to one clear error."""

import dataclasses
import shutil
from importlib import resources

import keras
import numpy as np
import pytest

from reflow_tf.data.as_stored import AsStored
from reflow_tf.errors import InputError
from reflow_tf.models.loading import check_finite, load_model
from reflow_tf.models.zoo.architectures import ARCHITECTURES


def build_small(shape=(8, 8, 3), num_classes=4):
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(5, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="head")(x))


def save(model, path):
    model.save(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_loads_a_file(suffix, tmp_path):
    model = build_small()
    loaded = load_model(save(model, tmp_path / f"mine{suffix}"))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.model(x, training=False), model(x, training=False))
    assert (loaded.name, loaded.num_classes, loaded.default_data) == ("mine", 4, None)
    preprocessing = loaded.preprocessing
    assert (preprocessing.size, preprocessing.channels, preprocessing.scaling) == ((8, 8), 3, "none")
    assert preprocessing.crop_fraction == 1.0


def test_preprocess_overrides_scaling_only(tmp_path):
    path = save(build_small(), tmp_path / "m.keras")
    auto, torch = load_model(path).preprocessing, load_model(path, preprocess="torch").preprocessing
    assert torch == dataclasses.replace(auto, scaling="torch")
    zoo = load_model("resnet20", weights="random", preprocess="tf").preprocessing
    assert zoo == dataclasses.replace(ARCHITECTURES["resnet20"].preprocessing, scaling="tf")


def test_one_channel_models_want_grey_images(tmp_path):
    assert load_model(save(build_small((8, 8, 1)), tmp_path / "m.keras")).preprocessing.channels == 1


@pytest.mark.parametrize("shape", [(6,), (10, 6)])
def test_inputs_that_are_no_images_stay_as_they_are(shape, tmp_path):
    inputs = keras.Input(shape)
    loaded = load_model(save(keras.Model(inputs, keras.layers.Dense(3)(inputs)), tmp_path / "m.keras"))
    assert loaded.preprocessing == AsStored(shape)
    assert (loaded.positions, loaded.num_classes) == (shape[:-1], 3)


@pytest.mark.parametrize("activation, num_classes", [("sigmoid", 2), (None, 1)])
@pytest.mark.parametrize("shape", [(6,), (None, 6)])
def test_a_single_sigmoid_is_of_two_classes(shape, activation, num_classes, tmp_path):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, keras.layers.Dense(1, activation=activation)(inputs))
    assert load_model(save(model, tmp_path / "m.keras")).num_classes == num_classes


def test_a_free_input_size_is_fixed_by_image_size(tmp_path):
    model = build_small((None, None, 3))
    path = save(model, tmp_path / "m.keras")
    assert load_model(path).preprocessing.size is None
    loaded = load_model(path, image_size=12)
    assert loaded.model.input_shape == (None, 12, 12, 3)
    assert loaded.preprocessing.size == (12, 12)
    x = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.model(x, training=False), model(x, training=False))


@pytest.mark.parametrize(
    ("shape", "image_size"), [((8, 8, 3), 12), ((6,), 12), ((None, None, 3), 0), ((None, None, 3), 2)]
)
def test_an_image_size_that_the_model_cannot_take(shape, image_size, tmp_path):
    model = build_small(shape) if len(shape) == 3 else keras.Sequential([keras.Input(shape), keras.layers.Dense(2)])
    with pytest.raises(InputError, match=f"--image_size.*Received: {image_size}"):
        load_model(save(model, tmp_path / "m.keras"), image_size=image_size)


@keras.saving.register_keras_serializable("test_loading")
class Subclassed(keras.Model):
    def __init__(self, num_outputs=1, **options):
        super().__init__(**options)
        self.num_outputs = num_outputs
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        y = self.dense(x)
        return y if self.num_outputs == 1 else [y] * self.num_outputs

    def get_config(self):
        return super().get_config() | {"num_outputs": self.num_outputs}


def test_a_subclassed_model_whose_class_is_registered(tmp_path):
    model = Subclassed()
    x = np.ones((2, 8, 8, 3), np.float32)
    expected = np.asarray(model(x))
    loaded = load_model(save(model, tmp_path / "m.keras"))
    np.testing.assert_array_equal(loaded.model(x, training=False), expected)
    assert (loaded.num_classes, loaded.preprocessing.size) == (3, (8, 8))


def test_a_subclassed_model_with_two_outputs_is_refused(tmp_path):
    model = Subclassed(num_outputs=2)
    model(np.ones((2, 6), np.float32))
    with pytest.raises(InputError, match=r"one output, or be functional.*with 2"):
        load_model(save(model, tmp_path / "m.keras"))


def build_two_inputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], keras.layers.Add()([a, b]))


def test_several_inputs_are_one_row(tmp_path):
    loaded = load_model(save(build_two_inputs(), tmp_path / "m.keras"))
    assert loaded.sample_shape == (8,) and [part.shape for part in loaded.preprocessing.parts] == [(4,), (4,)]
    assert [part.name for part in loaded.preprocessing.parts] == [tensor.name for tensor in loaded.model.inputs]


def test_several_outputs_have_names_and_no_classes(tmp_path):
    a = keras.Input((4,))
    outputs = {"wide": keras.layers.Dense(3, name="wide")(a), "deep": keras.layers.Dense(2, name="deep")(a)}
    loaded = load_model(save(keras.Model(a, outputs), tmp_path / "m.keras"))
    assert loaded.num_classes is None and set(loaded.output_names) == {"wide", "deep"}
    assert [output.shape[-1] for output in loaded.model.outputs] == [
        {"wide": 3, "deep": 2}[name] for name in loaded.output_names
    ]


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_a_model_that_was_never_built_is_refused(tmp_path):
    with pytest.raises(InputError, match="must have been built"):
        load_model(save(keras.Sequential([keras.layers.Dense(2)]), tmp_path / "m.keras"))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_is_refused_and_not_run(suffix, tmp_path):
    witness = str(tmp_path / "witness")
    inputs = keras.Input((4,))
    build_with_lambda = keras.layers.Lambda(lambda x: (open(witness, "w").close(), x)[1])
    path = save(keras.Model(inputs, build_with_lambda(inputs)), tmp_path / f"m{suffix}")
    (tmp_path / "witness").unlink()
    with pytest.raises(InputError, match=r"Lambda.*never switches safe mode off"):
        load_model(path)
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_unknown_class_is_named(suffix, tmp_path):
    class Unregistered(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((4,))
    path = save(keras.Model(inputs, Unregistered()(inputs)), tmp_path / f"m{suffix}")
    with pytest.raises(InputError, match=r"register_keras_serializable.*'Unregistered' is neither"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(suffix, share, tmp_path):
    path = tmp_path / f"m{suffix}"
    save(build_small(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"complete.*Received: {path}"):
        load_model(str(path))


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "m.keras"
    save(build_small(), path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(content)
    with pytest.raises(InputError, match="complete Keras model"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.keras", "zip archive"),
        ("text.h5", "HDF5"),
        ("archive.keras", "complete Keras model"),
        ("table.h5", "No model"),
    ],
)
def test_a_file_that_is_no_model(name, message, tmp_path):
    (tmp_path / "text.keras").write_text("hello")
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "readme.txt").write_text("hello")
    shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "inside")
    (tmp_path / "archive.zip").rename(tmp_path / "archive.keras")
    build_small().save_weights(tmp_path / "table.weights.h5")
    (tmp_path / "table.weights.h5").rename(tmp_path / "table.h5")
    with pytest.raises(InputError, match=message):
        load_model(str(tmp_path / name))


def test_weights_alone_are_no_model(tmp_path):
    build_small().save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(InputError, match="--model=NAME --weights="):
        load_model(str(tmp_path / "m.weights.h5"))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"or the folder of a SavedModel; this is neither\. Received: "):
        load_model(str(tmp_path))


def test_a_saved_model_without_layers_is_refused_with_a_way_round(tmp_path):
    """As Keras 3 exports it."""
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(InputError, match=r"keras_metadata\.pb is missing.+ save the model as \.keras .+\.tflite made"):
        load_model(str(tmp_path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="existing file"):
        load_model(str(tmp_path / "m.keras"))


def test_another_suffix_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"path of a \.keras or Keras \.h5 file"):
        load_model(str(tmp_path / "m.onnx"))


def test_an_unknown_name_lists_the_zoo_and_suggests():
    with pytest.raises(
        InputError,
        match=r"regnet_x_32gf, resnet8, mobilenet_v1_025, ds_cnn, or the path .* Did you mean mobilenet_v2\?",
    ) as error:
        load_model("mobilnet_v2")
    assert str(error.value).endswith("Received: mobilnet_v2")
    with pytest.raises(InputError) as error:
        load_model("xyz")
    assert "Did you mean" not in str(error.value)


def test_an_unknown_preprocess_is_refused():
    with pytest.raises(
        InputError,
        match=r"--preprocess must be auto, tf, torch, caffe, lite, unit, none, or means and.+Received: imagenet",
    ):
        load_model("resnet20", weights="random", preprocess="imagenet")


def test_layers_of_ones_own_are_of_a_file():
    with pytest.raises(
        InputError, match=r"--custom_objects belongs to a model file\. Received: my_layers, and --model"
    ):
        load_model("resnet20", weights="random", custom_objects="my_layers")


def test_weights_with_a_path_are_refused(tmp_path):
    with pytest.raises(InputError, match="--weights belongs to a zoo name"):
        load_model(save(build_small(), tmp_path / "m.keras"), weights="random")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    model = build_small()
    gamma = np.ones(5, np.float32)
    gamma[2] = value
    model.get_layer("bn").gamma.assign(gamma)
    with pytest.raises(InputError, match=r"layer 'bn', variable 'gamma' is not\. Received: 1 of 5"):
        load_model(save(model, tmp_path / "m.keras"))


def test_a_moving_variance_that_is_not_finite_is_named_in_a_nested_model():
    inner = build_small()
    inner.get_layer("bn").moving_variance.assign(np.full(5, np.nan, np.float32))
    outer = keras.Sequential([keras.Input((8, 8, 3)), inner])
    with pytest.raises(InputError, match="variable 'moving_variance'"):
        check_finite(outer)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_large_finite_weights_of_any_type_pass(dtype):
    layer = keras.layers.Dense(2, dtype=dtype)
    model = keras.Sequential([keras.Input((2,), dtype=dtype), layer])
    layer.kernel.assign(np.full((2, 2), {"float64": 1e300, "float16": 6e4, "bfloat16": 1e38}[dtype]))
    check_finite(model)
    layer.kernel.assign(np.full((2, 2), np.inf))
    with pytest.raises(InputError, match="4 of 4"):
        check_finite(model)


@pytest.mark.parametrize(
    ("name", "top1"),  # on all test images, from the cards; 500 of them scatter by 1.3 points
    [("mobilenet_v2", 0.9285), ("resnet8", 0.9165), ("mobilenet_v1_025", 0.9035)],
)
def test_the_embedded_models_recognize_fashion(name, top1):
    loaded = load_model(name)
    assert (loaded.name, loaded.num_classes, loaded.default_data) == (name, 10, "fashion_mnist")
    assert loaded.preprocessing.size == loaded.model.input_shape[1:3]
    with (resources.files("reflow_tf.data") / "fashion_mnist" / "images.npz").open("rb") as file:
        archive = np.load(file)
        images, labels = archive["x_evaluation"][:500], archive["y_evaluation"][:500]
    batch = np.stack([loaded.preprocessing(image) for image in images])
    predicted = np.argmax(loaded.model.predict(batch, batch_size=100, verbose=0), -1)
    assert np.mean(predicted == labels) > top1 - 0.03
