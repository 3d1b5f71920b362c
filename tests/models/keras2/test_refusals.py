"""What Keras 3 cannot say, and what is damaged, is refused in one sentence: the layer, the argument, the version."""

import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reflow_tf.errors import InputError
from reflow_tf.models.loading import load_model

from .editing import edit, layers_of

pytestmark = pytest.mark.slow  # tf_keras saves the files first


def find(config, class_name):
    return next(layer for layer in layers_of(config) if layer["class_name"] == class_name)


@pytest.mark.parametrize(
    ("name", "class_name", "words"),
    [
        ("depthwise_conv2d", "DepthwiseConv2D", {"groups": 2}),
        ("conv2d_transpose", "Conv2DTranspose", {"groups": 2}),
        ("separable_conv2d", "SeparableConv2D", {"groups": 2}),
        ("lstm", "LSTM", {"time_major": True}),
        ("lstm", "LSTM", {"stateful": True}),
        ("gru", "GRU", {"recurrent_activation": "hard_sigmoid"}),
        ("small_epsilon", "BatchNormalization", {"renorm": True}),
        ("small_epsilon", "BatchNormalization", {"virtual_batch_size": 2}),
        ("small_epsilon", "BatchNormalization", {"axis": [1, 3]}),
        ("small_epsilon", "InputLayer", {"ragged": True}),
        ("small_epsilon", "InputLayer", {"sparse": True}),
        ("attention", "Attention", {"causal": True}),
        ("conv2d", "Conv2D", {"activation": "my_own"}),
        ("conv2d", "Conv2D", {"activation": {"class_name": "LeakyReLU", "config": {"alpha": 0.1}}}),
        ("conv2d", "Conv2D", {"kernel_initializer": {"class_name": "MyOwn", "config": {}}}),
        ("conv2d", "Conv2D", {"kernel_regularizer": {"class_name": "MyOwn", "config": {}}}),
        ("conv2d", "Conv2D", {"kernel_constraint": {"class_name": "MyOwn", "config": {}}}),
        ("conv2d", "Conv2D", {"dtype": "float12"}),
        ("conv2d", "Conv2D", {"my_argument": 3}),
        ("conv2d", "Conv2D", {"dynamic": True}),
    ],
)
def test_an_argument_that_keras_3_does_not_mean_alike(name, class_name, words, saved, tmp_path):
    changed = {}

    def change(config):
        changed.update(find(config, class_name)["config"])
        find(config, class_name)["config"].update(words)

    path = edit(saved / f"{name}.h5", tmp_path / "m.h5", change, "2.7.0")
    with pytest.raises(InputError, match=rf"Keras 2\.7\.0, layer '{changed['name']}' .*Received: ") as refusal:
        load_model(str(path))
    word, value = next(iter(words.items()))
    told = value["class_name"] if isinstance(value, dict) else word
    assert told in str(refusal.value)


@pytest.mark.parametrize("class_name", ["Lambda", "LocallyConnected2D", "CuDNNLSTM", "TensorFlowOpLayer", "MyOwnLayer"])
def test_a_layer_that_keras_3_does_not_have(class_name, saved, tmp_path):
    def change(config):
        find(config, "Conv2D")["class_name"] = class_name

    path = edit(saved / "conv2d.h5", tmp_path / "m.h5", change)
    with pytest.raises(InputError, match=rf"Keras 2\.9\.0, layer 'conv2d' is a {class_name}"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("function", "words"),
    [("linalg.det", {}), ("nn.relu6", {"my_argument": 3}), ("math.reduce_mean", {"axis": {"class_name": "Odd"}})],
)
def test_a_tensorflow_function_that_has_no_equal(function, words, saved, tmp_path):
    def change(config):
        layer = next(layer for layer in layers_of(config) if layer["config"].get("function") == "nn.relu6")
        layer["config"]["function"] = function
        layer["inbound_nodes"][0][3] = words

    path = edit(saved / "tensorflow_functions.h5", tmp_path / "m.h5", change)
    with pytest.raises(InputError, match=r"Keras 2\.9\.0, layer 'tf\.nn\.relu6.*has "):
        load_model(str(path))


