"""Channels chosen and removed, from a model to a narrower one."""

import dataclasses
import math
from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf import planning, pruning
from reflow_tf.crew import ALONE
from reflow_tf.errors import InputError
from reflow_tf.models.channels.groups import find_channel_groups
from reflow_tf.models.channels.narrowing import find_masks
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import read_bits, write_masks
from reflow_tf.narrowing.candidates import find_candidates, find_sizes
from reflow_tf.narrowing.choice import find_widest, weigh_channels
from reflow_tf.narrowing.proof import narrow_and_check
from reflow_tf.repair import least_squares
from reflow_tf.repair.contract import show_nothing
from reflow_tf.sparsity import patterns
from reflow_tf.sparsity.plan import PruningPlan
from reflow_tf.sparsity.widths import count_macs

CHANNEL = patterns.Channel()


def build(width=32, copies=False):
    """An inverted residual with a head; with `copies` every other hidden channel is the one before it again."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    stream = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.Conv2D(width, 1, use_bias=False, name="expand")(stream)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.Conv2D(8, 1, use_bias=False, name="project")(x)
    x = layers.Add()([stream, layers.BatchNormalization()(x)])
    outputs = layers.Dense(4, name="classes")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    if copies:
        for name, axis in (("expand", 3), ("depthwise", 2)):
            kernel = np.array(model.get_layer(name).kernel)
            odd, even = ([slice(None)] * axis + [slice(start, None, 2)] for start in (1, 0))
            kernel[tuple(odd)] = kernel[tuple(even)]
            model.get_layer(name).kernel.assign(kernel)
    return model


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)


def test_copies_of_channels_go_and_nothing_is_lost(samples):
    model = build(copies=True)
    config = reflow_tf.PruneConfig(
        pattern=CHANNEL, max_macs=0.75, channel_multiple=1, repair="least_squares", basis="kept"
    )
    before = read_bits(model.weights)
    result = reflow_tf.prune(model, config, samples)
    assert read_bits(model.weights) == before
    narrowing = result.report.narrowing
    assert narrowing.macs_after <= 0.75 * narrowing.macs_before
    hidden = next(group for group in narrowing.groups if group.readers == ("project/kernel",))
    assert (hidden.writers, hidden.size) == (("expand/kernel",), 32) and 16 <= hidden.width < 32
    assert result.model.get_layer("expand").filters == hidden.width
    dense, narrower = (np.array(each(samples, training=False)) for each in (model, result.model))
    np.testing.assert_allclose(narrower, dense, atol=0.05 * np.abs(dense).max())


@pytest.mark.parametrize(
    "zeros", [{"pattern": CHANNEL}, {"sparsity": 0.5, "target": "storage"}], ids=["alone", "zeros"]
)
def test_the_plan_says_which_channels_stay(samples, zeros):
    """By its word alone, the masks of the kernels as they were."""
    config = reflow_tf.PruneConfig(max_macs=0.6, channel_multiple=2, repair="none", **zeros)
    model = build()
    result = reflow_tf.prune(model, config, samples)
    plan = PruningPlan.from_json(result.plan.to_json())
    assert len(plan.layers) == (0 if zeros == {"pattern": CHANNEL} else len(result.masks))
    narrowed = [group for group in result.report.narrowing.groups if group.width < group.size]
    assert [(group.writers, len(group.kept)) for group in plan.channels] == [(g.writers, g.width) for g in narrowed]
    group = next(group for group in plan.channels if group.readers == ("project/kernel",))
    mask = result.removed["expand/kernel"]
    assert np.flatnonzero(mask.any(axis=(0, 1, 2))).tolist() == list(group.kept)


@pytest.mark.parametrize(("repair", "num_steps"), [("none", 1), ("reflow", 2)])
def test_that_no_repair_was_asked_for_is_said_once(samples, repair, num_steps):
    config = reflow_tf.PruneConfig(max_macs=0.8, sparsity=0.5, target="storage", channel_multiple=2, repair=repair)
    outcomes = reflow_tf.prune(build(), config, samples).report.repair
    assert [outcome.name for outcome in outcomes] == [repair] * num_steps


def test_masks_of_removed_channels_are_none_to_keep(samples):
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.8, channel_multiple=2, repair="none")
    result = reflow_tf.prune(build(), config, samples)
    with pytest.raises(InputError, match=r"Those of PruneResult\.removed, .* before it was narrowed.* Received: "):
        reflow_tf.keep_zeros(result.model, result.removed)
    assert all(mask.shape == find_kernels(build()).variables[path].shape for path, mask in result.removed.items())


@pytest.mark.parametrize("criterion", ["magnitude", "activation"])
def test_a_criterion_says_which_channels_go(samples, criterion):
    """Hidden channel 5 has next to no weights, and is first by each; what that costs is measured as always."""
    model = build()
    for name, axis in (("expand", 3), ("depthwise", 2), ("project", 2)):
        kernel = np.array(model.get_layer(name).kernel)
        kernel[(slice(None),) * axis + (5,)] *= 1e-2
        model.get_layer(name).kernel.assign(kernel)
    config = reflow_tf.PruneConfig(
        pattern=CHANNEL, max_macs=0.99, channel_multiple=1, repair="none", basis="kept", criterion=criterion
    )
    weighed = weigh_channels(model, [samples], show_nothing, criterion=criterion)
    number = next(i for i, each in enumerate(weighed.candidates) if each.reader_paths == ("project/kernel",))
    assert weighed.eliminations[number].order[0] == 5
    exact = weigh_channels(model, [samples], show_nothing).eliminations[number]
    assert exact.losses[8] <= weighed.eliminations[number].losses[8]
    assert reflow_tf.prune(model, config, samples).report.narrowing.groups


@pytest.mark.parametrize(
    "shape, down, up",
    [
        (
            (8, 8, 3),
            lambda: layers.Conv2D(12, 3, strides=2, padding="same", name="down"),
            lambda: layers.Conv2DTranspose(3, 4, strides=2, padding="same", name="up"),
        ),
        (
            (6, 5, 7, 2),
            lambda: layers.Conv3D(12, 3, padding="same", name="down"),
            lambda: layers.Conv3D(3, (1, 2, 3), strides=2, padding="same", name="up"),
        ),
        (
            (9, 5),
            lambda: layers.EinsumDense("abc,cd->abd", (9, 12), bias_axes="d", name="down"),
            lambda: layers.EinsumDense("abc,cd->abd", (9, 3), bias_axes="d", name="up"),
        ),
    ],
    ids=["transposed", "volumes", "einsum"],
)
def test_channels_go_whatever_reads_them(shape, down, up):
    """Twelve channels of which half are copies, before a layer which makes up for them but for its ridge."""
    keras.utils.set_random_seed(0)
    samples = np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, up()(layers.ReLU()(down()(inputs))))
    kernel = np.array(model.get_layer("down").kernel)
    kernel[..., 1::2] = kernel[..., ::2]
    model.get_layer("down").kernel.assign(kernel)
    config = reflow_tf.PruneConfig(
        pattern=CHANNEL, max_macs=0.55, channel_multiple=1, repair="least_squares", basis="kept", task="fidelity"
    )
    lost = []
    for repair in ("none", "least_squares"):
        result = reflow_tf.prune(model, dataclasses.replace(config, repair=repair), samples)
        assert result.model.get_layer("down").kernel.shape[-1] == 6
        dense, narrower = (np.array(each(samples, training=False)) for each in (model, result.model))
        lost.append(np.sqrt(np.mean(np.square(narrower - dense)) / np.mean(np.square(dense))))
    assert lost[0] > 0.3 and lost[1] < 0.1


def test_as_many_channels_go_as_it_takes(samples):
    """Parameters are what has to fit: the widest network is taken, and nothing removed where all of it fits."""
    full = build().count_params()

    def prune(most):
        config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs="auto", channel_multiple=1, repair="none")
        tried = []

        def complain(model):
            tried.append(model.count_params())
            return None if tried[-1] <= most else f"{tried[-1]} parameters where {most} are allowed"

        return reflow_tf.prune(build(), config, samples, complain=complain), tried

    result, tried = prune(0.7 * full)
    assert result.model.count_params() == max(count for count in tried if count <= 0.7 * full)
    assert min(count for count in tried if count > 0.7 * full) < 0.8 * full and len(tried) <= 14
    result, tried = prune(full)
    assert result.model.count_params() == full and tried == [full]
    with pytest.raises(InputError, match=r"as narrow as it can be, \d+ parameters where 5 are allowed"):
        prune(5)


@pytest.mark.parametrize("measure", ["weights", "values"])
def test_what_is_too_much_says_what_widths_are_paid_in(samples, measure):
    """Flash is full of weights, RAM of maps: with that for a price less is lost than with multiply-adds for one."""
    weighed = weigh_channels(build(), [samples], show_nothing)
    most = 0.7 * count_macs(weighed.counted[measure], [each.group.size for each in weighed.candidates])

    def complain(model):
        widths = [len(axis_of(model, each)) for each in weighed.candidates]
        return None if count_macs(weighed.counted[measure], widths) <= most else "too much"

    def axis_of(model, candidate):
        path, kernel = candidate.writer_paths[0], find_kernels(model).read()
        return kernel[path]

    best = find_widest(build(), weighed, complain, show_nothing, 1)
    widths = [group.width for group in best.groups]
    assert count_macs(weighed.counted[measure], widths) <= most
    paid_in_macs = max(
        (weighed.narrow(share, 1) for share in np.linspace(0.3, 0.99, 70)),
        key=lambda each: (count_macs(weighed.counted[measure], each.widths) <= most, -each.loss),
    )
    assert best.loss <= paid_in_macs.loss


def test_what_was_narrowed_in_vain_is_wide_again(samples):
    """Only one tensor is too large, as where RAM is short: no other group loses channels for it."""
    weighed = weigh_channels(build(), [samples], show_nothing)

    def complain(model):
        return "too much" if find_kernels(model).read()["expand/kernel"].shape[0] > 20 else None

    best = find_widest(build(), weighed, complain, show_nothing, 4)
    assert {group.writers: group.width for group in best.groups if group.width < group.size} == {("expand/kernel",): 20}


def test_sizes_are_those_of_the_tensors():
    """By hand: 8x8 maps of 3, 8, 32 (x4: expand, norm, relu, depthwise), 8 (x3), then 8 and 4 numbers."""
    model = build()
    candidates, _ = find_candidates(model)
    full = [each.group.size for each in candidates]
    assert count_macs(find_sizes(model, candidates), full) == 64 * (3 + 8 + 4 * 32 + 3 * 8) + 8 + 4
    hidden = next(i for i, each in enumerate(candidates) if each.reader_paths == ("project/kernel",))
    narrower = [16 if i == hidden else size for i, size in enumerate(full)]
    assert count_macs(find_sizes(model, candidates), narrower) == 64 * (3 + 8 + 4 * 16 + 3 * 8) + 8 + 4


def test_somebody_has_to_say_what_fits(samples):
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs="auto")
    with pytest.raises(InputError, match=r"max_macs='auto' needs `complain`.*Received: None"):
        reflow_tf.prune(build(), config, samples)


def test_what_earlier_calls_found_changes_no_result(samples, monkeypatch):
    """A share, a smaller one, and the first again with zeros on top: channels are weighed once, and removed once.

    What outputs are worth is found of the network that was given, and of the narrower one each time; signals are
    measured three times, of the narrower share but twice, and of the two last ones behind the channels.
    """
    narrow = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.8, channel_multiple=4, repair="least_squares")
    narrower = dataclasses.replace(narrow, max_macs=0.6)
    sparse = dataclasses.replace(narrow, pattern=patterns.Unstructured(), sparsity=0.5, target="storage")
    configs = [narrow, narrower, sparse, dataclasses.replace(sparse, sparsity=0.7)]
    alone = [reflow_tf.prune(build(), config, samples, evaluation=samples[:8]) for config in configs]
    calls = Counter()
    counted = ((planning, "weigh_channels"), (pruning, "narrow_and_check"), (pruning, "_measure_signal"))
    for module, name in (*counted, (least_squares, "gather_output_worth")):
        count_calls(monkeypatch, module, name, calls)
    known = pruning.Known()
    together = [reflow_tf.prune(build(), config, samples, evaluation=samples[:8], known=known) for config in configs]
    expected = {"weigh_channels": 1, "narrow_and_check": 2, "gather_output_worth": 1 + 2, "_measure_signal": 3 + 2 + 6}
    assert calls == expected
    for one, other in zip(alone, together, strict=True):
        assert read_bits(one.model.weights) == read_bits(other.model.weights)
        assert one.report.signals.keys() == other.report.signals.keys()
        assert [step.statement for step in one.report.repair] == [step.statement for step in other.report.repair]


def test_outputs_of_a_network_that_nothing_was_pruned_of_are_there_a_second_time(samples):
    plain = reflow_tf.PruneConfig(sparsity=0.0, repair="none", target="storage")
    known = pruning.Known()
    first, again = (reflow_tf.prune(build(), plain, evaluation=samples[:8], known=known) for _ in range(2))
    signals = [one.report.signals["repaired"] for one in (first, again)]
    assert len(signals[0].outputs) == 8
    np.testing.assert_array_equal(signals[0].outputs, signals[1].outputs)


@pytest.mark.parametrize("task", ["classification", "fidelity"])
def test_what_the_dense_network_said_is_known_where_it_is_compared_with(samples, task):
    """Of numbers outputs are compared in the end; of classes what each input was taken for is enough."""
    narrow = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.8, channel_multiple=4, repair="reflow", task=task)
    sparse = dataclasses.replace(narrow, pattern=patterns.Unstructured(), sparsity=0.5, target="storage")
    known = pruning.Known()
    results = [
        reflow_tf.prune(build(), config, samples, evaluation=samples[:8], known=known) for config in (narrow, sparse)
    ]
    alone = reflow_tf.prune(build(), sparse, samples, evaluation=samples[:8])
    (kept,) = known.narrowed.values()
    signals = [one.report.signals["dense"] for one in (*results, alone, kept)]
    if task == "fidelity":
        for signal in signals:
            np.testing.assert_array_equal(signal.outputs, signals[0].outputs)
        assert len(signals[0].outputs) == 8
    else:
        assert not any(signal.outputs.size for signal in signals)


def test_what_is_left_is_led_here_for_nobody_else_can_load_it(samples):
    led = []

    class Leading(type(ALONE)):
        def begin(self, work):
            led.append(work.carried.model.count_params())
            return super().begin(work)

    config = reflow_tf.PruneConfig(
        pattern=patterns.Unstructured(), sparsity=0.5, max_macs=0.6, target="storage", repair="least_squares"
    )
    model = build()
    result = reflow_tf.prune(model, config, samples, crew=Leading())
    assert led and set(led) == {model.count_params()} and result.model.count_params() < model.count_params()


def count_calls(monkeypatch, module, name, calls):
    function = getattr(module, name)

    def counted(*given, **options):
        calls[name] += 1
        return function(*given, **options)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("repair", ["none", "reflow", "least_squares", "least_squares,reflow", "auto"])
def test_any_repair_of_what_is_left(samples, repair):
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.6, channel_multiple=4, repair=repair)
    result = reflow_tf.prune(build(), config, samples, evaluation=samples)
    assert result.model.count_params() < build().count_params()
    assert set(result.report.signals) == {"dense", "pruned", "repaired"}
    widths = {group.width for group in result.report.narrowing.groups if group.width < group.size}
    assert widths and all(width % 4 == 0 for width in widths)


def test_the_narrower_model_is_a_plain_one(samples, tmp_path):
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.6, repair="least_squares")
    model = reflow_tf.prune(build(), config, samples).model
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(samples[:4]), model(samples[:4]))
    loaded.compile("sgd", "mse")
    assert np.isfinite(loaded.fit(samples, np.zeros((64, 4)), verbose=0).history["loss"][0])


def test_macs_are_those_of_the_layers(samples):
    narrowing = weigh_channels(build(), [samples], show_nothing).narrow(0.9)
    assert narrowing.macs_before == 64 * (27 * 8 + 8 * 32 + 9 * 32 + 32 * 8) + 8 * 4


def test_what_holds_channels_is_said():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 1, name="first")(inputs)
    x = layers.LayerNormalization(name="mean")(x)
    x = layers.Conv2D(6, 1, name="second")(x)
    x = layers.Conv2DTranspose(5, 3, dilation_rate=2, name="third")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="last")(x))
    found, held = find_candidates(model)
    assert [candidate.writers[0].path for candidate in found] == ["third/kernel"]
    assert {each.path: each.reason for each in held} == {
        "first/kernel": "goes into mean (LayerNormalization), of which it is not known what it does with channels",
        "second/kernel": "is read by third/kernel (Conv2DTranspose), for which there is no rule of least squares",
        "last/kernel": "is an output of the network",
    }


@pytest.mark.parametrize(
    ("prunable", "reason"),
    [
        ("stem|project|classes", "is left out by --prunable=stem|project|classes"),
        ("stem|expand|depthwise|classes", "goes with project/kernel, which is left out by --prunable="),
        ("stem|expand|project|classes", "goes with depthwise/kernel, which is left out by --prunable="),
    ],
    ids=["writer", "reader", "depthwise"],
)
def test_a_kernel_that_is_left_out_holds_its_channels(prunable, reason):
    """Given, taken and filtered ones: a layer that is protected keeps its whole shape."""
    found, held = find_candidates(build(), prunable)
    assert not any("expand/kernel" in candidate.writer_paths for candidate in found)
    assert next(each.reason for each in held if each.path == "expand/kernel").startswith(reason)


@pytest.mark.parametrize("prunable", ["target", "all"])
def test_no_target_minds_which_channels_leave(prunable):
    assert len(find_candidates(build(), prunable)[0]) == 2


@pytest.mark.parametrize(
    "zeros", [{"pattern": CHANNEL}, {"sparsity": 0.5, "target": "storage"}], ids=["alone", "zeros"]
)
def test_a_layer_can_be_protected(samples, zeros):
    """By what is left out; channels are weighed anew for another --prunable."""
    shared = {"max_macs": 0.8, "channel_multiple": 2, "repair": "none", **zeros}
    known, widths = pruning.Known(), []
    for prunable in ("expand|depthwise|project", "all"):
        config = reflow_tf.PruneConfig(prunable=prunable, **shared)
        result = reflow_tf.prune(build(), config, samples, known=known)
        widths.append(result.report.narrowing.widths)
        stem = result.model.get_layer("stem").filters
        assert (stem == 8) or prunable == "all"
    assert [len(each) for each in widths] == [1, 2]


@pytest.mark.parametrize(
    ("prunable", "message"),
    [
        ("nothing", r"needs channels that may go\. .*is left out by --prunable=nothing"),
        ("(", r"--prunable must be target, all, or a regular expression over layer paths\. Received: \("),
    ],
)
def test_what_protects_every_layer_is_refused(samples, prunable, message):
    with pytest.raises(InputError, match=message):
        reflow_tf.prune(build(), reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.5, prunable=prunable), samples)


SCALE = 0.5


class Halved(layers.Layer):
    def call(self, inputs):
        return inputs * 0.5


class Unnamed(layers.Layer):
    def __init__(self, factor):  # and without the name and dtype that Keras gives it back
        super().__init__()
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor


class Forgetful(layers.Layer):
    """Has a variable that a layer of its configuration has not."""

    def __init__(self, remembers=False, **options):
        super().__init__(**options)
        self.remembers = remembers

    def get_config(self):
        return {"name": self.name}

    def build(self, shape):
        if self.remembers:
            self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, inputs):
        return inputs * self.factor if self.remembers else inputs


def interrupted(barrier):
    """Two groups with something between them of which nothing is known."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 1, activation="relu", name="first")(inputs)
    x = layers.Conv2D(16, 1, activation="relu", name="held")(x)
    x = layers.Conv2D(16, 1, activation="relu", name="second")(barrier(x))
    return keras.Model(inputs, layers.Dense(4, name="classes")(layers.GlobalAveragePooling2D()(x)))


