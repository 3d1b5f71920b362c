"""Samples that are no images: passed on as they are, or refused with the network's shape and the data's."""

import numpy as np
import pytest

from reflow_tf.data.as_stored import AsStored, spell_batch
from reflow_tf.data.loading import load_evaluation, load_sets
from reflow_tf.errors import InputError

SHAPES = [(640,), (128, 9), (28, 28), (2, 3, 4, 5)]


def save(tmp_path, x, name="data.npz", **arrays):
    np.savez(tmp_path / name, x=x, **arrays)
    return str(tmp_path / name)


def load(data, shape, eval_data=None):
    return load_sets(
        data,
        eval_data,
        preprocessing=AsStored(shape),
        num_classes=3,
        class_names_path=None,
        calibration_samples=8,
        batch_size=4,
        seed=0,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64, bool])
def test_numbers_arrive_as_they_are(tmp_path, shape, dtype):
    x = np.random.default_rng(0).integers(0, 200, (10, *shape)).astype(dtype)
    images = load_evaluation(
        save(tmp_path, x),
        preprocessing=AsStored(shape),
        num_classes=None,
        class_names_path=None,
        batch_size=4,
    )
    found = np.concatenate(list(images))
    assert found.dtype == np.float32 and images.sample_shape == shape and images.unit == "sample"
    np.testing.assert_array_equal(found, x.astype(np.float32))


def test_the_sets_share_no_sample(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (20, 3)).astype(np.float32)
    calibration, evaluation = load(save(tmp_path, x), (3,))
    held_out = {row.tobytes() for row in np.concatenate(list(evaluation))}
    assert not held_out & {row.tobytes() for row in np.concatenate(list(calibration))}
    assert calibration.num_dropped


def test_the_data_fixes_an_open_axis(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 50, 3))
    calibration, evaluation = load(save(tmp_path, x), (None, 3))
    assert calibration.sample_shape == evaluation.sample_shape == (50, 3)
    longer = save(tmp_path, x[:, :40] + 1, "longer.npz")
    with pytest.raises(InputError, match=r"of one shape.*Received: \(50, 3\) and \(40, 3\)"):
        load(save(tmp_path, x), (None, 3), longer)


@pytest.mark.parametrize(
    "x, shape, message",
    [
        (np.zeros((20, 28, 28, 1)), (28, 28), r"takes, \(n, 28, 28\).*Received: shape \(20, 28, 28, 1\)"),
        (np.zeros((20, 27, 28)), (28, 28), r"takes, \(n, 28, 28\).*Received: shape \(20, 27, 28\)"),
        (np.zeros((20, 5, 4)), (None, 3), r"takes, \(n, any, 3\).*Received: shape \(20, 5, 4\)"),
        (np.zeros(20), (3,), r"takes, \(n, 3\).*Received: shape \(20,\)"),
        (np.zeros(()), (3,), r"Received: shape \(\)"),
        (np.zeros((0, 3)), (3,), "at least one sample"),
        (np.zeros((20, 0, 3)), (None, 3), "at least one sample"),
        (np.zeros((20, 3), complex), (3,), "real numbers. Received: complex128"),
        (np.full((20, 3), "a"), (3,), "real numbers. Received: <U1"),
        (np.full((20, 3), np.datetime64("2020-01-01")), (3,), "real numbers. Received: datetime64"),
        (np.full((20, 3), None, object), (3,), "plain arrays"),
        (np.array([[0.0, np.nan]] * 20), (2,), r"NaN or infinity in x\[0\]"),
        (np.array([[0.0, 0.0]] * 19 + [[0.0, 1e300]]), (2,), r"NaN or infinity in x\[19\]"),
    ],
)
def test_bad_arrays(tmp_path, x, shape, message):
    with pytest.raises(InputError, match=message):
        load(save(tmp_path, x), shape)


@pytest.mark.parametrize("data", ["fashion_mnist", "tfds:mnist", "folder"])
def test_sources_of_images_have_nothing_for_it(class_folder, data):
    data = str(class_folder) if data == "folder" else data
    with pytest.raises(InputError, match=rf"inputs of shape \(n, 640\), so data must be an .npz.*Received: {data}"):
        load(data, (640,))


def test_labels_speak_of_samples(tmp_path):
    with pytest.raises(InputError, match="for each of the 20 samples of x"):
        load(save(tmp_path, np.zeros((20, 3)), y=np.zeros(19, int)), (3,))


def test_labels_may_be_true_and_false(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 3))
    _, evaluation = load(save(tmp_path, x, y=x[:, 0] > 0), (3,))
    assert set(evaluation.labels) == {0, 1}


def test_shapes_in_words():
    assert spell_batch((None, 9)) == "(n, any, 9)"


@pytest.mark.parametrize("shape", [(0,), ("a",), (2.5,), (-1,)])
def test_shapes_that_are_none(shape):
    with pytest.raises(InputError, match="whole numbers"):
        AsStored(shape)
