"""Least squares: what it restores, what it leaves alone, and that it can be told from doing nothing."""

import contextlib
import errno
import itertools

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.crew import ALONE, Alone
from reflow_tf.errors import InputError
from reflow_tf.models.gram import MOST_READ
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import copy_model, write_masks
from reflow_tf.repair.batchnorm import recalibrate
from reflow_tf.repair.contract import PrunedModel, read_weights, show_nothing
from reflow_tf.repair.least_squares import least_squares
from reflow_tf.sparsity import patterns
from reflow_tf.sparsity.layers import Kind
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.plan import PlannedLayer, PruningPlan


def build(use_bias=False):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU(6)(layers.BatchNormalization()(layers.Conv2D(24, 3, padding="same", use_bias=use_bias)(inputs)))
    for _ in range(2):
        y = layers.ReLU(6)(layers.BatchNormalization()(layers.Conv2D(32, 1, use_bias=use_bias)(x)))
        y = layers.ReLU(6)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)))
        x = layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(24, 1, use_bias=use_bias)(y))])
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    recalibrate(model, [draw(0, 256)])
    return model


def draw(seed, count):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 2, 2, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (coarse + 0.3 * rng.normal(size=(count, 8, 8, 3))).astype(np.float32)


def prune(model, sparsity=0.7, pattern=None, choose=lambda specs: [s for s in specs if s.kind == Kind.POINTWISE_CONV]):
    pattern = pattern or patterns.Unstructured()
    duplicate = copy_model(model)
    kernels = find_kernels(duplicate)
    specs = choose(kernels.specs)
    plan = PruningPlan({s.path: PlannedLayer(pattern, sparsity) for s in specs})
    masks = build_masks(plan, {path: np.abs(kernel) for path, kernel in kernels.read().items()})
    pruned = PrunedModel(duplicate, masks, read_weights(duplicate))
    write_masks(kernels, masks)
    return pruned, plan


def lose(model, dense, seed=9):
    images = draw(seed, 128)
    target = dense(images, training=False).numpy()
    return float(np.mean((model(images, training=False).numpy() - target) ** 2) / target.var())


@pytest.mark.slow
def test_held_out_outputs_come_back_further_than_with_recalibration():
    model = build()
    pruned, plan = prune(model)
    recalibrated, _ = prune(model)
    recalibrate(recalibrated.model, [draw(1, 256)])
    outcome = least_squares(pruned, [draw(1, 256)], show_nothing, plan=plan)
    assert lose(pruned.model, model) < 0.5 * lose(recalibrated.model, model)
    assert set(pruned.masks) < set(outcome.repaired) and outcome.unreached == ()  # depthwise kernels besides
    kernels = find_kernels(pruned.model).read()
    for path, mask in outcome.masks.items():
        assert not kernels[path][~mask].any()
        assert np.count_nonzero(mask) == np.count_nonzero(pruned.masks[path])


def test_at_sparsity_zero_nothing_is_lost():
    model = build()
    pruned, plan = prune(model, sparsity=0.0)
    least_squares(pruned, [draw(1, 256)], show_nothing, plan=plan)
    assert lose(pruned.model, model) < 0.01


def build_decoder():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(24, 3, strides=2, padding="same")(inputs)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2DTranspose(16, 4, strides=2, padding="same")(x)))
    x = layers.Conv2DTranspose(3, 2, strides=2, name="last")(x)
    model = keras.Model(inputs, x)
    recalibrate(model, [draw(0, 256)])
    return model


def test_transposed_layers_are_refitted():
    """Those of a decoder: at sparsity 0 they stay what they are; pruned, they make up for what is missing."""
    model = build_decoder()
    losses = {}
    for sparsity in (0.0, 0.6):
        pruned, plan = prune(model, sparsity, choose=lambda specs: specs)
        losses[sparsity] = [lose(pruned.model, model)]
        outcome = least_squares(pruned, [draw(1, 256)], show_nothing, plan=plan)
        losses[sparsity].append(lose(pruned.model, model))
        assert set(outcome.repaired) == set(pruned.masks) and len(outcome.repaired) == 3
    assert losses[0.0][1] < 1e-6 and losses[0.6][1] < 0.5 * losses[0.6][0]