def split(x):
    return layers.Concatenate()(keras.ops.split(x, 2, axis=-1))


def remember(x):
    rows = layers.Reshape((64, 16))(x)
    sequence, state, _ = layers.LSTM(16, return_sequences=True, return_state=True, name="memory")(rows)
    return layers.Reshape((8, 8, 16))(layers.Add()([sequence, layers.Reshape((1, 16))(state)]))


@pytest.mark.parametrize(
    ("barrier", "kind"),
    [
        (split, "(Split)"),
        (remember, "(LSTM)"),
        (lambda x: layers.Lambda(lambda values: values * SCALE, name="scaling")(x), "(Lambda)"),
        (lambda x: Halved(name="halved")(x), "(Halved)"),
    ],
    ids=["split", "lstm", "lambda", "own"],
)
@pytest.mark.parametrize("repair", ["none", "least_squares"])
def test_what_is_not_known_holds_its_channels_and_no_others(samples, barrier, kind, repair):
    model = interrupted(barrier)
    found, held = find_candidates(model)
    assert [candidate.writers[0].path for candidate in found] == ["first/kernel", "second/kernel"]
    assert any(each.path == "held/kernel" and kind in each.reason for each in held), held
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.8, channel_multiple=2, repair=repair)
    result = reflow_tf.prune(model, config, samples, inplace=True)
    assert result.model.get_layer("held").filters == 16
    assert result.model.count_params() < interrupted(barrier).count_params()


