"""Batches from a function of the user's own: what it may yield, and what is said where it does not."""

import io
import itertools
import pickle
import sys

import numpy as np
import pytest
import tensorflow as tf

from reflow_tf.data import function as module_under_test
from reflow_tf.data.as_stored import AsStored, Part
from reflow_tf.data.function import FunctionSource
from reflow_tf.data.loading import load_sets
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import SourceRequest
from reflow_tf.errors import InputError

X = np.arange(10 * 4 * 5 * 3).reshape(10, 4, 5, 3).astype(np.uint8)
Y = np.arange(10) % 3
IMAGES = Preprocessing((4, 5), 3)
TWO = AsStored((9,), (Part("wide", (2, 3), "float32"), Part("ids", (3,), "int32")))


@pytest.fixture
def made(monkeypatch):
    """Makes a function known as made:give."""

    def known_as(give):
        module = type(sys)("made")
        module.give = give
        monkeypatch.setitem(sys.modules, "made", module)
        return "python:made:give"

    return known_as


def open_it(text, prepared=IMAGES):
    assert FunctionSource.accepts(text)
    return FunctionSource.open(SourceRequest(text, prepared, 3, None))


def generate():
    for start in range(0, 10, 4):
        yield X[start : start + 4], Y[start : start + 4]


@pytest.mark.parametrize(
    ("give", "labels"),
    [
        (generate, Y),
        (lambda: [X[:7], X[7:]], None),
        (lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(3), Y),
        (lambda: [(X, None)], None),
    ],
)
def test_what_it_yields_is_what_the_network_sees(made, give, labels):
    source = open_it(made(give))
    np.testing.assert_array_equal(np.stack([source.image(i) for i in range(len(source))]), X)
    assert source.image(0).dtype == np.uint8
    np.testing.assert_array_equal(source.labels, labels)
    assert source.name_of(3) == "x[3] of python:made:give"


@pytest.mark.parametrize("naming", [lambda a, b: {"wide": a, "ids": b}, lambda a, b: [a, b], lambda a, b: (a, b)])
def test_several_inputs_by_name_or_in_their_order(made, naming):
    rng = np.random.default_rng(0)
    wide, ids = rng.normal(size=(6, 2, 3)), rng.integers(0, 9, (6, 3))
    source = open_it(made(lambda: [(naming(wide[:2], ids[:2]), Y[:2]), (naming(wide[2:], ids[2:]), Y[2:6])]), TWO)
    np.testing.assert_allclose(source.images[:, :6], wide.reshape(6, 6), rtol=1e-6)
    np.testing.assert_array_equal(source.images[:, 6:], ids)
    np.testing.assert_array_equal(source.labels, Y[:6])


def test_nothing_is_held_in_memory(made):
    assert isinstance(open_it(made(generate)).images, np.memmap)


def test_it_is_split_like_any_other_data_and_read_again_where_it_is_unpickled(made):
    text = made(generate)
    calibration, evaluation = load_sets(
        *(text, None),
        preprocessing=IMAGES,
        num_classes=3,
        class_names_path=None,
        calibration_samples=4,
        batch_size=3,
        seed=0,
    )
    again = pickle.loads(pickle.dumps(evaluation))
    assert len(calibration) == 4 and len(evaluation) == 6
    np.testing.assert_array_equal(np.concatenate(list(again)), np.concatenate(list(evaluation)))


def fail():
    yield X
    raise RuntimeError("no camera")


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda: 3, r"something to pass over\. Received: int\)\. Received: python:made:give"),
        (list, r"at least one batch\. Received: none from python:made:give"),
        (fail, r"\(no camera\)\. Received: python:made:give"),
        (lambda: sys.exit(0), r"\(it ends the program, by sys\.exit\)\. Received: python:made:give"),
        (
            lambda: tf.data.Dataset.from_tensor_slices(X).batch(3).repeat(),
            r"it must end: leave repeat\(\) out\. Received: an infinite tf\.data\.Dataset",
        ),
        (lambda number: [X], r"missing 1 required positional argument"),
        (lambda: [X, X.astype(np.float32)], r"uint8 of shape \(n, 4, 5, 3\) in all batches.*Received: float32"),
        (lambda: [X, X[:, :2]], r"Received: uint8 of shape \(10, 2, 5, 3\)"),
        (lambda: [(X, Y), X], r"all batches must have x, y\. Received: x"),
        (lambda: [(X, Y[:4])], r"as many inputs each\. Received: x \(10, 4, 5, 3\), y \(4,\)"),
        (lambda: [(X, Y, Y)], r"beside y, a tuple for several inputs\. Received: a tuple of 3"),
        (lambda: [{"image": X}], r"a batch must have x\. Received: x_image"),
        (lambda: [X[0, 0, 0, 0]], r"Received: x \(\)"),
        (lambda: ["words"], r"Received: x \(\)"),
        (lambda: [np.array(["a", "b"])], r"x must be of real numbers\. Received: <U1"),
        (lambda: [X[:0]], r"at least one image"),
        (lambda: [X[:, :3]], r"height 4, width 5 and 3 channels.*Received: shape \(10, 3, 5, 3\) in python:made:give"),
        (lambda: [(X, Y + 1)], r"in 0\.\.2"),
    ],
)
def test_what_cannot_be_used_is_said(made, give, message):
    with pytest.raises(InputError, match=message):
        open_it(made(give))


def test_an_input_that_is_missing_is_named(made):
    with pytest.raises(InputError, match=r"several inputs must hold each .* Received: no x_ids and no x_1 in python"):
        open_it(made(lambda: [{"wide": np.zeros((2, 2, 3))}]), TWO)


def test_what_does_not_end_is_given_up(made, monkeypatch):
    monkeypatch.setattr(module_under_test, "MOST_INPUTS", 25)
    with pytest.raises(InputError, match=r"it must end\. Received: more than 25 inputs"):
        open_it(made(lambda: itertools.repeat(X)))


def test_a_full_disk_is_one_clear_error(made, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module_under_test.tempfile, "TemporaryFile", Full)
    with pytest.raises(InputError, match=r"must fit on disk, in TMPDIR\. Received: No space left on device at "):
        open_it(made(generate))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("python:made", "must be MODULE:FUNCTION"),
        ("python:", "must be MODULE:FUNCTION"),
        ("python:made:", "must be MODULE:FUNCTION"),
        ("python:made:take", "must name a function of made, which has no take"),
        ("python:made_up_module:give", "must name a module that Python can import"),
    ],
)
def test_a_function_that_is_not_there(made, text, message):
    made(generate)
    with pytest.raises(InputError, match=message):
        open_it(text)
