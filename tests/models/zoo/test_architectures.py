"""The table of architectures against numbers that others published."""

import keras
import numpy as np
import pytest

from reflow_tf.models.zoo.architectures import ARCHITECTURES

# name: (scaling, resize, default input size), from each network's reference evaluation
REFERENCE = {
    "mobilenet": ("tf", "bilinear", 224),
    "mobilenet_v2": ("tf", "bilinear", 224),
    "mobilenet_v3_small": ("none", "bilinear", 224),
    "mobilenet_v3_large": ("none", "bilinear", 224),
    "efficientnet_b0": ("none", "bicubic", 224),
    "efficientnet_lite0": ("lite", "bicubic", 224),
    "efficientnet_lite1": ("lite", "bicubic", 240),
    "efficientnet_lite2": ("lite", "bicubic", 260),
    "resnet50": ("caffe", "bilinear", 224),
    "resnet20": ("torch", "bilinear", 32),
    "resnext50_32x4d": ("torch", "bilinear", 224),
    "resnext101_32x8d": ("torch", "bilinear", 224),
    "resnext101_64x4d": ("torch", "bilinear", 224),
    "regnet_x_400mf": ("torch", "bilinear", 224),
    "regnet_x_800mf": ("torch", "bilinear", 224),
    "regnet_x_1_6gf": ("torch", "bilinear", 224),
    "regnet_x_3_2gf": ("torch", "bilinear", 224),
    "regnet_x_8gf": ("torch", "bilinear", 224),
    "regnet_x_16gf": ("torch", "bilinear", 224),
    "regnet_x_32gf": ("torch", "bilinear", 224),
    "resnet8": ("none", "bilinear", 32),
    "mobilenet_v1_025": ("unit", "bilinear", 96),
    "ds_cnn": ("none", "bilinear", (49, 10)),
}
# Seconds each to run: these are built for the number of their parameters only, and tools/torch_logits.py runs them.
LARGE = {"resnext101_32x8d", "resnext101_64x4d", "regnet_x_3_2gf", "regnet_x_8gf", "regnet_x_16gf", "regnet_x_32gf"}


def test_the_table_is_what_the_issue_names():
    assert list(ARCHITECTURES) == list(REFERENCE)


@pytest.mark.parametrize("name", REFERENCE)
def test_preprocessing_is_the_reference_evaluation(name):
    preprocessing = ARCHITECTURES[name].preprocessing
    scaling, resize, size = REFERENCE[name]
    height, width = size if isinstance(size, tuple) else (size, size)
    assert (preprocessing.scaling, preprocessing.resize, preprocessing.size) == (scaling, resize, (height, width))
    assert ARCHITECTURES[name].image_size == height


def test_crop_fractions():
    # EfficientNet's reference leaves 32 pixels of margin whatever the size; CIFAR images are used whole.
    assert ARCHITECTURES["efficientnet_lite2"].preprocessing.crop_fraction == pytest.approx(260 / 292)
    assert ARCHITECTURES["resnet20"].preprocessing.crop_fraction == 1.0
    assert ARCHITECTURES["mobilenet_v2"].preprocessing.crop_fraction == 0.875
    # torchvision: the first weights resize to 256, the only ones of this network to 232.
    assert ARCHITECTURES["resnext101_32x8d"].preprocessing.crop_fraction == 0.875
    assert ARCHITECTURES["resnext101_64x4d"].preprocessing.crop_fraction == pytest.approx(224 / 232)


@pytest.mark.parametrize(
    ("name", "scaling", "resize"),
    # timm: mean and standard deviation 0.5, which is 'tf'
    [("mobilenet", "tf", "bicubic"), ("mobilenet_v2", "torch", "bilinear"), ("resnet50", "torch", "bilinear")],
)
def test_pytorch_weights_bring_their_own_preprocessing(name, scaling, resize):
    preprocessing = ARCHITECTURES[name].torch_layout.preprocessing
    assert (preprocessing.scaling, preprocessing.resize, preprocessing.size) == (scaling, resize, (224, 224))
    assert preprocessing.crop_fraction == 0.875


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REFERENCE if name not in LARGE | {"ds_cnn"}])
def test_builds_at_a_given_size_for_given_classes(name):
    model = ARCHITECTURES[name].build(32, 7)
    assert model.input_shape == (None, 32, 32, 3)
    outputs = np.asarray(model(np.full((2, 32, 32, 3), 0.5, np.float32), training=False))
    assert outputs.shape == (2, 7)
    np.testing.assert_allclose(outputs.sum(-1), 1, atol=1e-5)


def test_the_keyword_spotter_takes_windows_of_ten_coefficients():
    model = ARCHITECTURES["ds_cnn"].build(49, 7)
    assert model.input_shape == (None, 49, 10, 1)
    outputs = np.asarray(model(np.full((2, 49, 10, 1), 0.5, np.float32), training=False))
    assert outputs.shape == (2, 7)
    np.testing.assert_allclose(outputs.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"])
def test_preprocessing_none_is_for_models_that_rescale_by_themselves(name):
    assert any(isinstance(layer, keras.layers.Rescaling) for layer in ARCHITECTURES[name].build(32, 7).layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_parameters"),
    # EfficientNet-Lite: timm's results table; resnet20: akamaster's README and He et al. (0.27 M); the others:
    # `num_params` of torchvision's weights
    [
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
        ("resnet20", 269_722),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
        ("regnet_x_400mf", 5_495_976),
        ("regnet_x_800mf", 7_259_656),
        ("regnet_x_1_6gf", 9_190_136),
        ("regnet_x_3_2gf", 15_296_552),
        ("regnet_x_8gf", 39_572_648),
        ("regnet_x_16gf", 54_278_536),
        ("regnet_x_32gf", 107_811_560),
    ],
)
def test_published_number_of_parameters(name, num_parameters):
    architecture = ARCHITECTURES[name]
    model = architecture.build(32, architecture.num_classes)
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == num_parameters


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    # MLPerf Tiny: values in the published trained_models/pretrainedResnet.h5, vww_96.h5 and kws_ref_model
    [("resnet8", 78_666), ("mobilenet_v1_025", 221_794), ("ds_cnn", 24_908)],
)
def test_published_number_of_parameters_with_moments(name, num_parameters):
    architecture = ARCHITECTURES[name]
    assert architecture.build(architecture.image_size, architecture.num_classes).count_params() == num_parameters


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    # timm's results table (4.23 M) and torchvision's `num_params`; keras.applications' ResNet50 has biases besides
    [("mobilenet", 4_231_976), ("mobilenet_v2", 3_504_872), ("resnet50", 25_557_032)],
)
def test_published_number_of_parameters_of_the_pytorch_layout(name, num_parameters):
    model = ARCHITECTURES[name].torch_layout.build(32, 1000)
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == num_parameters


def test_resnet20_shortcut_takes_every_second_pixel_and_centres_the_channels():
    model = ARCHITECTURES["resnet20"].build(32, 10)
    names = [layer.name for layer in model.layers if layer.name.endswith(("_subsample", "_pad_channels"))][:2]
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 16)).astype(np.float32)
    shortcut = np.asarray(model.get_layer(names[1])(model.get_layer(names[0])(x)))
    np.testing.assert_array_equal(shortcut, np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (8, 8))))