@pytest.mark.parametrize(
    ("barrier", "message"),
    [
        (lambda x: Unnamed(0.5)(x), r"rebuildable with fewer channels; mask .*Received: unnamed\S* \(Unnamed\): "),
        (lambda x: Forgetful(True, name="old")(x), r"Received: old \(Forgetful\), which Keras builds with 0 variables"),
    ],
    ids=["configuration", "variables"],
)
def test_what_cannot_be_rebuilt_is_refused_before_the_long_work(samples, monkeypatch, barrier, message):
    monkeypatch.delattr(planning, "weigh_channels")
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.8, channel_multiple=2)
    with pytest.raises(InputError, match=message):
        reflow_tf.prune(interrupted(barrier), config, samples, inplace=True)


def test_a_network_of_which_nothing_may_go_is_refused(samples):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="only")(inputs))
    with pytest.raises(InputError, match=r"all stay: only/kernel is an output of the network"):
        reflow_tf.prune(model, reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.5), samples)


def test_a_subclassed_model_is_refused(samples):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(4, 1)

        def call(self, inputs):
            return self.conv(inputs)

    model = Own()
    model(samples[:1])
    with pytest.raises(InputError, match=r"--max_macs needs a functional or.*, without --max_macs\. Received: own"):
        reflow_tf.prune(model, reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.5), samples, inplace=True)


