"""Channels first: on CPUs, TensorFlow has such convolutions in oneDNN alone, which a process can do without."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.models.channel_order import name_channels_first

REFUSED = ("Conv1D", "Conv2D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
# What Keras turns around by itself or gives to XLA.
TAKEN = (
    *("Conv3D", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"),
    *("MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "UpSampling2D", "ZeroPadding2D"),
)
SCRIPT = """
    import re, keras, numpy as np
    from keras import layers
    import reflow_tf
    from reflow_tf.models.channel_order import check_channel_order
    from reflow_tf.models.loading import load_model
    from reflow_tf.models.observation import run

    def build(layer, rank):
        inner = keras.Sequential([layers.Input((4, *[8] * rank)), layer, layers.BatchNormalization(axis=1)], name="in")
        return keras.Sequential([layers.Input((4, *[8] * rank)), inner])

    def work(name):
        rank, groups = int(re.search("[123]", name)[0]), "groups" in name
        size = (2,) if "Pool" in name or name.startswith(("Up", "Zero")) else (4, 3) if "Depth" not in name else (3,)
        size = () if "Global" in name else size
        options = {"data_format": "channels_first", "name": "odd"} | ({"groups": 2} if groups else {})
        layer = getattr(layers, name.removesuffix(" groups"))(*size, **options)
        return build(layer, rank), np.zeros((2, 4, *[8] * rank), np.float32)

    for name in NAMES:
        model, images = work(name)
        try:
            check_channel_order(model)
            list(run(model, [images]))
        except reflow_tf.InputError as error:
            print(name, "|", error)
        else:
            print(name, "| computed")
    model, images = work("Conv2D")
    model.save(FILE)
    calls = {"prune": lambda: reflow_tf.prune(model, None, images), "load_model": lambda: load_model(FILE)}
    for name, call in calls.items():
        try:
            call()
        except reflow_tf.InputError as error:
            print(name, "|", error)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    file = str(tmp_path_factory.mktemp("models") / "m.keras")
    names = (*REFUSED, *TAKEN, "Conv2D groups")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).replace("NAMES", repr(names)).replace("FILE", repr(file))],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split(" | ", 1) for line in done.stdout.splitlines() if " | " in line)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REFUSED, "prune", "load_model"])
def test_without_onednn_the_layer_is_named_and_what_to_do(answers, name):
    assert answers[name].startswith("Convolutions must have their channels last: TensorFlow has no other Conv")
    assert "Build the model with data_format='channels_last'" in answers[name]
    assert answers[name].endswith("Received: layer 'in/odd' with data_format='channels_first'")


@pytest.mark.parametrize("name", [*TAKEN, "Conv2D groups"])
def test_what_keras_turns_around_is_computed(answers, name):
    assert answers[name] == "computed"


@pytest.mark.parametrize(("data_format", "expected"), [("channels_first", "odd"), ("channels_last", None)])
@pytest.mark.parametrize("kind", [layers.Conv1D, layers.Conv1DTranspose])
def test_the_first_such_convolution_is_named(kind, data_format, expected):
    model = keras.Sequential([layers.Input((4, 8)), layers.ReLU(), kind(2, 1, data_format=data_format, name="odd")])
    assert name_channels_first(model) == expected


def test_loops_of_convolutions_count():
    model = keras.Sequential([layers.Input((2, 3, 8, 8)), layers.ConvLSTM2D(2, 1, data_format="channels_first")])
    assert name_channels_first(model) == model.layers[0].name
    assert model(np.zeros((1, 2, 3, 8, 8))).shape == (1, 2, 8, 8)