def build_activated(fused):
    """The same network with activations that are the layers' own, or layers by themselves."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 3))

    def add(layer, name):
        nonlocal x
        activate = keras.activations.get(name)
        if fused:
            layer.activation = activate
        x = layer(x)
        x = x if fused else layers.Activation(activate)(x)

    add(layers.Conv2D(24, 3, padding="same", bias_initializer="normal"), "relu")
    add(layers.Conv2D(32, 1, bias_initializer="normal"), "gelu")
    x = layers.BatchNormalization()(x)
    add(layers.Conv2D(24, 1, bias_initializer="normal"), "relu")
    x = layers.GlobalAveragePooling2D()(x)
    add(layers.Dense(10, bias_initializer="normal"), "softmax")
    model = keras.Model(inputs, x)
    recalibrate(model, [draw(0, 256)])
    return model


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_an_activation_of_a_layers_own_is_not_fitted_to(sparsity):
    models = {fused: build_activated(fused) for fused in (True, False)}
    weights = {}
    for fused, model in models.items():
        pruned, plan = prune(model, sparsity, choose=lambda specs: list(specs))
        least_squares(pruned, [draw(1, 128)], show_nothing, plan=plan)
        weights[fused] = read_weights(pruned.model)
        if sparsity == 0:
            for found, before in zip(weights[fused], read_weights(model), strict=True):
                np.testing.assert_allclose(found, before, rtol=1e-3, atol=1e-4)
    for together, apart in zip(weights[True], weights[False], strict=True):
        np.testing.assert_allclose(together, apart, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["nm:2,4", "block:4x1", "channel"])
def test_every_pattern_stays_one(text):
    pruned, plan = prune(build(), sparsity=0.5, pattern=patterns.parse(text))
    masks = least_squares(pruned, [draw(1, 64)], show_nothing, plan=plan).masks
    assert all(plan.layers[path].pattern.admits(mask) for path, mask in masks.items())


def test_a_layer_without_batch_norm_gets_its_mean_back_through_its_bias():
    model = build(use_bias=True)
    pruned, plan = prune(model, choose=lambda specs: specs[-1:])
    images = draw(1, 128)
    least_squares(pruned, [images], show_nothing, plan=plan)
    found, wanted = (m(images, training=False).numpy().mean(0) for m in (pruned.model, model))
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())


def test_batch_norms_are_spoken_of_where_one_moved():
    pruned, plan = prune(build(), choose=lambda specs: specs[:1])
    outcome = least_squares(pruned, [draw(0, 32)], show_nothing, plan=plan)
    assert outcome.statement.endswith(" Batch norms have the moments that the sweep met.")
    assert outcome.moved == ("kernel", "bias", "moving_mean", "moving_variance")


def test_what_is_not_pruned_and_has_no_pruned_layer_before_it_stays():
    model = build()
    pruned, plan = prune(model, choose=lambda specs: [s for s in specs if s.kind == Kind.POINTWISE_CONV][-1:])
    least_squares(pruned, [draw(1, 64)], show_nothing, plan=plan)
    changed = [
        v.path
        for v, w in zip(pruned.model.variables, pruned.dense_weights, strict=True)
        if not np.array_equal(np.array(v), w)
    ]
    (path,) = pruned.masks
    assert len(changed) == 3 and path in changed
    assert all(name == path or "moving" in name for name in changed)


@pytest.mark.slow
def test_a_kernel_too_wide_to_be_solved_for_keeps_its_mask_and_is_named():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((3, 3, 3))
    x = layers.ReLU()(layers.Conv2D(MOST_READ // 9 + 1, 1, name="narrow")(inputs))
    wide = layers.Conv2D(2, 3, name="wide")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(wide)))
    pruned, plan = prune(model, choose=lambda specs: specs)
    expected = find_kernels(pruned.model).read()["wide/kernel"]
    images = np.random.default_rng(3).normal(size=(8, 3, 3, 3)).astype(np.float32)
    outcome = least_squares(pruned, [images], show_nothing, plan=plan)
    assert outcome.unreached == ("wide/kernel",) and set(outcome.repaired) == {"narrow/kernel", "head/kernel"}
    np.testing.assert_array_equal(find_kernels(pruned.model).read()["wide/kernel"], expected)
    np.testing.assert_array_equal(outcome.masks["wide/kernel"], pruned.masks["wide/kernel"])


def test_it_starts_from_the_dense_network_whatever_came_before():
    model = build()
    (alone, plan), (after, _) = prune(model), prune(model)
    recalibrate(after.model, [10 * draw(2, 64)])
    for pruned in (alone, after):
        least_squares(pruned, [draw(1, 64)], show_nothing, plan=plan)
    for one, other in zip(alone.read_weights(), after.read_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_failed_sweep_leaves_the_model_as_it_was():
    pruned, plan = prune(build())
    before = pruned.read_weights()
    with pytest.raises(InputError, match="NaN or infinity"):
        least_squares(pruned, [np.full((8, 8, 8, 3), np.nan, np.float32)], show_nothing, plan=plan)
    assert all(np.array_equal(a, b) for a, b in zip(before, pruned.read_weights(), strict=True))


def test_batches_of_another_shape_are_refused():
    pruned, plan = prune(build())
    with pytest.raises(InputError, match=r"must have the shape \(None, 8, 8, 3\)\. Received: \(4, 9, 8, 3\)"):
        least_squares(pruned, [np.zeros((4, 9, 8, 3), np.float32)], show_nothing, plan=plan)


def test_no_batches_are_refused():
    pruned, plan = prune(build())
    with pytest.raises(InputError, match=r"at least one calibration batch\. Received: none"):
        least_squares(pruned, [], show_nothing, plan=plan)


@pytest.mark.slow
def test_views_of_the_images_help_the_late_layers(monkeypatch):
    keras.utils.set_random_seed(1)
    stack = [keras.Input((8, 8, 3))]
    for width, stride in [(32, 1), (64, 4), (64, 1), (64, 1)]:
        stack += [layers.Conv2D(width, 3, stride, padding="same"), layers.BatchNormalization(), layers.ReLU()]
    model = keras.Sequential([*stack, layers.GlobalAveragePooling2D(), layers.Dense(10)])
    recalibrate(model, [draw(0, 256)])
    lost = {0: 0.0, 3: 0.0}
    for count, seed in itertools.product(lost, (1, 2, 3)):  # one draw by itself can go either way on another CPU
        monkeypatch.setattr("reflow_tf.repair.least_squares.NUM_VIEWS", count)
        pruned, plan = prune(model, choose=lambda specs: specs[1:4])
        least_squares(pruned, [draw(seed, 24)], show_nothing, plan=plan)
        lost[count] += lose(pruned.model, model)
    assert lost[3] < 0.95 * lost[0], lost


def shrink_and_widen():
    """Large maps, then small ones with many channels: a network that has late layers."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((32, 32, 3))
    for width, stride in [(32, 2), (24, 4)]:
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3, stride, padding="same")(x)))
    for _ in range(2):
        y = layers.ReLU(6)(layers.BatchNormalization()(layers.Conv2D(32, 1, use_bias=False)(x)))
        y = layers.ReLU(6)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)))
        x = layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(24, 1, use_bias=False)(y))])
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture
def few_inputs_of_a_shard(monkeypatch):
    """Several shards, of which the first alone is for early layers."""
    for name in ("SHARD", "LARGE_SHARD"):
        monkeypatch.setattr(f"reflow_tf.repair.least_squares.{name}", 4)
    monkeypatch.setattr("reflow_tf.models.streaming.CHUNK", 4)
    monkeypatch.setattr("reflow_tf.repair.least_squares.EARLY_BYTES", 0)


