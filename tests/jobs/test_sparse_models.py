"""Models that are sparse already: their zeros are counted, and stay."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.models.graph import find_kernels


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Folder with model.keras, four fifths of whose kernels are zero, and data.npz."""
    folder = tmp_path_factory.mktemp("sparse")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((12, 12, 1)),
            layers.Conv2D(16, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="classes"),
        ]
    )
    for kernel in find_kernels(model).variables.values():
        values = np.array(kernel)
        kernel.assign(np.where(np.abs(values) < np.quantile(np.abs(values), 0.8), 0, values))
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).uniform(size=(48, 12, 12, 1)).astype("float32"))
    return folder


def run(folder, out, **prune):
    config = PruneConfig(**{"target": "storage"} | prune)
    return pipeline.run(JobConfig(str(folder / "model.keras"), str(out), config, data=str(folder / "data.npz")))


def zeros_in(folder):
    kernels = find_kernels(keras.models.load_model(folder / "model.keras")).read()
    return {path: int(np.count_nonzero(kernel == 0)) for path, kernel in kernels.items()}


@pytest.mark.parametrize(
    "sparsity, repair", [(0, "reflow"), (0.3, "reflow"), (0.3, "least_squares"), (0.3, "obs"), (0.3, "chita")]
)
def test_zeros_are_those_of_the_weights_and_of_the_file(sparse, tmp_path, sparsity, repair):
    report = run(sparse, tmp_path / "out", sparsity=sparsity, repair=repair)
    before, after = zeros_in(sparse), zeros_in(tmp_path / "out")
    assert after == before
    layers = {layer["path"]: layer for layer in report["sparsity"]["layers"]}
    assert {path: layer["num_zeros"] for path, layer in layers.items()} == after
    assert {path: layer["num_zeros_before"] for path, layer in layers.items()} == before
    assert report["sparsity"]["achieved"] == report["sparsity"]["before"] == pytest.approx(0.8, abs=0.01)
    masked = {mask["path"]: mask["num_masked"] for mask in report["masks_in_file"]}
    assert masked == after and all(mask["ok"] for mask in report["masks_in_file"])
    assert sum(tensor["num_zeros"] for tensor in report["file"]["tensors"]) == sum(after.values())


def test_more_is_pruned_on_top(sparse, tmp_path):
    report = run(sparse, tmp_path / "out", sparsity=0.9)
    assert report["sparsity"]["achieved"] == pytest.approx(0.9, abs=1e-4)
    kept = [find_kernels(keras.models.load_model(f / "model.keras")).read() for f in (sparse, tmp_path / "out")]
    assert all(not kept[1][path][kernel == 0].any() for path, kernel in kept[0].items())


def test_zeros_of_kernels_that_are_not_pruned_count_for_the_model(sparse, tmp_path):
    report = run(sparse, tmp_path / "out", sparsity=0.3, prunable="conv")
    (layer,) = report["sparsity"]["layers"]
    assert layer["path"].startswith("conv")
    before = zeros_in(sparse)
    assert report["sparsity"]["achieved_model"] == sum(before.values()) / report["model"]["num_parameters"]


def test_a_kernel_that_came_empty_was_not_emptied(tmp_path, sparse):
    model = keras.models.load_model(sparse / "model.keras")
    model.get_layer("conv").kernel.assign(np.zeros((3, 3, 1, 16)))
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=np.load(sparse / "data.npz")["x"])
    report = run(tmp_path, tmp_path / "out", sparsity=0.3)
    assert not any("another allocation" in note for note in report["notes"])
