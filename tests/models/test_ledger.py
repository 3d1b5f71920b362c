"""What is kept between the steps of a network, and how much that is."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.models.execution import read_steps
from reflow_tf.models.ledger import Ledger, find_late_position, measure_held


def build():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 1)(inputs)
    x = layers.Add()([layers.ReLU()(x), x])
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def test_only_what_is_needed_is_kept():
    steps = read_steps(build())
    ledger = Ledger(steps, {steps.input: "image"})
    seen = []
    for step in steps:
        ledger.enter(step, step.operation.__class__.__name__)
        seen.append(list(ledger.values.values()))
    assert seen == [["Conv2D"], ["Conv2D", "ReLU"], ["Add"], ["GlobalAveragePooling2D"], ["Dense"]]


def test_a_ledger_begins_half_way_with_what_is_needed_from_there():
    steps = read_steps(build())
    convolved, activated = steps.steps[0].output, steps.steps[1].output
    ledger = Ledger(steps, {steps.input: 0, convolved: 1, activated: 2}, position=2)
    assert ledger.values == {convolved: 1, activated: 2} and steps.input not in ledger


def test_numbers_between_and_during_steps():
    held = measure_held(read_steps(build()), np.zeros((1, 4, 4, 2), np.float32))
    assert held.between == (32, 48, 96, 48, 3, 5)
    assert held.during == (80, 96, 144, 51, 8)


def shrinking(*sides):
    """A convolution of 4 channels to each side in turn, from 32 x 32 inputs of one channel."""
    inputs = keras.Input((32, 32, 1))
    x, before = inputs, 32
    for side in sides:
        x, before = layers.Conv2D(4, 1, strides=before // side, name=f"to_{side}_{before}")(x), side
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((32, 16, 8, 4), "to_4_8"), ((32, 8, 8), "to_8_8"), ((32, 16), None), ((16, 4), None)],
)
def test_late_is_where_all_that_comes_is_small(sides, expected):
    steps = read_steps(shrinking(*sides))
    found = find_late_position(measure_held(steps, np.zeros((1, 32, 32, 1), np.float32)).during, 7)
    assert (None if found is None else steps.steps[found].operation.name) == expected
