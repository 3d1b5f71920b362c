"""What is forecast of a file against the file."""

import keras
import numpy as np
import pytest

from reflow_tf.export.forecast import Forecast
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import copy_model, write_masks
from reflow_tf.targets.storage import Storage
from reflow_tf.targets.xnnpack import XNNPack


@pytest.fixture(scope="module")
def model(strided):
    return keras.models.load_model(strided)


@pytest.fixture(scope="module")
def forecast(model):
    return Forecast(export_tflite(model, storage="dense", rewrite="exact").content, find_kernels(model).read())


def draw_masks(model, sparsity, seed=0):
    rng = np.random.default_rng(seed)
    return {s.path: rng.random(s.canonical_shape) >= sparsity for s in find_kernels(model).specs}


def export_pruned(model, masks, **settings):
    pruned = copy_model(model)
    write_masks(find_kernels(pruned), masks)
    return export_tflite(pruned, **settings).content


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_size_and_verdict_are_those_of_the_file(model, forecast, sparsity):
    masks = draw_masks(model, sparsity)
    content = export_pruned(model, masks, rewrite="exact", ballast="off")
    assert 0 <= forecast.measure_size(masks) - len(content) <= 80 * len(masks)
    foreseen, verdict = XNNPack().judge(forecast.foresee(masks)), XNNPack().judge(read_operators(content))
    assert (foreseen.eligible, foreseen.speedups) == (verdict.eligible, verdict.speedups)
    assert foreseen.possible_speedups == verdict.possible_speedups
    assert foreseen.eligible == (sparsity == 0.9)


def test_the_size_of_ballast_is_foreseen(model):
    dense = export_tflite(model, storage="dense", rewrite="exact").content
    forecast = Forecast(dense, find_kernels(model).read(), ballast_for=("browser",))
    masks = draw_masks(model, 0.6)
    contents = [
        export_pruned(model, masks, rewrite="exact", device="browser", ballast=ballast) for ballast in ("auto", "off")
    ]
    assert len(contents[0]) > len(contents[1])
    assert 0 <= forecast.measure_size(masks) - len(contents[0]) <= 80 * len(masks) + 1000


def test_without_masks_it_is_the_dense_file(model, forecast):
    assert forecast.unfound == ()
    assert forecast.measure_size({}) == len(export_tflite(model, rewrite="exact").content)
    assert forecast.foresee({}) == forecast.graph


def test_int8_has_scales_that_are_written_twice(model, images):
    calibration = [images(16, seed=1, size=32).astype(np.float32) / 127.5 - 1]
    settings = {"quantize": "int8", "calibration": calibration}
    masks = draw_masks(model, 0.9)
    forecast = Forecast(export_tflite(model, storage="dense", **settings).content, find_kernels(model).read())
    assert forecast.unfound == ()
    content = export_pruned(model, masks, **settings)
    assert 0 <= forecast.measure_size(masks) - len(content) <= 80 * len(masks)
    shrinking = {path for path in masks if forecast.shrinks(path)}
    assert "wide_2/kernel" in shrinking and "classes/kernel" not in shrinking, "LiteRT takes no sparse int8 Dense"


def test_zeros_that_are_there_already_count(model):
    masks = draw_masks(model, 0.8)
    pruned = copy_model(model)
    write_masks(find_kernels(pruned), masks)
    forecast = Forecast(export_tflite(pruned, storage="dense").content, find_kernels(pruned).read())
    everything = {path: np.ones_like(mask) for path, mask in masks.items()}
    assert forecast.measure_size(everything) == forecast.measure_size(masks)
    assert forecast.foresee(everything) == forecast.foresee(masks)
    assert 0 <= forecast.measure_size(everything) - len(export_tflite(pruned).content) <= 80 * len(masks)


def test_what_is_known_of_constants_is_told_by_path(forecast):
    prices = forecast.assign(Storage().price(forecast.graph).prices)
    assert list(prices) == [
        f"{name}/kernel" for name in ("stem", "spatial_1", "wide_1", "spatial_2", "wide_2", "classes")
    ]
    assert set(forecast.assign(XNNPack().price(forecast.graph).prices)) == {"wide_1/kernel", "wide_2/kernel"}


def test_a_kernel_that_is_not_in_the_file_counts_as_dense(forecast, model):
    other = {"elsewhere/kernel": np.ones((3, 1, 1, 7), np.float32)}
    found = Forecast(export_tflite(model, storage="dense").content, other)
    assert found.unfound == ("elsewhere/kernel",)
    masks = {"elsewhere/kernel": np.zeros((3, 1, 1, 7), bool)}
    assert found.measure_size(masks) == found.measure_size({}) and found.foresee(masks) == found.graph
    assert not found.shrinks("elsewhere/kernel")
