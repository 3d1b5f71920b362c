import functools

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.statistics import gather
from reflow_tf.models.surgery import read_bits, write_masks
from reflow_tf.repair import impact
from reflow_tf.repair.contract import PrunedModel, read_weights, show_nothing
from reflow_tf.sparsity import quadratic
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.patterns import NM, Unstructured
from reflow_tf.sparsity.plan import PlannedLayer, PruningPlan

IMAGES = np.random.default_rng(0).normal(1, 2, (14, 6, 6, 4)).astype(np.float32)
BATCHES = [IMAGES[:8], IMAGES[8:]]
PRUNED = ("conv/kernel", "depthwise/kernel", "classes/kernel")


class Network(keras.Model):
    """Convolution, batch norm, depthwise, dense; and a layer that inference does not reach."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = layers.Conv2D(8, 1, name="conv"), layers.BatchNormalization(name="norm")
        self.depthwise = layers.DepthwiseConv2D(3, padding="same", name="depthwise")
        self.pool, self.classes = layers.GlobalAveragePooling2D(), layers.Dense(4, name="classes")
        self.unused = layers.Dense(4, name="unused")

    def build(self, shape):
        self.unused.build((None, 8))
        self.built = True

    def call(self, x, training=False):
        return self.classes(self.pool(self.depthwise(self.norm(self.conv(x), training=training))))


def prune(pattern, sparsity=0.5, paths=(*PRUNED, "unused/kernel")):
    keras.utils.set_random_seed(0)
    model = Network()
    model(IMAGES)
    kernels = find_kernels(model)
    dense = read_weights(model)
    fits = [spec.path for spec in kernels.specs if spec.path in paths and pattern.obstacle(spec) is None]
    plan = PruningPlan({path: PlannedLayer(pattern, sparsity) for path in fits})
    masks = build_masks(plan, {path: np.abs(kernel) for path, kernel in kernels.read().items()})
    write_masks(kernels, masks)
    model.norm.moving_mean.assign(model.norm.moving_mean + 1.0)  # what an earlier repair left
    return PrunedModel(model, masks, dense), plan


REPAIRS = {
    "woodfisher": lambda plan: impact.woodfisher,
    "obs": lambda plan: impact.obs,
    "chita": lambda plan: functools.partial(impact.chita, plan=plan),
}
each = pytest.mark.parametrize("name", list(REPAIRS))


def costs_of(pruned, name):
    """Path -> the quadratic that the repair minimizes, at the kernels as they are, on the dense model's statistics."""
    need = "input_gram" if name == "obs" else "fisher_blocks"
    kernels = find_kernels(pruned.model)
    now = kernels.read()
    with pruned.as_dense() as model:
        dense = kernels.read()
        found = gather(model, [spec for spec in kernels.specs if spec.path in PRUNED], [need], BATCHES)
    split = quadratic.split_groups if name == "obs" else quadratic.split_blocks
    return {
        path: quadratic.measure(need, matrices[need], split(now[path].astype(float) - dense[path], matrices[need]))
        for path, matrices in found.items()
    }


@each
def test_zeros_stay_zero_every_quadratic_falls_and_nothing_else_moves(name):
    pruned, plan = prune(Unstructured())
    kernels = find_kernels(pruned.model)
    before = costs_of(pruned, name)
    moving = {id(kernels.variables[path]) for path in PRUNED}
    others = [variable for variable in pruned.model.variables if id(variable) not in moving]
    bits = read_bits(others)
    outcome = REPAIRS[name](plan)(pruned, BATCHES, show_nothing)
    assert read_bits(others) == bits
    assert outcome.name == name and outcome.moved == ("kernel",)
    assert outcome.repaired == PRUNED and outcome.unreached == ("unused/kernel",)
    masks = outcome.masks if name == "chita" else pruned.masks
    for path, kernel in kernels.read().items():
        if path in masks:
            assert not kernel[~masks[path]].view(np.int32).any()
    after = costs_of(pruned, name)
    assert all(after[path] < 0.999 * before[path] for path in PRUNED)
    assert f"{name} moved the weights of 3 kernels, in the median by " in outcome.statement


