import numpy as np
import pytest

from reflow_tf.errors import InputError
from reflow_tf.models.surgery import read_bits
from reflow_tf.repair import chain, choice
from reflow_tf.repair.chain import REPAIRS, run_chain
from reflow_tf.repair.choice import CANDIDATES, choose
from reflow_tf.repair.contract import RepairOutcome, show_nothing
from reflow_tf.repair.divergence import Divergence, measure_divergence
from reflow_tf.repair.holdout import is_held_out
from reflow_tf.task import Task

from .test_chain import BATCHES, IMAGES, prune

HELD_OUT = is_held_out(np.arange(len(IMAGES)))


def fit_and_judge(names):
    """The model, its masks and its divergence on the held-out images after a chain, by itself."""
    pruned, plan = prune()
    with pruned.as_dense() as model:
        dense = model(IMAGES[HELD_OUT]).numpy()
    repaired, _ = run_chain(
        names, pruned, [BATCHES[0][~HELD_OUT[:9]], BATCHES[1][~HELD_OUT[9:]]], show_nothing, plan=plan
    )
    return repaired, measure_divergence(pruned.model(IMAGES[HELD_OUT]).numpy(), dense)


def test_the_best_on_images_that_nothing_was_fitted_to_is_kept():
    pruned, plan = prune()
    now, (chosen, *outcomes) = choose(pruned, BATCHES, show_nothing, plan=plan)
    assert [each.chain for each in chosen.tried] == list(CANDIDATES) and chosen.name == "auto"
    winner = min(chosen.tried, key=lambda each: each.divergence).chain
    # The first goes on from nothing, the third from the second, the last from the pruned weights again.
    alone = {names: fit_and_judge(names.split(",")) for names in {*CANDIDATES[2:], winner}}
    for each in chosen.tried:
        if each.chain in alone:
            assert each.divergence == pytest.approx(alone[each.chain][1], rel=1e-3, abs=1e-6), each.chain
    assert [outcome.name for outcome in outcomes] == winner.split(",")
    assert f"auto chose {winner}: on {HELD_OUT.sum()} calibration inputs" in chosen.statement
    for found, expected in zip(now.read_weights(), alone[winner][0].read_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for path, mask in now.masks.items():
        np.testing.assert_array_equal(mask, alone[winner][0].masks[path])


def test_one_that_cannot_be_used_is_told_of(monkeypatch):
    def refuse(pruned, batches, progress, **options):
        raise InputError("It must be another. Received: this")

    def spoil(pruned, batches, progress, crew, references):
        pruned.model.get_layer("norm").moving_mean.assign(np.full(8, np.nan))
        return RepairOutcome("reflow", (), (), (), "")

    pruned, plan = prune()
    monkeypatch.setattr(chain, "REPAIRS", {**REPAIRS, "least_squares": refuse})
    _, (chosen, *_) = choose(pruned, BATCHES, show_nothing, plan=plan)
    assert [each.divergence is None for each in chosen.tried] == [False, True, True, False]
    assert "least_squares cannot be used (It must be another. Received: this)" in chosen.statement

    before = read_bits(pruned.model.variables)
    monkeypatch.setattr(chain, "REPAIRS", {**REPAIRS, "least_squares": refuse, "reflow": spoil})
    with pytest.raises(InputError, match=r"that can be used. Received: reflow cannot be used \(outputs that are not"):
        choose(pruned, BATCHES, show_nothing, plan=plan)
    assert read_bits(pruned.model.variables) == before


def test_the_simplest_wins_a_tie(monkeypatch):
    pruned, plan = prune()
    monkeypatch.setattr(choice, "_diverge", lambda pruned, judging, dense: 0.5)
    kernels = read_bits(pruned.model.trainable_variables)
    now, outcomes = choose(pruned, BATCHES, show_nothing, plan=plan)
    assert [outcome.name for outcome in outcomes] == ["auto", "reflow"]
    # The chains tried after it have moved weights and masks.
    assert read_bits(now.model.trainable_variables) == kernels and now.masks is pruned.masks


def test_too_few_images():
    pruned, plan = prune()
    with pytest.raises(InputError, match=r"every 8th .* Received: fewer"):
        choose(pruned, [IMAGES[:3]], show_nothing, plan=plan)


def test_ctrl_c_leaves_the_pruned_model(monkeypatch):
    pruned, plan = prune()
    before = read_bits(pruned.model.variables)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(choice, "_diverge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        choose(pruned, BATCHES, show_nothing, plan=plan)
    assert read_bits(pruned.model.variables) == before


def test_the_dense_network_is_observed_once_for_all_chains(monkeypatch):
    """Three of the candidates have REFLOW in them."""
    calls = []
    real = choice.observe_dense
    for module, name in ((choice, "observe_dense"), (chain.batchnorm, "observe_dense")):
        monkeypatch.setattr(module, name, lambda *given, **options: calls.append(1) or real(*given, **options))
    pruned, plan = prune()
    choose(pruned, BATCHES, show_nothing, plan=plan)
    assert len(calls) == 1


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.FIDELITY])
def test_divergence_of_batches_is_that_of_all(task):
    rng = np.random.default_rng(0)
    dense = rng.normal(1000.0 if task is Task.FIDELITY else 0.0, 2.0, (50, 6)).astype(np.float32)
    outputs = (dense + rng.normal(size=dense.shape)).astype(np.float32)
    found = Divergence(probabilities=False, task=task)
    for start in range(0, 50, 7):
        found.add(outputs[start : start + 7], dense[start : start + 7])
    if task is Task.FIDELITY:
        expected = (
            np.mean(np.square((outputs - dense).astype(np.float64))) / dense.astype(np.float64).var(axis=0).mean()
        )
    else:
        logs = [values - np.log(np.exp(values).sum(-1, keepdims=True)) for values in (outputs, dense)]
        expected = np.mean(np.sum(np.exp(logs[1]) * (logs[1] - logs[0]), axis=-1))
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert measure_divergence(outputs, dense, task) == pytest.approx(found.value, rel=1e-9)