def test_a_budget_that_leaves_no_channels_is_refused(samples, monkeypatch):
    monkeypatch.delattr(planning, "weigh_channels")  # before the long work
    with pytest.raises(InputError, match=r"--max_macs must be at least 0\.\d+ here.*Received: 0\.05"):
        reflow_tf.prune(build(), reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.05), samples)


@pytest.mark.parametrize("max_macs", [0.9, "auto"])
@pytest.mark.parametrize("multiple", [32, 64])
def test_a_multiple_that_no_layer_has_room_for_is_refused(samples, monkeypatch, multiple, max_macs):
    monkeypatch.delattr(planning, "weigh_channels")  # before the long work
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=max_macs, channel_multiple=multiple)
    message = rf"--channel_multiple must be less than the 32 channels of expand/kernel, .*Received: {multiple}$"
    with pytest.raises(InputError, match=message):
        reflow_tf.prune(build(), config, samples, complain=lambda model: None)


@pytest.mark.parametrize(("target", "multiple"), [("xnnpack", 8), ("cortex_m", 4)])
def test_widths_are_multiples_of_what_the_target_wants(samples, target, multiple):
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.88, repair="none", target=target)
    widths = [each.width for each in reflow_tf.prune(build(24), config, samples).report.narrowing.groups]
    assert math.gcd(*widths) == multiple


