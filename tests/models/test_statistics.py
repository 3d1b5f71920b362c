import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models import statistics
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.statistics import LEAST_IN_BLOCK, MOST_IN_BLOCK, NAMES, gather
from reflow_tf.sparsity.criteria import CRITERIA
from reflow_tf.sparsity.criteria import NEEDS as CRITERION_NEEDS
from reflow_tf.sparsity.updates import NEEDS, UPDATES

IMAGES = np.random.default_rng(0).normal(size=(9, 6, 6, 3)).astype(np.float32)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    stack = [
        layers.Conv2D(7, 3, strides=2, padding="same", name="conv"),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
        layers.Conv2D(8, 1, groups=1, name="pointwise"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4, activation="softmax", name="classes"),
    ]
    return keras.Sequential([keras.Input((6, 6, 3)), *stack])


def test_every_criterion_and_update_can_use_what_is_gathered(model):
    kernels = find_kernels(model)
    found = gather(model, kernels.specs, NAMES, [IMAGES[:5], IMAGES[5:]])
    assert {name for needs in (*NEEDS.values(), *CRITERION_NEEDS.values()) for name in needs} == NAMES
    for path, kernel in kernels.read().items():
        mask = np.random.default_rng(1).random(kernel.shape) < 0.5
        assert all(np.isfinite(criterion(kernel, found[path])).all() for criterion in CRITERIA.values())
        assert all(np.isfinite(update(kernel, mask, found[path])).all() for update in UPDATES.values())


def test_only_the_kernels_and_statistics_asked_for(model):
    spec = find_kernels(model).specs[2]
    found = gather(model, [spec], ["fisher_blocks"], [IMAGES], block_size=10)
    assert list(found) == [spec.path] and list(found[spec.path]) == ["fisher_blocks"]
    assert found[spec.path]["fisher_blocks"].shape == (6, 10, 10)


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "at least one calibration batch"), ([IMAGES * np.nan], "must be finite"), ([IMAGES[:, :5]], "the shape")],
)
def test_bad_batches(model, name, batches, message):
    with pytest.raises(InputError, match=message):
        gather(model, find_kernels(model).specs, [name], batches)


def test_unknown_names_block_sizes_and_too_much_memory_are_told(model, monkeypatch):
    specs = find_kernels(model).specs
    with pytest.raises(InputError, match=r"input_gram.*Received: colour"):
        gather(model, specs, ["colour"], [IMAGES])
    with pytest.raises(InputError, match="Received: 0"):
        gather(model, specs, NAMES, [IMAGES], block_size=0)
    sizes = {
        name: sum(found[name].nbytes for found in gather(model, specs, NAMES, [IMAGES]).values()) for name in NAMES
    }
    monkeypatch.setattr(statistics, "LIMIT_BYTES", sizes["input_gram"])
    gather(model, specs, ["input_gram"], [IMAGES])
    monkeypatch.setattr(statistics, "LIMIT_BYTES", sizes["input_gram"] - 1)
    with pytest.raises(InputError, match="input_gram of all the prunable kernels"):
        gather(model, specs, ["input_gram"], [IMAGES])
    for name, limit in (("input_gram", sizes["input_gram"] // 2), ("fisher_blocks", 4 * LEAST_IN_BLOCK)):
        monkeypatch.setattr(statistics, "LIMIT_BYTES", limit)
        with pytest.raises(InputError, match=rf"{name} of all the prunable kernels.*--prunable.*Received: 4 kernels"):
            gather(model, specs, [name], [IMAGES])


def test_blocks_of_the_fisher_are_as_wide_as_memory_allows(model, monkeypatch):
    specs = find_kernels(model).specs
    num_weights = sum(spec.num_weights for spec in specs)
    for limit, expected in (
        (statistics.LIMIT_BYTES, MOST_IN_BLOCK),
        (8 * 40 * num_weights, 40),
        (8 * 2 * num_weights, 0),
    ):
        monkeypatch.setattr(statistics, "LIMIT_BYTES", limit)
        if not expected:
            with pytest.raises(InputError, match="must fit into"):
                gather(model, specs, ["fisher_blocks"], [IMAGES])
        else:
            found = gather(model, specs, ["fisher_blocks"], [IMAGES])
            assert {each["fisher_blocks"].shape[-1] for each in found.values() if each} == {expected}
