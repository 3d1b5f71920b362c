"""Layers of the user's own: from a module that is imported because the user names it, never because a file does."""

import pickle
import sys
import textwrap

import keras
import numpy as np
import pytest

from reflow_tf.errors import InputError
from reflow_tf.models.carrying import Address
from reflow_tf.models.custom_objects import register
from reflow_tf.models.loading import load_model

MODULE = """
import keras
from keras.layers import Dense

LIMIT = 3

class Gate(keras.layers.Layer):
    def call(self, x):
        return x * keras.ops.sigmoid(x)

def twice(x):
    return 2 * x
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current folder; afterwards nothing is known of it any more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before, known = set(sys.modules), dict(keras.saving.get_custom_objects())

    def write(name, text=MODULE):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(known)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("source", ["{}", "{}:Gate,twice", "{} : twice , Gate"])
def test_a_model_with_layers_and_functions_of_ones_own(module, tmp_path, suffix, source):
    name = module(f"own{len(source)}{suffix[1:]}")
    namespace = {}
    exec(MODULE, namespace)
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3, activation=namespace["twice"])(namespace["Gate"]()(inputs))
    model = keras.Model(inputs, outputs)
    path = tmp_path / f"m{suffix}"
    model.save(path)
    with pytest.raises(InputError, match=r"--custom_objects names, or by .+ is neither\. Received: "):
        load_model(str(path))
    loaded = load_model(str(path), custom_objects=source.format(name)).model
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_whoever_is_sent_the_model_knows_the_module(module, tmp_path):
    name, namespace = module("sent"), {}
    exec(MODULE, namespace)
    inputs = keras.Input((4,))
    keras.Model(inputs, namespace["Gate"]()(inputs)).save(tmp_path / "m.keras")
    address = pickle.loads(pickle.dumps(Address.of("m.keras", custom_objects=name)))
    assert type(address.load().layers[1]).__module__ == name


def test_what_a_module_only_imports_is_not_its_own(module):
    before = set(keras.saving.get_custom_objects())
    register(module("imports"))
    assert set(keras.saving.get_custom_objects()) - before == {"Gate", "twice"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", r"that Python can import \(No module named 'nowhere'\)\. Received: nowhere"),
        ("broken", r"that Python can import \(.*division by zero\)\. Received: broken"),
        ("plain", r"a module with objects of its own\. Received: plain"),
        ("plain:Gone", r"classes or functions of plain, which has no Gone\. Received: plain:Gone"),
        ("plain:LIMIT", r"classes or functions of plain, which has no LIMIT\. Received: plain:LIMIT"),
        (":Gate", r"must be MODULE or MODULE:NAME,NAME\. Received: :Gate"),
        ("plain:", r"must be MODULE or MODULE:NAME,NAME\. Received: plain:"),
        ("plain:A,,B", r"must be MODULE or MODULE:NAME,NAME\. Received: plain:A,,B"),
    ],
)
def test_what_is_none_is_one_error(module, source, message):
    module("broken", "1 / 0")
    module("plain", "from keras.layers import Dense\nLIMIT = 3")
    with pytest.raises(InputError, match=message):
        register(source)