def test_channels_are_not_chosen_without_inputs():
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.9, repair="none")
    with pytest.raises(InputError, match=r"--max_macs needs some\. Received: None"):
        reflow_tf.prune(build(), config)


def narrow_hidden(model, samples, masked=True):
    """Of the 32 hidden channels four stay, whether the masks say so or not."""
    position = next(i for i, group in enumerate(find_channel_groups(model)) if group.size == 32)
    kept = {position: np.arange(4)}
    if masked:
        write_masks(find_kernels(model), find_masks(find_kernels(model), find_channel_groups(model), kept))
    return narrow_and_check(model, kept, [samples])


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("place", [0, 63])
def test_a_model_that_is_not_what_its_masks_say_is_noticed(samples, scale, place):
    """However small outputs are, and in whichever of the inputs."""
    model = build()
    model.get_layer("classes").kernel.assign(scale * model.get_layer("classes").kernel)
    inputs = np.zeros_like(samples)
    inputs[place] = samples[place]
    with pytest.raises(AssertionError, match=r"fault of reflow_tf.* For 64 inputs outputs differ by"):
        narrow_hidden(model, inputs, masked=False)
    assert narrow_hidden(model, inputs).get_layer("expand").filters == 4


def test_outputs_that_are_all_zero_are_the_same(samples):
    model = build()
    model.get_layer("classes").kernel.assign(np.zeros((8, 4)))
    assert narrow_hidden(model, samples).get_layer("expand").filters == 4


