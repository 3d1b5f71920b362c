from importlib import resources

import numpy as np
import pytest

from reflow_tf.data.embedded import EmbeddedSource
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import SourceRequest
from reflow_tf.errors import InputError


def open_embedded(num_classes=10):
    return EmbeddedSource.open(SourceRequest("fashion_mnist", Preprocessing((64, 64)), num_classes, None))


def test_the_official_splits():
    calibration = open_embedded()
    evaluation = calibration.held_out()
    assert (len(calibration), len(evaluation)) == (2000, 5000)
    assert evaluation.held_out() is None
    np.testing.assert_array_equal(np.bincount(calibration.labels), [200] * 10)
    assert set(evaluation.labels) == set(range(10))
    assert calibration.image(0).shape == (28, 28, 1)
    assert calibration.image(0).dtype == np.uint8
    digests = [{part.digest(index) for index in range(len(part))} for part in (calibration, evaluation)]
    assert [len(found) for found in digests] == [2000, 5000]
    assert not digests[0] & digests[1]


def test_no_margin_is_cropped():
    source = open_embedded()
    adapted = source.adapt(Preprocessing((28, 28), 1, crop_fraction=0.875))
    np.testing.assert_array_equal(adapted(source.image(3)), source.image(3))
    assert source.adapt(Preprocessing((64, 64), scaling="tf"))(source.image(3)).shape == (64, 64, 3)


def test_network_with_fewer_classes():
    with pytest.raises(InputError, match=r"fashion_mnist must be in 0\.\.4"):
        open_embedded(5)


def test_the_notice_travels_with_the_images():
    notice = resources.files("reflow_tf.data").joinpath("fashion_mnist", "LICENSE").read_text("utf-8")
    assert "MIT License" in notice
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "shall be included in all copies" in notice
