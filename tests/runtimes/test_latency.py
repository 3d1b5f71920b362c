import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reflow_tf.runtimes.latency import Spread, compare, measure_interleaved, summarize


class Recorded:
    """Costs one more each time, and writes down that it was its turn."""

    unit = "ms"

    def __init__(self, name, turns):
        self.name, self._turns, self._cost = name, turns, 0.0

    def measure(self):
        self._turns.append(self.name)
        self._cost += 1
        return self._cost


positive = arrays(np.float64, st.integers(1, 30), elements=st.floats(1e-3, 1e6))


def test_files_take_turns_and_the_order_turns_round():
    turns = []
    costs = measure_interleaved([Recorded(name, turns) for name in "abc"], rounds=2, warm_up=1)
    assert "".join(turns) == "abc" + "cba" + "abc"
    np.testing.assert_array_equal(costs, [[2, 3]] * 3)


def test_progress_sees_every_round():
    seen = []
    measure_interleaved([Recorded("a", [])], 3, 2, progress=lambda rounds: seen.extend(rounds) or rounds)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("costs", "median", "low", "high"),
    [([7], 7, 7, 7), ([3, 1], 2, 1.5, 2.5), ([5, 1, 3, 2, 4], 3, 2, 4), ([1, 1, 1, 100], 1, 1, 25.75)],
)
def test_medians_and_quartiles_by_hand(costs, median, low, high):
    assert summarize(np.array(costs, float)) == Spread(median, low, high)


def test_ratios_are_taken_round_by_round():
    # A machine twice as slow in every other round: the ratio of each pair is 2, and that of shuffled medians is not.
    slowness = np.array([1, 2, 1, 2, 1, 2])
    assert compare(8.0 * slowness, 4.0 * slowness) == Spread(2, 2, 2)
    assert compare(np.array([8.0, 9, 10]), np.array([1.0, 9, 5])) == Spread(2, 1.5, 5)


@given(positive)
def test_quartiles_cut_where_they_say(costs):
    spread = summarize(costs)
    assert costs.min() <= spread.low <= spread.median <= spread.high <= costs.max()
    assert np.mean(costs <= spread.median) >= 0.5 and np.mean(costs >= spread.median) >= 0.5
    assert np.mean(costs >= spread.low) >= 0.75 - 1 / len(costs) and np.mean(costs <= spread.high) >= 0.75 - 1 / len(
        costs
    )


@given(positive, st.floats(1e-3, 1e3))
def test_a_file_is_as_fast_as_itself_and_scales(costs, factor):
    assert compare(costs, costs) == Spread(1, 1, 1)
    np.testing.assert_allclose(compare(costs * factor, costs).median, factor, rtol=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_the_reciprocal_swaps_quartiles(seed):
    rng = np.random.default_rng(seed)
    baseline, costs = rng.uniform(1, 2, (2, 9))  # nine: each quartile is one of the ratios
    there, back = compare(baseline, costs), compare(costs, baseline)
    np.testing.assert_allclose([1 / there.median, 1 / there.high, 1 / there.low], [back.median, back.low, back.high])
