import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.models.walking import find_batch_norms
from reflow_tf.signal import Signal, compare_signals, has_collapsed, measure_signal, rank_classes

RNG = np.random.default_rng(0)


def signal(predicted, num_classes, **variances):
    ranked = np.asarray(predicted)[:, None]
    return Signal({k: np.asarray(v, float) for k, v in variances.items()}, ranked, num_classes, 1.0)


def test_entropy_of_known_histograms():
    assert signal([0, 1, 2, 3], 4).entropy_bits == pytest.approx(2)
    assert signal([0, 1, 2, 3], 4).effective_classes == pytest.approx(4)
    assert signal([2, 2, 2], 4).entropy_bits == 0
    assert signal([2, 2, 2], 4).effective_classes == 1
    np.testing.assert_array_equal(signal([2, 2, 0], 4).predicted, [1, 0, 2, 0])


def test_ratio_by_hand():
    dense = signal([0], 2, a=[1.0, 3.0, 0.0], b=[0.0])
    pruned = signal([0], 2, a=[1.0, 0.02, 5.0], b=[1.0])
    first, second = compare_signals(pruned, dense)
    assert first.ratio == pytest.approx(6.02 / 4) and first.num_dead == 1
    np.testing.assert_allclose(first.channel_ratios, [1.0, 0.02 / 3, np.nan])
    assert second.ratio is None and second.num_dead == 0


def test_verdict():
    many, one = list(range(8)), [0] * 8
    healthy = {f"l{i}": [1.0] for i in range(8)}
    faded = {**healthy, "l7": [0.09]}
    dense = signal(many, 8, **healthy)
    assert not has_collapsed(dense, dense)
    assert has_collapsed(signal(one, 8, **healthy), dense)
    assert has_collapsed(signal(many, 8, **faded), dense)
    assert not has_collapsed(signal(many, 8, **{**healthy, "l6": [0.01]}), dense)
    assert not has_collapsed(signal(many, 8, **{**healthy, "l7": [0.11]}), dense)


def test_verdict_without_batch_norms_rests_on_the_predictions():
    assert not has_collapsed(signal([0, 1], 2), signal([0, 1], 2))
    assert has_collapsed(signal([0, 0], 2), signal([0, 1, 0, 1], 2)) is False  # 1 of 2 is not under half
    assert has_collapsed(signal([0] * 4, 4), signal([0, 1, 2, 3], 4))


def test_variances_are_those_of_the_outputs():
    inputs = RNG.normal(1, 2, (30, 4, 4, 3)).astype(np.float32)
    norm = layers.BatchNormalization(epsilon=0.0)
    model = keras.Sequential([keras.Input((4, 4, 3)), norm, layers.GlobalAveragePooling2D()])
    norm.moving_variance.assign([4.0, 1.0, 16.0])
    norm.gamma.assign([1.0, 2.0, 1.0])
    measured = measure_signal(model, [inputs[:20], inputs[20:]])
    expected = inputs.var((0, 1, 2)) * [1 / 4, 4, 1 / 16]
    np.testing.assert_allclose(measured.variances[norm.name], expected, rtol=1e-4)
    assert measured.ranked.shape == (30, 3) and measured.num_classes == 3


def test_the_order_is_that_of_execution():
    late, early = layers.BatchNormalization(name="late"), layers.BatchNormalization(name="early")

    class Backwards(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = late, early

        def call(self, x):
            return self.first(self.second(x))

    model = Backwards()
    model(np.zeros((1, 3), np.float32))
    assert [norm.path for norm in find_batch_norms(model)] == ["late", "early"]
    assert list(measure_signal(model, [np.zeros((2, 3), np.float32)]).variances) == ["early", "late"]


def test_ranks_break_ties_by_index_and_keep_five():
    np.testing.assert_array_equal(rank_classes(np.array([[1.0, 3, 3, 0]])), [[1, 2, 0, 3]])
    assert rank_classes(np.zeros((2, 7))).shape == (2, 5)


def test_ranks_of_a_map_keep_its_positions():
    outputs = np.random.default_rng(0).standard_normal((2, 3, 4, 6))
    ranked = rank_classes(outputs)
    assert ranked.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(ranked[..., 0], outputs.argmax(-1))
    measured = Signal({}, ranked, 6, 1.0)
    assert measured.predicted.sum() == 24
    shares = measured.predicted[measured.predicted > 0] / 24
    assert measured.entropy_bits == pytest.approx(-np.sum(shares * np.log2(shares)))


def test_a_call_of_somebodys_own_is_there_again_afterwards(settled):
    model, inputs = settled
    norm = model.get_layer("norm_1")
    own = norm.call
    norm.call = lambda *args, **options: own(*args, **options) * 2
    try:
        mine = norm.call
        measure_signal(model, [inputs])
        assert norm.call is mine
    finally:
        del norm.call