@each
def test_it_starts_from_the_dense_weights_whatever_the_kernels_are(name):
    first, plan = prune(Unstructured())
    second, _ = prune(Unstructured())
    kernels = find_kernels(second.model)
    for path in PRUNED:
        kernels.variables[path].assign(3 * kernels.variables[path])
    for pruned in (first, second):
        REPAIRS[name](plan)(pruned, BATCHES, show_nothing)
    assert read_bits(first.model.variables) == read_bits(second.model.variables)


@pytest.mark.parametrize("pattern", [Unstructured(), NM(1, 4)])
def test_chita_keeps_the_pattern_and_the_count_and_says_how_many_changed_places(pattern):
    pruned, plan = prune(pattern, sparsity=0.75)
    outcome = impact.chita(pruned, BATCHES, show_nothing, plan=plan)
    swapped = 0
    for path, mask in pruned.masks.items():
        assert pattern.admits(outcome.masks[path])
        assert np.count_nonzero(outcome.masks[path]) == np.count_nonzero(mask)
        swapped += np.count_nonzero(outcome.masks[path] & ~mask)
    kept = sum(np.count_nonzero(mask) for mask in pruned.masks.values())
    assert swapped > 0 and f"Of {kept} kept weights, {swapped} took the places of others." in outcome.statement


@each
def test_known_statistics_are_used_and_none_gathered(name, monkeypatch):
    first, plan = prune(Unstructured())
    second, _ = prune(Unstructured())
    with first.as_dense() as model:
        specs = [spec for spec in find_kernels(model).specs if spec.path in first.masks]
        known = {impact.READS[name]: gather(model, specs, [impact.READS[name]], BATCHES)}
    outcome = REPAIRS[name](plan)(first, BATCHES, show_nothing)
    monkeypatch.setattr(impact, "gather", lambda *given: pytest.fail("gathered"))
    for _ in range(2):  # what is known is not used up
        assert REPAIRS[name](plan)(second, [], show_nothing, statistics=known).statement == outcome.statement
    assert read_bits(first.model.variables) == read_bits(second.model.variables)


def test_a_statistic_that_is_not_known_is_gathered():
    first, _ = prune(Unstructured())
    second, _ = prune(Unstructured())
    impact.obs(first, BATCHES, show_nothing)
    impact.obs(second, BATCHES, show_nothing, statistics={"fisher_blocks": {}})
    assert read_bits(first.model.variables) == read_bits(second.model.variables)


def interrupted():
    yield IMAGES
    raise KeyboardInterrupt


@each
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (interrupted, KeyboardInterrupt),
        (lambda: [], InputError),
        (lambda: [IMAGES, IMAGES[..., :2]], ValueError),  # as the network itself puts it
        (lambda: [IMAGES * np.nan], InputError),
    ],
)
def test_whatever_goes_wrong_while_looking_the_model_is_what_it_was(name, make, error):
    pruned, plan = prune(Unstructured())
    before = read_bits(pruned.model.variables)
    with pytest.raises(error):
        REPAIRS[name](plan)(pruned, make(), show_nothing)
    assert read_bits(pruned.model.variables) == before


@each
def test_an_interrupt_between_two_kernels_leaves_the_model_as_it_was(name, monkeypatch):
    pruned, plan = prune(Unstructured())
    before = read_bits(pruned.model.variables)
    calls = []

    def update(kernel, mask, statistics):
        calls.append(kernel)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.where(mask, kernel + 1, 0)

    monkeypatch.setattr(impact.updates, "obs" if name == "obs" else "woodfisher", update)
    with pytest.raises(KeyboardInterrupt):
        REPAIRS[name](plan)(pruned, BATCHES, show_nothing)
    assert len(calls) == 2 and read_bits(pruned.model.variables) == before


def test_progress_sees_the_pass():
    pruned, _ = prune(Unstructured())
    told = []
    impact.obs(pruned, BATCHES, lambda batches, description: (told.append(description), batches)[1])
    assert told == ["Gathering statistics for obs"]


def test_nothing_to_update_is_said():
    pruned, _ = prune(Unstructured(), paths=("unused/kernel",))
    assert impact.obs(pruned, BATCHES, show_nothing).statement.startswith("obs had nothing to update")
