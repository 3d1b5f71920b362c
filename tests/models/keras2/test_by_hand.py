"""Two small files as Keras 2 wrote them, made without it: what every run of the tests can afford."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.loading import load_model


def write_h5(path, **arguments):
    """A depthwise network whose layer has these further arguments, as tf.keras 2.15 named them."""
    model = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.DepthwiseConv2D(3, name="depthwise"), layers.Flatten(), layers.Dense(2)]
    )
    model.save(path)
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "DepthwiseConv2D":
                layer["config"] |= arguments
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.15.0"
    return model


def test_groups_of_a_depthwise_convolution_say_nothing(tmp_path):
    model = write_h5(tmp_path / "m.h5", groups=1)
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype("float32")
    loaded = load_model(str(tmp_path / "m.h5")).model
    np.testing.assert_array_equal(loaded(images), model(images))


def test_groups_that_mean_something_are_refused_by_name(tmp_path):
    write_h5(tmp_path / "m.h5", groups=3)
    with pytest.raises(InputError, match=r"2\.15\.0, layer .depthwise. .*groups=3"):
        load_model(str(tmp_path / "m.h5"))


def test_an_archive_whose_first_layer_has_the_shape(tmp_path):
    def initial(name):
        return {"module": "keras.initializers", "class_name": name, "config": {}, "registered_name": None}

    def layer(name, config):
        return {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}

    entry = {"batch_input_shape": [None, 6], "dtype": "float32", "sparse": False, "ragged": False, "name": "input_1"}
    dense = {"name": "dense", "batch_input_shape": [None, 6], "trainable": True, "dtype": "float32", "units": 2}
    dense |= {"activation": "softmax", "use_bias": True, "kernel_regularizer": None, "bias_regularizer": None}
    dense |= {"activity_regularizer": None, "kernel_constraint": None, "bias_constraint": None}
    dense |= {"kernel_initializer": initial("GlorotUniform"), "bias_initializer": initial("Zeros")}
    members = [layer("InputLayer", entry), layer("Dense", dense) | {"build_config": {"input_shape": [None, 6]}}]
    config = {"module": "keras", "class_name": "Sequential", "registered_name": None}
    config |= {"config": {"name": "sequential", "layers": members}, "build_config": {"input_shape": [None, 6]}}
    kernel = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        group = file.create_group("_layer_checkpoint_dependencies/dense/vars")
        group["0"], group["1"] = kernel, np.zeros(2, "float32")
        file.create_group("vars")
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    loaded = load_model(str(tmp_path / "m.keras")).model
    np.testing.assert_array_equal(loaded.layers[-1].kernel, kernel)