@pytest.fixture(scope="module")
def first_weights():
    return []


@pytest.mark.parametrize(("memory_budget", "cut"), [(1_000_000_000, 24), (1_200_000, 24), (590_000, 7)])
def test_neither_memory_nor_batches_change_a_bit(few_inputs_of_a_shard, memory_budget, cut, first_weights):
    pruned, plan = prune(shrink_and_widen(), choose=lambda specs: specs)
    images = np.random.default_rng(0).normal(size=(24, 32, 32, 3)).astype(np.float32)
    batches = [images[start : start + cut] for start in range(0, 24, cut)]
    least_squares(pruned, batches, show_nothing, plan=plan, memory_budget=memory_budget)
    first_weights.append(pruned.read_weights())
    for one, other in zip(first_weights[0], first_weights[-1], strict=True):
        np.testing.assert_array_equal(one, other)


class Several(Alone):
    """Workers in this process, each with a state of its own, some of which die before their turn."""

    def __init__(self, num_workers, dying=0.0):
        super().__init__()
        self.num_workers, self._dying = num_workers, dying
        self.num_dead = 0

    @contextlib.contextmanager
    def begin(self, work):
        states, told, rng = {}, [], np.random.default_rng(0)

        class There:
            is_here = False

            @staticmethod
            def tell(news):
                told.append(news)

            @staticmethod
            def map(items, home):
                for item in items:
                    worker = home(item) % self.num_workers
                    if worker in states and rng.random() < self._dying:
                        states.pop(worker)[0].close()
                        self.num_dead += 1
                    state, heard = states.pop(worker, None) or (work.prepare(), 0)
                    for news in told[heard:]:
                        state.hear(news)
                    states[worker] = state, len(told)
                    yield from state([item])

        yield There
        for state, _ in states.values():
            state.close()


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "dying", "bundles"), [(3, 0.1, 512), (7, 0, 2)])
def test_it_is_the_same_whoever_leads_the_images(few_inputs_of_a_shard, monkeypatch, num_workers, dying, bundles):
    monkeypatch.setattr("reflow_tf.models.course.MOST_BUNDLES", bundles)
    images = np.random.default_rng(0).normal(size=(26, 32, 32, 3)).astype(np.float32)

    def repair(crew):
        pruned, plan = prune(shrink_and_widen(), choose=lambda specs: specs)
        least_squares(pruned, [images], show_nothing, plan=plan, crew=crew)
        return pruned.read_weights()

    crew = Several(num_workers, dying)
    for one, other in zip(repair(ALONE), repair(crew), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (crew.num_dead > 0) == (dying > 0)


def test_what_does_not_fit_into_memory_is_kept_on_disk_and_leaves_no_trace(
    few_inputs_of_a_shard, tmp_path, monkeypatch
):
    written = []
    save = np.savez
    monkeypatch.setattr(np, "savez", lambda file, **arrays: (written.append(file.name), save(file, **arrays)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pruned, plan = prune(shrink_and_widen(), choose=lambda specs: specs)
    images = np.random.default_rng(0).normal(size=(24, 32, 32, 3)).astype(np.float32)
    least_squares(pruned, [images], show_nothing, plan=plan, memory_budget=590_000)
    assert written and all(name.startswith(str(tmp_path)) for name in written) and not any(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_error_and_the_model_stays(few_inputs_of_a_shard, monkeypatch):
    def fail(file, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    pruned, plan = prune(shrink_and_widen(), choose=lambda specs: specs)
    before = pruned.read_weights()
    images = np.random.default_rng(0).normal(size=(24, 32, 32, 3)).astype(np.float32)
    with pytest.raises(InputError, match=r"must fit on disk .* raise --memory_budget.* Received: No space left"):
        least_squares(pruned, [images], show_nothing, plan=plan, memory_budget=590_000)
    assert all(np.array_equal(a, b) for a, b in zip(before, pruned.read_weights(), strict=True))


@pytest.mark.parametrize("memory_budget", [1000, 0, -1])
def test_a_memory_budget_without_room_for_a_shard_is_refused(memory_budget):
    pruned, plan = prune(build())
    told = rf"--memory_budget must be at least [\d,]+ for this network.* Received: {memory_budget:,}$"
    with pytest.raises(InputError, match=told):
        least_squares(pruned, [draw(1, 8)], show_nothing, plan=plan, memory_budget=memory_budget)


def test_channels_that_come_first_are_refused_and_the_model_stays():
    inputs = keras.Input((3, 6, 5))
    x = layers.Conv2D(7, 1, data_format="channels_first", name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D(data_format="channels_first")(x)))
    pruned, plan = prune(model, choose=list)
    before = pruned.read_weights()
    told = r"channels last.*data_format='channels_last'.* Received: layer 'first' with data_format='channels_first'"
    with pytest.raises(InputError, match=told):
        least_squares(pruned, [np.zeros((4, 3, 6, 5), np.float32)], show_nothing, plan=plan)
    assert all(np.array_equal(a, b) for a, b in zip(before, pruned.read_weights(), strict=True))


def test_images_of_several_sizes_are_refused():
    inputs = keras.Input((None, None, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 1, name="pointwise")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    pruned, plan = prune(model)
    batches = [np.zeros((4, size, size, 3), np.float32) for size in (8, 9)]
    with pytest.raises(InputError, match=r"must all have one shape .* Received: \(8, 8, 3\) and \(9, 9, 3\)"):
        least_squares(pruned, batches, show_nothing, plan=plan)
