"""Models that wrap their one tensor, and names that TensorFlow refuses, are pruned, measured and exported like any."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import reflow_tf
from reflow_tf.errors import InputError
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.execution import read_steps
from reflow_tf.models.inference import infer, tensorflow_names
from reflow_tf.models.observation import run
from reflow_tf.repair import chain
from reflow_tf.repair.distillation import distill
from reflow_tf.runtimes.litert import LiteRT

IMAGES = np.random.default_rng(0).uniform(size=(24, 8, 8, 3)).astype(np.float32)


def build(wrap, name="model", conv="conv"):
    """Two networks of equal weights: one that takes and gives tensors as they are, and the same wrapped."""
    keras.utils.set_random_seed(0)
    entry = layers.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 1, name=conv)(entry)))
    outputs = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(entry, outputs), keras.Model(*wrap(entry, outputs), name=name)


WRAPS = {
    "tensors": lambda entry, output: (entry, output),
    "lists": lambda entry, output: ([entry], [output]),
    "dicts": lambda entry, output: ({"image": entry}, {"probs": output}),
    "a dict in": lambda entry, output: ({"image": entry}, output),
    "a dict out": lambda entry, output: (entry, {"probs": output}),
}
NAMES = ["my model", "größe", "_model", "-", "a:b"]
REPAIRS = ["none", "reflow", "moments", "obs", "chita", "woodfisher", "least_squares", "distill", "auto"]


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_one_tensor_in_whatever_it_is_wrapped(wrap):
    plain, wrapped = build(wrap)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (outputs,) = run(wrapped, [IMAGES])
        content = export_tflite(wrapped).content
    np.testing.assert_array_equal(outputs, next(run(plain, [IMAGES])))
    np.testing.assert_allclose(LiteRT(content).run(IMAGES), outputs, rtol=1e-4, atol=1e-5)
    steps = read_steps(wrapped)
    assert len(steps.steps) == 5


@pytest.mark.parametrize("repair", REPAIRS)
def test_every_repair_of_dicts_and_of_names_that_tensorflow_refuses(repair, monkeypatch):
    monkeypatch.setitem(chain.REPAIRS, "distill", functools.partial(distill, epochs=1))
    _, wrapped = build(WRAPS["dicts"], "_größe 1", conv="_conv 1")
    config = reflow_tf.PruneConfig(target="storage", repair=repair, sparsity=0.5)
    result = reflow_tf.prune(wrapped, config, IMAGES, evaluation=IMAGES[:8])
    assert (wrapped.name, result.model.name) == ("_größe 1", "_größe 1")
    assert list(result.plan.layers) == ["_conv 1/kernel", "head/kernel"]
    assert set(result.report.signals) == {"dense", "pruned", "repaired"}


@pytest.mark.parametrize("name", NAMES)
def test_names_matter_nowhere_in_the_file(name):
    model, renamed = (build(WRAPS["tensors"], called, called)[1] for called in ("model", name))
    content = export_tflite(renamed).content
    assert len(content) <= len(export_tflite(model).content) + 64
    np.testing.assert_array_equal(LiteRT(content).run(IMAGES), LiteRT(export_tflite(model).content).run(IMAGES))
    assert [layer.name for layer in renamed.layers][1] == renamed.name == name


def test_names_come_back_whatever_happens_and_legal_ones_never_go():
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(2, name="a b"), layers.ReLU(name="_fine")], name="_in")
    model = keras.Sequential([layers.Input((4,)), inner], name="_out")
    with pytest.raises(RuntimeError), tensorflow_names(model):
        assert [model.name, inner.name, *(layer.name for layer in inner.layers)] == ["x_out", "_in", "a_b", "_fine"]
        raise RuntimeError
    assert [model.name, inner.name, *(layer.name for layer in inner.layers)] == ["_out", "_in", "a b", "_fine"]


def test_a_layer_that_gives_one_tensor_in_a_dict():
    inner = keras.Model((entry := layers.Input((4,), name="x")), {"y": layers.Dense(3)(entry)}, name="inner")
    outer = layers.Input((4,))
    model = keras.Model(outer, layers.Dense(2)(inner(outer)["y"]))
    (nested, last) = read_steps(model)
    values = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(last.compute([nested.compute([values])]), model(values), rtol=1e-6)


def test_several_tensors_are_refused():
    entry = layers.Input((4,))
    model = keras.Model(entry, {"a": layers.Dense(2)(entry), "b": layers.Dense(2)(entry)})
    with pytest.raises(InputError, match=r"must have one output tensor\. Received: 2 of them"):
        infer(model, tf.zeros((1, 4)))
