import dataclasses
import functools

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf import config
from reflow_tf.crew import ALONE
from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import read_bits, write_masks
from reflow_tf.repair import chain
from reflow_tf.repair.chain import REPAIRS, TAKES, run_chain
from reflow_tf.repair.contract import PrunedModel, read_weights, show_nothing
from reflow_tf.repair.impact import READS
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.patterns import Unstructured
from reflow_tf.sparsity.plan import PlannedLayer, PruningPlan

IMAGES = np.random.default_rng(0).normal(1, 2, (16, 6, 6, 4)).astype(np.float32)
BATCHES = [IMAGES[:9], IMAGES[9:]]


def prune(sparsity=0.5, batch_norms=True):
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 1, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x) if batch_norms else x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(3, activation="softmax", name="classes")(x))
    kernels, dense = find_kernels(model), read_weights(model)
    plan = PruningPlan({spec.path: PlannedLayer(Unstructured(), sparsity) for spec in kernels.specs})
    masks = build_masks(plan, {path: np.abs(kernel) for path, kernel in kernels.read().items()})
    write_masks(kernels, masks)
    return PrunedModel(model, masks, dense), plan


def test_names_in_the_configuration_are_those_of_the_table():
    assert set(config.REPAIRS) == set(REPAIRS) | set(config.ALONE)
    assert set(REPAIRS) >= set(TAKES) >= set(READS)


def test_the_order_is_the_one_given():
    one, plan = prune()
    other, _ = prune()
    assert [outcome.name for outcome in run_chain(("obs", "reflow"), one, BATCHES, show_nothing, plan=plan)[1]] == [
        "obs",
        "reflow",
    ]
    run_chain(("reflow", "obs"), other, BATCHES, show_nothing, plan=plan)
    np.testing.assert_array_equal(*(p.model.get_layer("conv").kernel.numpy() for p in (one, other)))
    given = [p.model.get_layer("norm")(p.model.get_layer("conv")(IMAGES)).numpy().mean((0, 1, 2)) for p in (one, other)]
    with one.as_dense() as model:
        dense = model.get_layer("norm")(model.get_layer("conv")(IMAGES)).numpy().mean((0, 1, 2))
    np.testing.assert_allclose(given[0], dense, rtol=1e-3, atol=1e-3)
    assert not np.allclose(given[1], dense, rtol=1e-2, atol=1e-2), "moments were taken before the weights moved"


def test_no_name_does_nothing():
    pruned, plan = prune()
    before = read_bits(pruned.model.variables)
    assert run_chain((), pruned, BATCHES, show_nothing, plan=plan) == (pruned, ())
    assert read_bits(pruned.model.variables) == before


def test_later_repairs_get_the_masks_that_hold_now(monkeypatch):
    pruned, plan = prune()
    pruned = dataclasses.replace(pruned, masks={path: ~mask for path, mask in pruned.masks.items()})  # the least ones
    seen = []

    def watch(given, batches, progress, crew):
        seen.append(given.masks)
        return chain.reflow(given, batches, progress)

    monkeypatch.setattr(chain, "REPAIRS", {**REPAIRS, "reflow": watch})
    now, outcomes = run_chain(("chita", "reflow"), pruned, BATCHES, show_nothing, plan=plan)
    assert seen == [outcomes[0].masks] and now.masks is outcomes[0].masks and now.model is pruned.model
    assert any((now.masks[path] != mask).any() for path, mask in pruned.masks.items())


def test_repairs_get_the_keywords_that_they_take(monkeypatch):
    pruned, plan = prune()
    seen = {}

    def watch(name):
        def repair(given, batches, progress, **keywords):
            seen[name] = keywords
            return chain.reflow(given, batches, progress)

        return repair

    names = ("woodfisher", "chita", "least_squares", "reflow")
    monkeypatch.setattr(chain, "REPAIRS", {name: watch(name) for name in names})
    run_chain(names, pruned, BATCHES, show_nothing, plan=plan, statistics={}, memory_budget=1)
    assert seen["woodfisher"] == {"statistics": {}} and seen["chita"] == {"plan": plan, "statistics": {}}
    assert seen["least_squares"] == {"plan": plan, "memory_budget": 1, "crew": ALONE}
    assert seen["reflow"] == {"crew": ALONE}


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_a_late_failure_undoes_all(monkeypatch, error):
    pruned, plan = prune()

    def fail(given, batches, progress, crew):
        raise error

    before = read_bits(pruned.model.variables)
    monkeypatch.setattr(chain, "REPAIRS", {**REPAIRS, "reflow": fail})
    with pytest.raises(error):
        run_chain(("obs", "reflow"), pruned, BATCHES, show_nothing, plan=plan)
    assert read_bits(pruned.model.variables) == before


def test_a_masked_weight_that_moves_is_our_failure(monkeypatch):
    pruned, plan = prune()

    def forget(given, batches, progress):
        outcome = chain.reflow(given, batches, progress)
        given.model.get_layer("conv").kernel.assign_add(np.ones((1, 1, 4, 8)))
        return dataclasses.replace(outcome, moved=("kernel",))

    before = read_bits(pruned.model.variables)
    monkeypatch.setattr(chain, "REPAIRS", {"forget": forget})
    with pytest.raises(AssertionError, match="the repair forget moved a masked weight of conv/kernel"):
        run_chain(("forget",), pruned, BATCHES, show_nothing, plan=plan)
    assert read_bits(pruned.model.variables) == before


@pytest.mark.parametrize("name", sorted(set(REPAIRS) - {"reflow", "moments"}))
def test_nothing_is_said_of_batch_norms_where_there_are_none(name, monkeypatch):
    monkeypatch.setitem(REPAIRS, "distill", functools.partial(REPAIRS["distill"], epochs=5))
    pruned, plan = prune(batch_norms=False)
    _, (outcome,) = run_chain((name,), pruned, BATCHES, show_nothing, plan=plan)
    assert outcome.repaired and "atch norm" not in outcome.statement
    assert not {"moving_mean", "moving_variance"} & set(outcome.moved)


def test_reflow_says_what_may_help_where_there_are_no_batch_norms():
    pruned, plan = prune(batch_norms=False)
    _, (outcome,) = run_chain(("reflow",), pruned, BATCHES, show_nothing, plan=plan)
    assert outcome.statement == (
        "REFLOW has nothing to restore: the model has no batch norm. What the pruned kernels lost it cannot bring "
        "back; the repair 'moments' may."
    )


def test_reflow_says_where_no_batch_norm_stands():
    pruned, plan = prune()
    _, (outcome,) = run_chain(("reflow",), pruned, BATCHES, show_nothing, plan=plan)
    assert outcome.statement.endswith(
        "Behind 1 of 2 pruned kernels stands no batch norm (classes/kernel): what these lost it cannot restore, and "
        "the repair 'moments' may."
    )
    covered = dataclasses.replace(pruned, masks={"conv/kernel": pruned.masks["conv/kernel"]})
    _, (outcome,) = run_chain(("reflow",), covered, BATCHES, show_nothing, plan=plan)
    assert outcome.statement == (
        "REFLOW re-estimated the moments of 1 batch norm, beside those of the dense network, and every weight is "
        "bit-identical."
    )
