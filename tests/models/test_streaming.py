"""Sums over shards are those over all inputs at once, wherever shards were left on the way."""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from reflow_tf.crew import ALONE
from reflow_tf.errors import InputError
from reflow_tf.models.course import Course
from reflow_tf.models.execution import CHUNK, read_steps
from reflow_tf.models.ledger import measure_held
from reflow_tf.models.sidebyside import Networks
from reflow_tf.models.streaming import Stream

SHARD = 64
NUM_INPUTS = 2 * SHARD + 9
WEIGHED = (1, 3, 4, 5)  # positions of steps
INPUTS = np.random.default_rng(0).normal(size=(NUM_INPUTS, 4, 4, 2)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Sum:
    """Of the only tensor before a step, in the pruned network, plain and by what inputs are worth, and of how many."""

    value: np.ndarray
    weighed: np.ndarray
    count: int

    def __add__(self, other):
        return Sum(self.value + other.value, self.weighed + other.weighed, self.count + other.count)


def build():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4, 4, 2))
    x = layers.ReLU()(layers.Conv2D(3, 1)(inputs))
    x = layers.ReLU()(layers.Conv2D(8, 3, padding="same")(x))
    return keras.Model(inputs, layers.Conv2D(2, 1)(layers.Conv2D(1, 1)(x)))


@dataclasses.dataclass(frozen=True)
class Leading:
    """A work, for this process."""

    stream: Stream

    def prepare(self):
        return self.stream


@contextlib.contextmanager
def open_course(batches=(INPUTS,), memory_budget=10**9, whole_from=6, vary=lambda images, number, view: images):
    steps = read_steps(build())
    networks = Networks(steps)

    def measure(position, ledger, worth):
        value = ledger[steps.steps[position].inputs[0]].pruned.numpy().astype(np.float64)
        assert (worth is None) == (position not in WEIGHED)
        of_each = np.ones(len(value)) if worth is None else worth.numpy()
        return Sum(value.sum(0), np.tensordot(of_each, value, 1), len(value))

    def weigh(inputs, first, position):
        assert first % SHARD == 0
        return {later: tf.convert_to_tensor(find_worth(inputs)) for later in WEIGHED if later >= position}

    held = measure_held(steps, INPUTS[:1])
    stream = Stream(networks, measure, batches, vary, weigh, whole_from, SHARD)
    with ALONE.begin(Leading(stream)) as site:
        yield Course(site, ALONE, networks, held, NUM_INPUTS, memory_budget, CHUNK, SHARD), stream


def find_worth(inputs):
    return np.abs(inputs).sum((1, 2, 3))


def expect(position, inputs=INPUTS, weights=None):
    model = build()
    found = inputs
    for layer in model.layers[1 : position + 1]:
        found = layer(found).numpy()
    return np.tensordot(np.ones(len(inputs)) if weights is None else weights, found.astype(np.float64), 1)


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4), st.sampled_from([45_000, 100_000, 10**9]), st.integers(0, 6)
)
def test_sums_are_those_over_all_inputs(positions, memory_budget, whole_from):
    with open_course([INPUTS[:50], INPUTS[50:]], memory_budget, whole_from) as (course, _):
        course.add(3)
        for position in sorted(positions):
            own, varied = course.gather(position)
            assert own.count == NUM_INPUTS and varied is None
            np.testing.assert_allclose(own.value, expect(position), rtol=1e-5, atol=1e-4)
            weights = find_worth(INPUTS) if position in WEIGHED else None
            np.testing.assert_allclose(own.weighed, expect(position, weights=weights), rtol=1e-5, atol=1e-2)


def test_views_are_summed_up_by_themselves_and_may_come_later():
    def negate(images, number, view):
        return (1 - 2 * view) * (-images if number == 1 else images)

    with open_course(vary=negate) as (course, _):
        course.add(1)
        assert course.gather(1)[0].count == SHARD
        course.add(3, 1)
        own, varied = course.gather(3)
    np.testing.assert_allclose(own.value, expect(3), rtol=1e-5, atol=1e-4)
    others = np.concatenate([INPUTS[:SHARD], -INPUTS[SHARD : 2 * SHARD], INPUTS[2 * SHARD :]])
    assert varied.count == NUM_INPUTS
    np.testing.assert_allclose(varied.value, expect(3, others), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("whole_from", [6, 5, 4, 2, 0])
@pytest.mark.parametrize(("memory_budget", "place", "num_files"), [(10**9, 4, 0), (45_000, 5, 2 * 9)])
def test_shards_are_left_at_the_last_place_that_fits_else_on_disk_at_the_narrowest(
    memory_budget, place, num_files, whole_from, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_course(memory_budget=memory_budget, whole_from=whole_from) as (course, stream):
        course.add(3, 2)
        first = course.gather(place)[1]
        assert {shard.position for shard in stream._shards.values()} == {place}
        assert len(list(tmp_path.rglob("*.npz"))) == num_files
        np.testing.assert_array_equal(first.value, course.gather(place)[1].value)
    assert not any(tmp_path.iterdir())


def test_batches_that_become_fewer_are_refused():
    class Shrinking:
        def __init__(self):
            self.left = 3

        def __iter__(self):
            self.left -= 1
            return iter([INPUTS[: SHARD * self.left]])

    with open_course(Shrinking()) as (course, _), pytest.raises(InputError, match="the same each time"):
        course.add(2)
        course.gather(0)
        course.add(3)
        course.gather(1)


def test_no_room_for_one_shard_is_refused():
    with pytest.raises(InputError, match=r"--memory_budget must be at least [\d,]+ .* Received: 1,000"):
        open_course(memory_budget=1000).__enter__()


def test_a_folder_for_files_that_is_not_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/nothing")
    refused = pytest.raises(InputError, match=r"must fit on disk .* Received: No such file .* at /proc/nothing")
    with open_course(memory_budget=45_000) as (course, _), refused:
        course.add(3, 1)
        course.gather(5)