def test_outputs_that_are_not_finite_are_not_the_same(samples):
    model = build()
    model.get_layer("classes").bias.assign(np.full(4, np.inf))
    with pytest.raises(AssertionError, match="differ by nan"):
        narrow_hidden(model, samples)


def test_a_model_that_leaves_its_size_open_is_refused(samples):
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 1)(layers.Conv2D(8, 1)(inputs))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    with pytest.raises(InputError, match=r"--image_size sets\. Received: .* \(None, None, 3\)"):
        reflow_tf.prune(model, reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.5), samples)


def test_a_network_that_predicts_no_classes_loses_what_its_readers_miss_least(samples):
    """Of half of the hidden channels the reader takes nothing: they go, although no gradient says so."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(1, 1, name="second")(x)
    model = keras.Model(inputs, layers.Flatten()(layers.GlobalAveragePooling2D()(x)))
    kernel = np.array(model.get_layer("second").kernel)
    kernel[:, :, ::2] = 0
    model.get_layer("second").kernel.assign(kernel)
    narrowing = weigh_channels(model, [samples], show_nothing).narrow(0.5, multiple=1)
    (kept,) = narrowing.kept.values()
    assert (kept % 2 == 1).all() and narrowing.groups[0].loss < 1e-9


def test_channels_that_a_nested_model_reads_stay_and_those_outside_go(samples):
    inner_input = keras.Input((8, 8, 16))
    inner = keras.Model(inner_input, layers.Conv2D(12, 1, name="deep")(inner_input), name="inner")
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 1, activation="relu", name="first")(inputs)
    x = layers.Conv2D(16, 1, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(inner(x))
    model = keras.Model(inputs, layers.Dense(4, name="classes")(x))
    found, held = find_candidates(model)
    assert [candidate.writers[0].path for candidate in found] == ["first/kernel", "inner/deep/kernel"]
    assert held[0].reason == "is read by inner/deep/kernel, which is inside another model or layer"
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.7, channel_multiple=2, repair="least_squares")
    narrower = reflow_tf.prune(model, config, samples).model
    assert narrower.get_layer("second").filters == 16 and narrower.count_params() < model.count_params()


def test_too_few_inputs_are_refused(samples):
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.7, repair="none")
    with pytest.raises(InputError, match=r"at least 4 calibration inputs\. Received: 3"):
        reflow_tf.prune(build(), config, samples[:3])


def test_inputs_that_are_not_finite_are_refused(samples):
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.7, repair="none")
    with pytest.raises(InputError, match="must be finite"):
        reflow_tf.prune(build(), config, np.full_like(samples, np.nan))


def test_four_inputs_are_enough(samples):
    config = reflow_tf.PruneConfig(pattern=CHANNEL, max_macs=0.7, channel_multiple=4, repair="none")
    assert reflow_tf.prune(build(), config, samples[:4]).report.narrowing.kept