def test_a_model_in_python_code_is_refused(saved, tmp_path):
    path = edit(saved / "conv2d.h5", tmp_path / "m.h5", lambda config: {**config, "class_name": "MyModel"})
    with pytest.raises(InputError, match="'MyModel' is a model in Python code"):
        load_model(str(path))


def remove(file):
    del file["model_weights/batch_normalization"]


def remove_one(file):
    group = file["model_weights/batch_normalization"]
    group.attrs["weight_names"] = group.attrs["weight_names"][:-1]


def swap(file):
    group = file["model_weights/batch_normalization"]
    group.attrs["weight_names"] = group.attrs["weight_names"][::-1]


def reshape(file):
    name = "model_weights/batch_normalization/batch_normalization/gamma:0"
    del file[name]
    file[name] = np.ones(9, "float32")


def name_a_stranger(file):
    names = list(file["model_weights"].attrs["layer_names"])
    file["model_weights"].attrs["layer_names"] = np.array([*names[:-1], "stranger"], dtype="S")
    file["model_weights"].move("batch_normalization_1", "stranger")


def link_elsewhere(file):
    name = "model_weights/batch_normalization/batch_normalization/gamma:0"
    del file[name]
    file[name] = h5py.ExternalLink("/etc/hostname", "/")


GAMMA = "model_weights/batch_normalization/batch_normalization/gamma:0"


def put(file, **dataset):
    shape = file[GAMMA].shape
    del file[GAMMA]
    file.create_dataset(GAMMA, **({"shape": shape} | dataset))


def declare_petabytes(file):
    put(file, shape=(10**6, 10**6, 10**3), chunks=(10, 10, 10), dtype="float32")


def declare_petabytes_and_write_one(file):
    declare_petabytes(file)
    file[GAMMA][0, 0, 0] = 1


def write_complex_numbers(file):
    put(file, data=np.ones(file[GAMMA].shape, "complex64"))


def write_words(file):
    put(file, data=np.full(file[GAMMA].shape, b"one"))


def write_records(file):
    put(file, data=np.zeros(file[GAMMA].shape, [("a", "float32")]))


def write_nothing(file):
    put(file, shape=None, dtype="float32")


DAMAGES = [remove, remove_one, swap, reshape, name_a_stranger, link_elsewhere, declare_petabytes]
DAMAGES += [declare_petabytes_and_write_one, write_complex_numbers, write_words, write_records, write_nothing]


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit_the_configuration(damage, saved, tmp_path):
    path = tmp_path / "m.h5"
    path.write_bytes((saved / "batch_normalization.h5").read_bytes())
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(InputError, match=r"batch_normalization|stranger") as refusal:
        load_model(str(path))
    assert "Received: " in str(refusal.value)


@pytest.mark.parametrize("damage", ["truncate", "no layers", "no metadata", "a list", "no weights"])
def test_a_damaged_archive_is_refused(damage, saved, tmp_path):
    with zipfile.ZipFile(saved / "conv2d.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if damage == "truncate":
        members["config.json"] = members["config.json"][:-200]
    elif damage == "no layers":
        members["config.json"] = members["config.json"].replace(b'"layers"', b'"layer"')
    elif damage == "a list":
        members["config.json"] = b"[1, 2]"
    else:
        del members["metadata.json" if damage == "no metadata" else "model.weights.h5"]
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="Received: "):
        load_model(str(tmp_path / "m.keras"))


def list_places(value, place=()):
    """Every place in a JSON value."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from list_places(item, (*place, key))


@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), junk=st.sampled_from([None, "junk", [], {}, -1, 0, True, 0.5, [["a", 0, 0, {}]]]))
@example(share=0.0, junk=None)
def test_no_word_of_the_configuration_brings_a_traceback(share, junk, saved, tmp_path):
    def change(config):
        places = list(list_places(config))
        *way, last = places[round(share * (len(places) - 1))] or ("config",)
        inside = config
        for key in way:
            inside = inside[key]
        inside[last] = junk

    path = edit(saved / "shared_and_nested.h5", tmp_path / "m.h5", change)
    try:
        load_model(str(path))
    except InputError as refusal:
        assert "Received: " in str(refusal)
