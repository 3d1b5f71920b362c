"""At which positions errors matter, by networks for which it can be worked out, and how it counts."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.execution import read_steps
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.ledger import measure_held
from reflow_tf.models.surgery import read_bits
from reflow_tf.repair.contract import PrunedModel, read_weights
from reflow_tf.repair.position_worth import PositionWorth, add_worth
from reflow_tf.task import Task

MAP = np.abs(np.random.default_rng(0).normal(size=(4, 5, 1))).astype(np.float32)
INPUTS = np.random.default_rng(1).normal(size=(21, 4, 5, 2)).astype(np.float32)


def build(heat):
    """Two layers that are looked at, the second of which has one position; `heat` is what the first one's count for."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 5, 2))
    x = layers.Conv2D(3, 1, activation="relu", name="first")(inputs) * heat
    return keras.Model(inputs, layers.Dense(6, name="second")(layers.GlobalAveragePooling2D()(x)))


def open_worth(model, task=Task.FIDELITY):
    kernels, steps = find_kernels(model), read_steps(model)
    pruned = PrunedModel(model, {}, read_weights(model), task)
    names = {spec.path.partition("/")[0]: spec for spec in kernels.specs}
    specs = {i: names[step.operation.name] for i, step in enumerate(steps) if step.operation.name in names}
    return PositionWorth(pruned, specs), specs, steps


@pytest.mark.parametrize("task", [Task.FIDELITY, Task.CLASSIFICATION])
def test_errors_count_by_how_far_they_move_the_prediction(task):
    """Behind a ReLU nothing passes where it is off: all outputs of a position count together."""
    model = build(MAP)
    model.get_layer("first").bias.assign([9.0, 9.0, 9.0])  # the ReLU passes all
    worth, specs, _ = open_worth(model, task)
    bits = read_bits(model.variables)
    found = worth(INPUTS, 64)
    assert set(found) == {step for step, spec in specs.items() if spec.path == "first/kernel"}
    (each,) = found.values()
    np.testing.assert_allclose(each, np.broadcast_to(MAP[..., 0] / MAP.mean(), (21, 4, 5)), rtol=1e-4)
    assert read_bits(model.variables) == bits


def test_it_is_the_dense_networks_whatever_the_model_holds():
    model = build(MAP)
    worth, _, _ = open_worth(model)
    (before,) = worth(INPUTS, 0).values()
    model.get_layer("first").kernel.assign(np.zeros((1, 1, 2, 3)))
    (after,) = worth(INPUTS, 0).values()
    np.testing.assert_array_equal(before, after)


def test_late_steps_are_asked_by_themselves_and_say_the_same():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4, 5, 2))
    for name in ("early", "late", "later"):
        x = layers.Conv2D(3, 3, activation="relu", padding="same", name=name)(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    _, specs, _ = open_worth(model)
    early, late, later = specs
    worth = PositionWorth(PrunedModel(model, {}, read_weights(model), Task.FIDELITY), specs, late)
    whole, rest = worth(INPUTS, 0, early), worth(INPUTS, 0, later)
    assert set(whole) == {early, late, later} and set(rest) == {late, later}
    for step, found in rest.items():
        np.testing.assert_array_equal(found, whole[step])


def test_where_nothing_counts_all_count_alike():
    worth, _, _ = open_worth(build(0 * MAP))
    (each,) = worth(INPUTS, 0).values()
    assert (each.numpy() == 1).all()


def test_gradients_that_are_not_finite_are_refused():
    worth, _, _ = open_worth(build(np.where(MAP.max() == MAP, np.inf, MAP)))
    with pytest.raises(InputError, match="must be finite"):
        worth(INPUTS, 0)


def test_it_takes_room_until_its_step_is_done():
    model = build(MAP)
    _, specs, steps = open_worth(model)
    held = measure_held(steps, INPUTS[:1])
    found = add_worth(held, specs)
    first, second = sorted(specs)
    more = [a - b for a, b in zip(found.between, held.between, strict=True)]
    assert more == [20 + 1] * (first + 1) + [1] * (second - first) + [0] * (len(more) - second - 1)
    assert [a - b for a, b in zip(found.during, held.during, strict=True)] == more[:-1]
