"""What Keras 2 saved gives in Keras 3 what it gave in Keras 2, in every format."""

import io
import shutil
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

from reflow_tf.errors import InputError
from reflow_tf.models.loading import load_model

from .editing import edit, layers_of

pytestmark = pytest.mark.slow  # tf_keras saves them all first

NAMES = """
attention augmentation batch_normalization batch_normalization_of_series bidirectional conv1d conv1d_transpose conv2d
conv2d_dilated conv2d_transpose depthwise_conv2d efficientnet_b0 einsum_dense embedding embedding_masked
first_layer_has_the_shape global_pooling group_normalization gru initial_state layer_normalization leaky_activation
leaky_relu lstm many_layers masking merging mixed_precision mobilenet mobilenet_v2 mobilenet_v3_small noise
normalization options pooling prelu pruned pruned_inside relu rescaling reshaping resizing rnn_of_cells selu
separable_conv1d separable_conv2d shared_and_nested simple_rnn slash_in_names small_epsilon softmax teachable_machine
tensorflow_functions thresholded_relu time_distributed transfer_learning up_sampling2d zero_padding2d
"""
NETWORKS = NAMES.split()
OLD_LAYOUT = ["attention", "bidirectional", "shared_and_nested", "teachable_machine", "time_distributed"]
SAVED_MODELS = [
    *("batch_normalization", "bidirectional", "normalization", "pruned", "pruned_inside", "shared_and_nested"),
    "time_distributed",
]
TOLERANCES = {"mixed_precision": 1e-3}  # one unit in the last place of a float16; float32 else


def measure_difference(path, example):
    """Largest difference of the outputs, relative to the largest output."""
    data = np.load(example)
    outputs = np.asarray(load_model(str(path)).model(data["inputs"], training=False))
    assert outputs.shape == data["outputs"].shape
    assert data["outputs"].std() > 0
    return np.abs(outputs - data["outputs"]).max() / np.abs(data["outputs"]).max()


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_masks_are_kept_and_wrappers_gone(suffix, saved):
    model = load_model(str(saved / f"pruned{suffix}")).model
    shares = {
        layer.name: float(np.mean(np.array(layer.kernel) == 0)) for layer in model.layers if hasattr(layer, "kernel")
    }
    assert {name: pytest.approx(share, abs=0.25) for name, share in shares.items()} == {
        **{"conv2d": 0.5, "conv2d_1": 0.5, "dense": 0.5, "depthwise_conv2d": 0},
    }
    assert not any("prune" in layer.name for layer in model.layers)


def test_every_network_of_the_script_is_in_the_table(saved):
    assert sorted(path.stem for path in saved.glob("*.npz")) == sorted(NETWORKS)
    assert sorted(path.name for path in saved.glob("*.old.keras")) == [f"{name}.old.keras" for name in OLD_LAYOUT]
    assert sorted(path.stem for path in saved.glob("*.saved_model")) == SAVED_MODELS


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs(name, suffix, saved):
    difference = measure_difference(saved / f"{name}{suffix}", saved / f"{name}.npz")
    assert difference <= TOLERANCES.get(name, 1e-6)
    assert "tf_keras" not in sys.modules


@pytest.mark.parametrize("name", OLD_LAYOUT)
def test_same_outputs_of_archives_as_the_first_versions_laid_them_out(name, saved):
    assert measure_difference(saved / f"{name}.old.keras", saved / f"{name}.npz") <= 1e-6


@pytest.mark.parametrize("name", SAVED_MODELS)
def test_same_outputs_of_saved_models(name, saved):
    assert measure_difference(saved / f"{name}.saved_model", saved / f"{name}.npz") <= 1e-6
    assert "tf_keras" not in sys.modules


def test_a_saved_model_that_is_damaged(saved, tmp_path):
    for part in ("keras_metadata.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
        folder = tmp_path / part.replace("/", "_")
        shutil.copytree(saved / "batch_normalization.saved_model", folder)
        content = (folder / part).read_bytes()
        (folder / part).write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=r"--model must be a complete Keras model .+ Received: "):
            load_model(str(folder))
        (folder / part).unlink()
        with pytest.raises(InputError, match=r"--model must (be a complete Keras model|have Keras's layers)"):
            load_model(str(folder))


