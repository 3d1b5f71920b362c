"""The zoo against PyTorch's own networks: the same weights, the same images, the logits that PyTorch computed.

`torch_logits.json` was written by tools/torch_logits.py where PyTorch, torchvision and timm are installed.
"""

import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
import safetensors.numpy

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.loading import load_model
from reflow_tf.models.zoo.architectures import ARCHITECTURES

ROOT = pathlib.Path(__file__).resolve().parents[3]
RECORDED = json.loads((pathlib.Path(__file__).parent / "torch_logits.json").read_text())


def load_tool():
    spec = importlib.util.spec_from_file_location("torch_logits", ROOT / "tools" / "torch_logits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = load_tool()
BAR = TOOL.MOST_RELATIVE_DIFFERENCE


@pytest.fixture(scope="module")
def images():
    return TOOL.draw_images(TOOL.IMAGE_SIZE)


@pytest.fixture(scope="module")
def regnet(tmp_path_factory):
    name = "regnet_x_400mf"
    return TOOL.load_in_keras(name, RECORDED[name], tmp_path_factory.mktemp(name)), RECORDED[name]


def test_what_the_tool_compares_in_ci_is_what_was_recorded():
    assert list(RECORDED) == list(TOOL.IN_CI)
    assert {"resnet20", "mobilenet", "resnet50", "resnext50_32x4d", "regnet_x_400mf"} <= set(RECORDED)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_computes_the_logits_of_pytorch(name, images, tmp_path):
    recorded = RECORDED[name]
    model = TOOL.load_in_keras(name, recorded, tmp_path)
    assert TOOL.measure_difference(model, recorded, images) <= BAR
    # The same weights on other images are seen at once: the comparison can fail.
    assert TOOL.measure_difference(model, recorded, images[:, :, ::-1]) > 100 * BAR


def change_groups(kernel):
    """Every group computes what its neighbour should."""
    return np.roll(kernel, kernel.shape[2], axis=-1)


def mirror(kernel):
    return kernel[:, ::-1]


def swap_inputs(kernel):
    return kernel[:, :, ::-1]


@pytest.mark.parametrize("change", [change_groups, mirror, swap_inputs])
@pytest.mark.parametrize("layer", ["stage1_block0_2_conv", "stage4_block11_2_conv"])
def test_one_grouped_kernel_in_another_order_is_seen(layer, change, regnet, images):
    model, recorded = regnet
    kernel = model.get_layer(layer).kernel
    original = kernel.numpy()
    kernel.assign(change(original))
    try:
        assert TOOL.measure_difference(model, recorded, images) > 10 * BAR
    finally:
        kernel.assign(original)


@pytest.mark.slow
def test_padding_on_one_side_only_is_seen(regnet, images):
    model, recorded = regnet

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.ZeroPadding2D) and layer.input.shape[1] % 2 == 0:
            config["padding"] = ((0, 1), (0, 1))  # what SAME is at stride 2
        return layer.__class__.from_config(config)

    other = keras.models.clone_model(model, clone_function=clone)
    other.set_weights(model.get_weights())
    assert TOOL.measure_difference(other, recorded, images) > 100 * BAR


def test_keras_calls_a_grouped_convolution_through_xla_in_a_graph_as_well(regnet, images):
    model, recorded = regnet
    assert TOOL.measure_difference(lambda x, training: model.predict_on_batch(x), recorded, images) <= BAR


def test_weights_of_a_sibling_are_refused(tmp_path):
    # ResNet-50 and ResNeXt-50 name their tensors alike.
    state = {name: np.zeros(shape, np.float32) for name, shape in RECORDED["resnet50"]["shapes"].items()}
    path = tmp_path / "resnet50.safetensors"
    safetensors.numpy.save_file(state, path)
    message = (
        r"torchvision's resnext50_32x4d; .*layer1\.0\.conv1\.weight has shape \(64, 64, 1, 1\) where \(128, 64, 1, 1\)"
    )
    with pytest.raises(InputError, match=message):
        load_model("resnext50_32x4d", weights=str(path), image_size=32)


# Stage -> (groups, channels of one group), from the tables of the papers.
GROUPS = {
    "resnext50_32x4d": {1: (32, 4), 2: (32, 8), 3: (32, 16), 4: (32, 32)},
    "regnet_x_400mf": {1: (2, 16), 2: (4, 16), 3: (10, 16), 4: (25, 16)},
}


@pytest.mark.parametrize("name", GROUPS)
def test_grouped_kernels_are_found_with_the_inputs_of_one_group(name):
    architecture = ARCHITECTURES[name]
    kernels = find_kernels((architecture.torch_layout or architecture).build(32, 10))
    assert not kernels.skipped
    grouped = {spec.path: spec for spec in kernels.specs if spec.kind == "grouped_conv"}
    assert sorted(grouped) == sorted(spec.path for spec in kernels.specs if spec.path.endswith("_2_conv/kernel"))
    for stage, (groups, width) in GROUPS[name].items():
        assert grouped[f"stage{stage}_block0_2_conv/kernel"].canonical_shape == (groups * width, 3, 3, width)
