"""MLPerf Tiny's networks: maps as large as in the published files, and a run on data that are no images."""

import keras
import numpy as np
import pytest

from reflow_tf.config import PruneConfig
from reflow_tf.data.loading import load_sets
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.models.loading import load_model
from reflow_tf.models.zoo.architectures import ARCHITECTURES
from reflow_tf.models.zoo.mlperf_tiny import build_ds_cnn

NUM_RECORDINGS = 24


@pytest.mark.parametrize(
    ("name", "pooled"),
    # input of the AVERAGE_POOL_2D of the published vww_96_float.tflite and kws_ref_model.tflite, and of the
    # AveragePooling2D of pretrainedResnet.h5; the pool is as large as the map
    [("resnet8", (8, 8, 64)), ("mobilenet_v1_025", (3, 3, 256)), ("ds_cnn", (25, 5, 64))],
)
def test_the_last_map_is_as_large_as_in_the_published_files(name, pooled):
    architecture = ARCHITECTURES[name]
    average = architecture.build(architecture.image_size, architecture.num_classes).get_layer("average")
    assert (average.input.shape[1:], average.pool_size) == (pooled, pooled[:2])


@pytest.fixture(scope="module")
def keyword_weights(tmp_path_factory):
    keras.utils.set_random_seed(7)
    path = tmp_path_factory.mktemp("weights") / "keywords.keras"
    build_ds_cnn(49, 5).save(path)
    return str(path)


def write_recordings(path, dtype):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 256, (NUM_RECORDINGS, 49, 10, 1)).astype(dtype)
    np.savez(path, x=x, y=rng.integers(0, 5, NUM_RECORDINGS))
    return x


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_coefficients_reach_the_keyword_spotter_as_they_are(dtype, keyword_weights, tmp_path):
    x = write_recordings(tmp_path / "mfcc.npz", dtype)
    loaded = load_model("ds_cnn", weights=keyword_weights)
    assert loaded.num_classes == 5
    _, held_out = load_sets(
        str(tmp_path / "mfcc.npz"),
        None,
        preprocessing=loaded.preprocessing,
        num_classes=5,
        class_names_path=None,
        calibration_samples=4,
        batch_size=NUM_RECORDINGS,
        seed=0,
    )
    batch = next(iter(held_out))
    np.testing.assert_array_equal(batch, x[held_out.indices].astype(np.float32))
    assert loaded.model(batch).shape == (NUM_RECORDINGS - 4, 5)


@pytest.mark.slow
def test_a_keyword_spotter_is_pruned(keyword_weights, tmp_path):
    write_recordings(tmp_path / "mfcc.npz", "float32")
    job = JobConfig(
        model="ds_cnn",
        weights=keyword_weights,
        data=str(tmp_path / "mfcc.npz"),
        output_dir=str(tmp_path / "out"),
        prune=PruneConfig(target="storage", sparsity=0.6),
    )
    report = pipeline.run(job)
    assert report["accuracy"]["file"]["n"] == NUM_RECORDINGS // 2
    assert report["parity"]["top1_agreement"] == 1.0
    assert report["sparsity"]["achieved"] == pytest.approx(0.6, abs=1e-4)
    assert all(check["ok"] for check in report["masks_in_file"])