@pytest.mark.parametrize("name", ["shared_and_nested.keras", "teachable_machine.old.keras"])
def test_same_outputs_of_an_archive_from_windows(name, saved, tmp_path):
    with zipfile.ZipFile(saved / name) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    content = io.BytesIO()
    with h5py.File(io.BytesIO(members["model.weights.h5"])) as source, h5py.File(content, "w") as target:

        def copy(path, item):
            if isinstance(item, h5py.Dataset):
                folder, _, number = path.rpartition("/vars/")
                target.require_group(folder.replace("/", "\\") + "/vars")[number] = np.asarray(item)

        source.visititems(copy)
    members["model.weights.h5"] = content.getvalue()
    with zipfile.ZipFile(tmp_path / "windows.keras", "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    assert measure_difference(tmp_path / "windows.keras", saved / f"{name.split('.')[0]}.npz") <= 1e-6


def test_what_training_froze_stays_frozen(saved):
    model = load_model(str(saved / "transfer_learning.h5")).model
    assert len(model.trainable_weights) == 2


def test_a_loaded_model_is_saved_and_loaded_as_one_of_keras_3(saved, tmp_path):
    for name in ("tensorflow_functions", "shared_and_nested"):
        load_model(str(saved / f"{name}.h5")).model.save(tmp_path / f"{name}.keras")
        assert measure_difference(tmp_path / f"{name}.keras", saved / f"{name}.npz") <= 1e-6


def call_functional_model(config):
    for layer in layers_of(config):
        layer["class_name"] = layer["class_name"].replace("Functional", "Model")
    config["class_name"] = config["class_name"].replace("Functional", "Model")


def leave_out_input_layer(config):
    entry, *layers = config["config"]["layers"]
    layers[0]["config"]["batch_input_shape"] = entry["config"]["batch_input_shape"]
    config["config"]["layers"] = layers


def say_shape_behind(config):
    entry, *config["config"]["layers"] = config["config"]["layers"]
    config["config"]["build_input_shape"] = entry["config"]["batch_input_shape"]


def list_layers_alone(config):
    leave_out_input_layer(config)
    config["config"] = config["config"]["layers"]


def leave_out_all_input_layers(config):
    for entry in [config, *(layer for layer in config["config"]["layers"] if "layers" in layer["config"])]:
        layers = entry["config"]["layers"]
        if layers[0]["class_name"] == "InputLayer":
            say_shape_behind(entry) if "layers" in layers[1]["config"] else leave_out_input_layer(entry)


def write_policies(config):
    for layer in layers_of(config):
        if "dtype" in layer["config"] and layer["class_name"] != "InputLayer":
            layer["config"]["dtype"] = {"class_name": "Policy", "config": {"name": "float32"}}


def write_old_initializers(config):
    for layer in layers_of(config):
        for name in [name for name in layer["config"] if name.endswith("_initializer")]:
            layer["config"][name] = {"class_name": "GlorotUniformV2", "config": {"seed": None, "dtype": "float32"}}
        if "kernel_initializer" in layer["config"]:
            layer["config"]["kernel_initializer"] = "glorot_uniform"


def write_all_of_batch_normalization(config):
    for layer in layers_of(config):
        if layer["class_name"] == "BatchNormalization":
            layer["class_name"] = "BatchNormalizationV1"
            layer["config"] |= {"fused": True, "renorm": False, "renorm_clipping": {}, "renorm_momentum": 0.99}
            layer["config"] |= {"virtual_batch_size": None, "adjustment": None}


def write_tuples(config):
    for layer in layers_of(config):
        for name, value in layer["config"].items():
            if isinstance(value, list) and name != "layers":
                layer["config"][name] = {"class_name": "__tuple__", "items": value}


def write_arrays(config):
    for layer in layers_of(config):
        if "alpha" in layer["config"]:
            layer["config"]["alpha"] = {"type": "ndarray", "value": layer["config"]["alpha"], "dtype": "float32"}


def leave_out_what_is_newer(config):
    for layer in layers_of(config):
        for name in ("groups", "keepdims", "optional", "ragged", "output_padding"):
            if layer["config"].get(name) in (None, 1, False):
                layer["config"].pop(name, None)


def write_empty_arguments(config):
    for layer in layers_of(config):
        for node in layer.get("inbound_nodes", []):
            for leaf in node:
                leaf[3] |= {"training": leaf[3].get("training"), "mask": None}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("shared_and_nested", call_functional_model),
        ("teachable_machine", call_functional_model),
        ("prelu", leave_out_input_layer),
        ("embedding", leave_out_input_layer),
        ("gru", say_shape_behind),
        ("depthwise_conv2d", list_layers_alone),
        ("teachable_machine", leave_out_all_input_layers),
        ("transfer_learning", write_policies),
        ("separable_conv2d", write_old_initializers),
        ("mobilenet", write_all_of_batch_normalization),
        ("conv2d", write_tuples),
        ("reshaping", write_tuples),
        ("leaky_relu", write_arrays),
        ("conv2d_transpose", leave_out_what_is_newer),
        ("mobilenet_v2", leave_out_what_is_newer),
        ("merging", write_empty_arguments),
        ("transfer_learning", write_empty_arguments),
    ],
)
def test_same_outputs_of_other_spellings(name, change, saved, tmp_path):
    path = edit(saved / f"{name}.h5", tmp_path / "m.h5", change, "2.3.0-tf")
    assert measure_difference(path, saved / f"{name}.npz") <= 1e-6


def test_what_keras_3_saved_is_loaded_by_keras_3(tmp_path, monkeypatch):
    monkeypatch.setattr("reflow_tf.models.loading.load_keras2", None)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    for name in ("m.h5", "m.keras"):
        model.save(tmp_path / name)
        assert load_model(str(tmp_path / name)).num_classes == 2
