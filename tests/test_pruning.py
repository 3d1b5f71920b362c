"""The Python interface, as `import reflow_tf` gives it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import reflow_tf
from reflow_tf import planning, pruning
from reflow_tf.export.operators import read_operators
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.statistics import gather
from reflow_tf.models.surgery import read_bits
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.sparsity import patterns
from reflow_tf.sparsity.criteria import CRITERIA, NEEDS
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.targets.xnnpack import XNNPack

CONFIG = reflow_tf.PruneConfig(sparsity=0.6)


@pytest.fixture(scope="module")
def inputs(settled):
    return settled[1]


@pytest.fixture
def model(settled):
    return settled[0]


class Block(layers.Layer):
    """A convolution, its batch norm, and what a subclassed model has inside."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = layers.Conv2D(filters, 1, use_bias=False, name="conv")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], self.filters))
        self.built = True

    def call(self, x, training=False):
        return keras.ops.relu(self.norm(self.conv(x), training=training))

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


class Subclassed(keras.Model):
    def __init__(self, widths=(8, 24), **kwargs):
        super().__init__(**kwargs)
        self.widths = widths
        self.blocks = [Block(width, name=f"block_{depth}") for depth, width in enumerate(widths)]
        self.classes = layers.Dense(4, activation="softmax", name="classes")

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x, training=training)
        return self.classes(keras.ops.mean(x, (1, 2)))

    def get_config(self):
        return super().get_config() | {"widths": self.widths}


class Closed(Subclassed):
    """Nobody can build it again from its configuration."""

    def get_config(self):
        raise NotImplementedError


def build_subclassed(kind, inputs):
    keras.utils.set_random_seed(0)
    model = kind()
    model(inputs[:2])
    return model


def build_nested():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    inner = keras.Sequential([keras.Input((8, 8, 8)), layers.Conv2D(8, 1, name="deep"), layers.BatchNormalization()])
    x = layers.Conv2D(8, 1, name="flat")(image)
    x = inner(inner(x))
    return keras.Model(image, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def build_mixed(classifier):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return classifier()
    finally:
        keras.config.set_dtype_policy(before)


KINDS = {
    "subclassed": lambda classifier, inputs: build_subclassed(Subclassed, inputs),
    "nested": lambda classifier, inputs: build_nested(),
    "mixed precision": lambda classifier, inputs: build_mixed(classifier),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_model_becomes_a_file_that_computes_the_same(classifier, inputs, kind):
    model = KINDS[kind](classifier, inputs)
    before = read_bits(model.weights)
    result = reflow_tf.prune(model, CONFIG, inputs[:64], evaluation=inputs[64:])
    assert read_bits(model.weights) == before and type(result.model) is type(model)
    assert len(result.plan.layers) == 2 and len(result.report.repair[0].repaired) >= 1
    zeros = sum(mask.size - np.count_nonzero(mask) for mask in result.masks.values())
    assert zeros == round(0.6 * sum(mask.size for mask in result.masks.values()))
    kernels = find_kernels(result.model).read()
    for path, mask in result.masks.items():
        np.testing.assert_array_equal(kernels[path] != 0, mask)
    file = reflow_tf.export_tflite(result.model)
    expected = result.model(inputs[64:], training=False).numpy().astype(np.float32)
    tolerance = 5e-3 if kind == "mixed precision" else 1e-5
    np.testing.assert_allclose(LiteRT(file.content).run(inputs[64:]), expected, atol=tolerance)


def test_a_model_that_cannot_be_rebuilt_is_pruned_in_place(inputs):
    model = build_subclassed(Closed, inputs)
    before = read_bits(model.weights)
    with pytest.raises(reflow_tf.InputError, match=r"inplace=True. Received: Closed"):
        reflow_tf.prune(model, CONFIG, inputs)
    assert read_bits(model.weights) == before
    result = reflow_tf.prune(model, CONFIG, inputs, inplace=True)
    assert result.model is model
    for path, mask in result.masks.items():
        np.testing.assert_array_equal(find_kernels(model).read()[path] != 0, mask)
    content = reflow_tf.export_tflite(model).content
    np.testing.assert_allclose(LiteRT(content).run(inputs), model(inputs).numpy(), atol=1e-5)


def feed(kind, inputs):
    parts = np.array_split(inputs, 3)
    match kind:
        case "tensor":
            return tf.constant(inputs)
        case "list":
            return parts
        case "generator":
            return (part for part in parts)
        case "pairs":
            return [(part, np.zeros(len(part))) for part in parts]
        case "tf.data":
            return tf.data.Dataset.from_tensor_slices((inputs, np.zeros(len(inputs)))).batch(40)


@pytest.fixture(scope="module")
def of_array(settled):
    """What comes of the inputs as one array."""
    model, inputs = settled
    return reflow_tf.prune(model, CONFIG, inputs, evaluation=inputs)


@pytest.mark.parametrize("kind", ["tensor", "list", "generator", "pairs", "tf.data"])
def test_all_ways_of_giving_the_same_inputs(model, inputs, of_array, kind):
    """The moments of deeper layers depend on the sizes of the batches; those of the first do not."""
    result = reflow_tf.prune(model, CONFIG, feed(kind, inputs), evaluation=feed(kind, inputs))
    norms = [pruned.model.get_layer("norm_0") for pruned in (result, of_array)]
    np.testing.assert_allclose(norms[0].moving_variance, norms[1].moving_variance, rtol=1e-5)
    signals = [pruned.report.signals["dense"] for pruned in (result, of_array)]
    np.testing.assert_array_equal(signals[0].ranked, signals[1].ranked)


def test_the_signal_is_measured_at_each_step(model, inputs):
    report = reflow_tf.prune(model, CONFIG, inputs[:48], evaluation=inputs[48:]).report
    assert list(report.signals) == ["dense", "pruned", "repaired"]
    assert list(report.signals["dense"].variances) == ["norm_0", "norm_1", "norm_2"]
    assert set(report.seconds) == {"masks", "repair", "evaluate dense", "evaluate pruned", "evaluate repaired"}
    assert reflow_tf.prune(model, CONFIG, inputs).report.signals == {}


def test_progress_sees_every_pass(model, inputs):
    passes = []

    def progress(batches, description):
        passes.append((description, sum(len(batch) for batch in batches)))
        return batches

    reflow_tf.prune(model, CONFIG, inputs[:60], evaluation=inputs[60:], progress=progress)
    assert passes == [
        ("Evaluating the dense model", 36),
        ("Evaluating the pruned model", 36),
        ("Watching the dense batch norms", 60),
        ("Recalibrating", 60),
        ("Evaluating the repaired model", 36),
    ]


def test_defaults_and_no_repair(model, inputs):
    with pytest.raises(reflow_tf.InputError, match=r"needs calibration inputs.* Received: None"):
        reflow_tf.prune(model)
    result = reflow_tf.prune(model, reflow_tf.PruneConfig(repair="none"))
    assert [(step.name, step.repaired) for step in result.report.repair] == [("none", ())]
    for name in ("norm_0", "norm_1", "norm_2"):
        assert read_bits(result.model.get_layer(name).weights) == read_bits(model.get_layer(name).weights)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "magnitude"])
def test_criteria_that_calibration_informs(model, inputs, criterion):
    config = reflow_tf.PruneConfig(sparsity=0.6, criterion=criterion, repair="none")
    with pytest.raises(reflow_tf.InputError, match=rf"criterion '{criterion}' needs calibration inputs.* None"):
        reflow_tf.prune(model, config)
    before = read_bits(model.variables)
    result = reflow_tf.prune(model, config, inputs)
    assert read_bits(model.variables) == before and "statistics" in result.report.seconds
    kernels = find_kernels(model)
    specs = [spec for spec in kernels.specs if spec.path in result.masks]
    statistics = gather(model, specs, NEEDS[criterion], [inputs[:48], inputs[48:]])
    scores = {spec.path: CRITERIA[criterion](kernels.read()[spec.path], statistics[spec.path]) for spec in specs}
    for path, mask in build_masks(result.plan, scores).items():
        np.testing.assert_array_equal(result.masks[path], mask)


def test_a_criterion_and_a_pattern(model, inputs):
    config = reflow_tf.PruneConfig(criterion="activation", pattern=patterns.NM(2, 4))
    result = reflow_tf.prune(model, config, inputs)
    assert {mask.mean() for mask in result.masks.values()} == {0.5}


@pytest.mark.parametrize("repair", ["obs,reflow", "chita,reflow", "reflow,woodfisher", "least_squares,reflow", "auto"])
def test_chains_of_repairs(model, inputs, repair):
    result = reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.6, repair=repair), inputs)
    names = [outcome.name for outcome in result.report.repair]
    assert names == repair.split(",") if repair != "auto" else names[0] == "auto" and len(names) > 1
    kernels = find_kernels(result.model).read()
    for path, mask in result.masks.items():
        assert not kernels[path][~mask].any() and 1 - mask.mean() == result.plan.layers[path].sparsity


def test_masks_are_those_that_the_repair_chose(model, inputs):
    """CHITA turns masked weights back on: what is reported must be what is in the model."""
    plain = reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.6, repair="none"), inputs)
    moved = reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.6, repair="chita"), inputs)
    assert any((plain.masks[path] != moved.masks[path]).any() for path in plain.masks)
    for path, mask in moved.masks.items():
        np.testing.assert_array_equal(find_kernels(moved.model).read()[path] != 0, mask)


def test_every_variable_that_is_no_moment_and_not_masked_stays(model, inputs):
    result = reflow_tf.prune(model, CONFIG, inputs)
    for before, after in zip(model.weights, result.model.weights, strict=True):
        if "moving" not in before.path and before.path not in result.masks:
            np.testing.assert_array_equal(before.numpy(), after.numpy())
    for path, mask in result.masks.items():
        before, after = find_kernels(model).read()[path], find_kernels(result.model).read()[path]
        np.testing.assert_array_equal(after, np.where(mask, before, 0))


def test_a_shared_kernel_is_pruned_once(classifier, inputs):
    result = reflow_tf.prune(build_nested(), CONFIG, inputs)
    assert sorted(path.split("/")[-2] for path in result.masks) == ["deep", "flat"]


@pytest.mark.parametrize("data", [np.zeros((4, 8, 8)), np.zeros((4, 6, 8, 3)), [np.zeros((4, 8, 8, 1))]])
def test_inputs_that_do_not_fit(model, data):
    before = read_bits(model.weights)
    with pytest.raises(reflow_tf.InputError, match=r"must have the shape \(None, 8, 8, 3\). Received: \(4, "):
        reflow_tf.prune(model, CONFIG, data)
    assert read_bits(model.weights) == before


def test_models_with_several_inputs(inputs):
    first, second = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(layers.Add()([first, second])))
    with pytest.raises(reflow_tf.InputError, match=r"Batches for two must have the shape \(None, 384\)"):
        reflow_tf.measure_signal(keras.Model([first, second], pooled, name="two"), inputs)


@pytest.mark.parametrize("data", [np.full((4, 8, 8, 3), np.nan), np.zeros((0, 8, 8, 3)), [], "images", 3])
def test_inputs_that_are_none(model, data):
    with pytest.raises(reflow_tf.InputError, match="Received: "):
        reflow_tf.prune(model, CONFIG, data)


def test_weights_that_are_no_numbers(classifier, inputs):
    model = classifier()
    model.get_layer("norm_1").moving_mean.assign(np.full(24, np.inf))
    with pytest.raises(reflow_tf.InputError, match=r"in layer 'norm_1', variable 'moving_mean' is not. Received: 24"):
        reflow_tf.prune(model, CONFIG, inputs)


def test_a_model_that_was_never_built(inputs):
    with pytest.raises(reflow_tf.InputError, match=r"must be built.* Received: subclassed"):
        reflow_tf.prune(Subclassed(name="subclassed"), CONFIG, inputs)


def test_a_pattern_that_does_not_fit_leaves_a_model_in_place_as_it_was(inputs):
    model = build_subclassed(Subclassed, inputs)
    before = read_bits(model.weights)
    with pytest.raises(reflow_tf.InputError, match="Received: 3 input channels"):
        reflow_tf.prune(model, reflow_tf.PruneConfig(pattern=patterns.NM(2, 4)), inputs, inplace=True)
    assert read_bits(model.weights) == before


def test_recalibrate_works_on_a_copy(model, inputs):
    before = read_bits(model.weights)
    other = inputs[:32] * 0.5
    recalibrated = reflow_tf.recalibrate(model, other, batch_size=8)
    assert read_bits(model.weights) == before and recalibrated is not model
    outputs = keras.Model(model.input, model.get_layer("conv_0").output)(other).numpy()
    norm = recalibrated.get_layer("norm_0")
    np.testing.assert_allclose(norm.moving_mean, outputs.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, outputs.var((0, 1, 2)), rtol=1e-5)


def test_recalibrate_in_place_and_as_the_literature_does(classifier, inputs):
    model = classifier()
    assert reflow_tf.recalibrate(model, inputs, mode="moving_average", momentum=0.9, inplace=True) is model
    batches = np.array_split(inputs, 2)
    outputs = [keras.Model(model.input, model.get_layer("conv_0").output)(batch).numpy() for batch in batches]
    mean = 0.0
    for batch in outputs:
        mean = 0.9 * mean + 0.1 * batch.mean((0, 1, 2))
    np.testing.assert_allclose(model.get_layer("norm_0").moving_mean, mean, rtol=1e-4, atol=1e-6)


def test_recalibrate_beside_the_dense_network_is_what_prune_does(model, inputs):
    masked = reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.6, repair="none"), inputs).model
    expected = reflow_tf.prune(model, CONFIG, inputs).model
    found = reflow_tf.recalibrate(masked, inputs, dense=model)
    assert read_bits(found.variables) == read_bits(expected.variables)
    assert read_bits(reflow_tf.recalibrate(masked, inputs).variables) != read_bits(expected.variables)


def test_recalibrate_needs_the_network_that_was_pruned(model, inputs):
    other = keras.Sequential([keras.Input(model.input_shape[1:]), layers.BatchNormalization(name="another")])
    with pytest.raises(reflow_tf.InputError, match=r"dense must be the network before it was pruned.*Received: "):
        reflow_tf.recalibrate(model, inputs, dense=other)


def test_recalibrate_claims_no_success_without_batch_norms(classifier, inputs):
    with pytest.raises(reflow_tf.InputError, match=r"nothing to restore"):
        reflow_tf.recalibrate(classifier(batch_norms=False), inputs)


def test_measure_signal_gives_what_the_model_predicts(model, inputs):
    signal = reflow_tf.measure_signal(model, inputs, batch_size=10)
    predicted = model(inputs, training=False).numpy().argmax(-1)
    np.testing.assert_array_equal(signal.predicted, np.bincount(predicted, minlength=4))


def test_the_public_names():
    assert set(dir(reflow_tf)) == set(reflow_tf.__all__)
    assert all(getattr(reflow_tf, name) is not None for name in reflow_tf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prune_model'"):
        _ = reflow_tf.prune_model
    assert issubclass(reflow_tf.InputError, ValueError)


def test_a_budget_of_speed_without_a_file(strided, images):
    """The library exports the dense file by itself."""
    config = reflow_tf.PruneConfig(min_speedup=1.3, allocation="uniform", repair="none")
    result = reflow_tf.prune(keras.models.load_model(strided), config)
    file = reflow_tf.export_tflite(result.model, rewrite="exact")
    verdict = XNNPack().judge(read_operators(file.content))
    assert verdict.eligible and result.report.budget.estimate >= 1.3


def test_auto_leaves_alone_what_costs_nothing(strided, images):
    """The classifier may be pruned, but XNNPACK does not run it sparse: of the speed, zeros in it bring nothing."""
    config = reflow_tf.PruneConfig(min_speedup=1.3, allocation="auto", prunable="all", repair="none")
    inputs = images(24, seed=1, size=32).astype(np.float32) / 127.5 - 1
    plan = reflow_tf.prune(keras.models.load_model(strided), config, inputs).plan
    zeros = {path: layer.sparsity for path, layer in plan.layers.items()}
    # Which of the two wide layers hurts less is a matter of rounding, and may differ between machines.
    pruned = {path for path, sparsity in zeros.items() if sparsity}
    assert pruned and pruned <= {"wide_1/kernel", "wide_2/kernel"}


def test_a_model_that_nothing_happened_to_is_not_measured_again(settled, monkeypatch):
    model, inputs = settled
    seen = []
    measure = pruning._measure_signal
    monkeypatch.setattr(pruning, "_measure_signal", lambda *args: seen.append(1) or measure(*args))
    config = reflow_tf.PruneConfig(sparsity=0.0, repair="none", target="storage")
    signals = reflow_tf.prune(model, config, evaluation=inputs[:32]).report.signals
    assert len(seen) == 1 and signals["dense"] is signals["pruned"] is signals["repaired"]
    seen.clear()
    reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.5, repair="none", target="storage"), evaluation=inputs[:32])
    assert len(seen) == 2
    seen.clear()
    reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.0, target="storage"), inputs[32:], evaluation=inputs[:32])
    assert len(seen) == 2
    seen.clear()
    sparse = reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.5, repair="none", target="storage")).model
    reflow_tf.prune(
        sparse, reflow_tf.PruneConfig(sparsity=0.2, repair="none", target="storage"), evaluation=inputs[:32]
    )
    assert len(seen) == 1


def test_only_the_last_stage_that_was_measured_keeps_its_outputs(settled):
    model, inputs = settled
    config = reflow_tf.PruneConfig(sparsity=0.5, target="storage")
    signals = reflow_tf.prune(model, config, inputs[32:], evaluation=inputs[:32]).report.signals
    kept = {stage: len(signal.outputs) for stage, signal in signals.items()}
    assert kept == {"dense": 0, "pruned": 0, "repaired": 32}
    nothing = reflow_tf.PruneConfig(sparsity=0.0, repair="none", target="storage")
    signals = reflow_tf.prune(model, nothing, evaluation=inputs).report.signals
    assert len(signals["repaired"].outputs) == len(inputs)


@pytest.mark.parametrize("calibrated", [False, True])
def test_blocks_of_outputs_are_paired_on_purpose(model, inputs, calibrated, monkeypatch):
    config = reflow_tf.PruneConfig(sparsity=0.5, pattern=patterns.Block(2, 1), allocation="uniform", repair="none")
    calibration = inputs if calibrated else None
    before = read_bits(model.weights)
    result = reflow_tf.prune(model, config, calibration, evaluation=inputs)
    assert result.report.paired and read_bits(model.weights) == before
    assert all(config.requested_pattern.admits(mask) for mask in result.masks.values())
    monkeypatch.setattr(planning, "pair_channels", lambda *args: ())
    left = reflow_tf.prune(model, config, calibration, evaluation=inputs)
    kept, kept_before = (
        [np.abs(find_kernels(r.model).read()[path]).sum() for path in result.report.paired] for r in (result, left)
    )
    assert sum(kept) > sum(kept_before)


def test_pairing_changes_no_output(model, inputs):
    config = reflow_tf.PruneConfig(sparsity=0.0, pattern=patterns.Block(2, 1), repair="none")
    result = reflow_tf.prune(model, config, inputs)
    assert result.report.paired
    np.testing.assert_allclose(result.model(inputs, training=False), model(inputs, training=False), atol=1e-5)


def test_on_arm_zeros_come_in_pairs_where_that_pays(model):
    for device, spelled in ((None, "unstructured"), ("browser", "unstructured"), ("arm", "block:2x1")):
        config = reflow_tf.PruneConfig(sparsity=0.5, device=device, repair="none")
        plan = reflow_tf.prune(model, config).plan
        assert {str(layer.pattern) for layer in plan.layers.values()} == {spelled}
    config = reflow_tf.PruneConfig(sparsity=0.5, target="storage", repair="none")
    assert {str(layer.pattern) for layer in reflow_tf.prune(model, config).plan.layers.values()} == {"unstructured"}


def test_least_squares_starts_from_streams_in_another_basis(inputs):
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3))
    stream = layers.BatchNormalization()(layers.Conv2D(6, 1, name="first")(images))
    x = layers.ReLU()(layers.Conv2D(12, 1, name="expand")(stream))
    stream = layers.Add()([stream, layers.BatchNormalization()(layers.Conv2D(6, 1, name="project")(x))])
    model = keras.Model(images, layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(stream)))
    for basis, repair, turned in (("auto", "least_squares", 1), ("auto", "reflow", 0), ("kept", "least_squares", 0)):
        config = reflow_tf.PruneConfig(sparsity=0.0, basis=basis, repair=repair)
        result = reflow_tf.prune(model, config, inputs, evaluation=inputs)
        assert result.report.num_turned == turned
        np.testing.assert_array_equal(*(result.report.signals[stage].ranked[:, 0] for stage in ("pruned", "dense")))


_SLOW = [pytest.param(repair, marks=pytest.mark.slow) for repair in ("least_squares", "auto")]


@pytest.mark.parametrize("repair", [None, "reflow", "obs,reflow", *_SLOW])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=3, deadline=None)
def test_existing_zeros_are_the_masks_whatever_repairs(classifier, inputs, repair, seed):
    rng = np.random.default_rng(seed)
    model = classifier()
    kernels = find_kernels(model)
    drawn = {spec.path: rng.random(spec.shape) < rng.choice([0, 0.3, 0.9]) for spec in kernels.specs}
    drawn[kernels.specs[0].path].flat[0] = True  # one zero at least
    for path, zero in drawn.items():
        kernels.variables[path].assign(np.where(zero, 0, np.array(kernels.variables[path])))
    config = reflow_tf.PruneConfig(sparsity="existing", prunable="all", repair=repair)
    result = reflow_tf.prune(model, config, inputs)
    assert result.masks.keys() == {path for path, zero in drawn.items() if zero.any()}
    assert all(skipped.reason == "has no zeros" for skipped in result.report.skipped)
    after = find_kernels(result.model)
    for spec in after.specs:
        np.testing.assert_array_equal(np.array(after.variables[spec.path])[drawn[spec.path]], 0)
        if spec.path in result.masks:
            np.testing.assert_array_equal(spec.from_canonical(result.masks[spec.path]), ~drawn[spec.path])
    if repair is None:
        assert read_bits(result.model.weights) == read_bits(model.weights)


def test_without_zeros_there_are_none_to_take(model, inputs):
    with pytest.raises(
        reflow_tf.InputError, match=r"=existing needs zeros .+pattern=unstructured\. Received: \d kernels without"
    ):
        reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity="existing", prunable="all"), inputs)


def test_zeros_that_came_are_not_turned_away(inputs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3))])
    for name, filters in (("first", 6), ("second", 8)):
        model.add(layers.Conv2D(filters, 1, name=name))
    for layer in (layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")):
        model.add(layer)
    config = reflow_tf.PruneConfig(sparsity=0.5, repair="least_squares")
    assert reflow_tf.prune(model, config, inputs).report.num_turned == 1
    kernel = model.get_layer("second").kernel
    kernel.assign(np.where(np.arange(8) % 4 == 0, 0, np.array(kernel)))
    result = reflow_tf.prune(model, config, inputs)
    assert result.report.num_turned == 0 and not result.masks["second/kernel"][::4].any()


@pytest.mark.parametrize("pattern", [patterns.NM(2, 4), patterns.Block(4, 1)])
def test_zeros_elsewhere_are_a_change_however_many_were_there(inputs, pattern):
    """As many zeros as the model came with, but not the same: the network is another."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(16, 1), layers.ReLU(), layers.Conv2D(16, 1)])
    for layer in (layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")):
        model.add(layer)
    kernel = model.layers[2].kernel
    kernel.assign(np.where(np.random.default_rng(0).random(kernel.shape) < 0.7, 0, np.array(kernel)))
    sparsity = None if isinstance(pattern, patterns.NM) else 0.6
    config = reflow_tf.PruneConfig(
        sparsity=sparsity, pattern=pattern, target="storage", prunable=model.layers[2].name + "/", repair="none"
    )
    result = reflow_tf.prune(model, config, evaluation=inputs)
    expected = reflow_tf.measure_signal(result.model, inputs)
    for stage in ("pruned", "repaired"):
        assert result.report.signals[stage].confidence == expected.confidence
    assert result.report.signals["dense"].confidence != expected.confidence


def build_of_two():
    keras.utils.set_random_seed(0)
    image, vector = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="vector")
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(8, 1, name="conv")(image)))
    return keras.Model([image, vector], layers.Dense(3, "softmax")(layers.Concatenate()([x, vector])))


def test_all_ways_of_giving_several_inputs(inputs):
    model, config = build_of_two(), reflow_tf.PruneConfig(sparsity=0.5, target="storage", repair="least_squares")
    images, vectors = inputs[:32], np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    named, labels = {"image": images, "vector": vectors}, np.zeros(32)
    parts = [slice(0, 16), slice(16, 32)]
    ways = [
        named,
        tf.data.Dataset.from_tensor_slices((named, labels)).batch(16),
        tf.data.Dataset.from_tensor_slices(((images, vectors), labels)).batch(16),
        [({"image": images[part], "vector": vectors[part]}, labels[part]) for part in parts],
        [((images[part], vectors[part]),) for part in parts],
        (((images[part], vectors[part]), labels[part]) for part in parts),
    ]
    found = [read_bits(reflow_tf.prune(model, config, data, batch_size=16).model.weights) for data in ways]
    assert all(bits == found[0] for bits in found)


@pytest.mark.parametrize(
    "data, words",
    [
        ({"image": np.zeros((4, 8, 8, 3))}, r"\(n, 5\) for the input 'vector'.* Received: none"),
        ({"image": np.zeros((4, 8, 8, 3)), "vector": [["a"] * 5] * 4}, r"the input 'vector' must be numeric"),
        ({"image": np.zeros((4, 8, 8, 3)), "vector": [[1], [2, 3]]}, r"'vector' must be one array"),
        ({"image": np.zeros((0, 8, 8, 3)), "vector": np.zeros((0, 5))}, r"'image' must hold at least one sample"),
        ({"image": np.zeros((4, 8, 8, 3)), "vector": np.zeros((3, 5))}, r"samples as the others\. Received: shape"),
        ([((np.zeros((4, 8, 8, 3)),), 0)], r"\(n, 5\) for the input 'vector'.* Received: none"),
    ],
)
def test_several_inputs_that_do_not_fit(data, words):
    with pytest.raises(reflow_tf.InputError, match=words):
        reflow_tf.prune(build_of_two(), reflow_tf.PruneConfig(sparsity=0.5, target="storage"), data)


def test_a_name_stands_for_an_input_whose_axes_are_open(inputs):
    image = keras.Input((None, None, 3), name="image")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1)(image))
    model, config = keras.Model(image, layers.Dense(3)(x)), reflow_tf.PruneConfig(sparsity=0.5, target="storage")
    results = [reflow_tf.prune(model, config, data) for data in (inputs, {"image": inputs})]
    assert read_bits(results[0].model.weights) == read_bits(results[1].model.weights)


@pytest.mark.parametrize("data", [[np.zeros((4, 8, 8, 3)), np.zeros((0, 8, 8, 3))], [np.zeros((0, 8, 8, 3))]])
def test_batches_of_nothing_are_refused(model, data):
    for call in (reflow_tf.measure_signal, reflow_tf.recalibrate):
        with pytest.raises(reflow_tf.InputError, match=r"must hold at least one sample\. Received: shape \(0, "):
            call(model, data)


def test_indices_that_an_embedding_has_not_are_told():
    words = keras.Input((4,), dtype="int32")
    model = keras.Model(words, layers.Dense(3)(layers.Flatten()(layers.Embedding(20, 6)(words))), name="words")
    with pytest.raises(reflow_tf.InputError, match=r"such as words can compute.* Received: .*101 is not in \[0, 20\)"):
        reflow_tf.measure_signal(model, np.full((3, 4), 101))


def test_one_number_an_input_is_no_class(inputs):
    image = keras.Input((8, 8, 3))
    x = layers.Dense(1, "sigmoid")(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1)(image)))
    model = keras.Model(image, x[:, 0], name="flat")
    for loss in (None, "binary_focal_crossentropy"):
        if loss:
            model.compile(loss=loss)
        assert reflow_tf.measure_signal(model, inputs).num_classes == 0
    with pytest.raises(reflow_tf.InputError, match=r"needs outputs with an axis of classes.* Received: flat"):
        reflow_tf.measure_signal(model, inputs, task="classification")


def test_the_signal_of_several_outputs_is_of_numbers(inputs):
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, [layers.Dense(2)(x), layers.Dense(3)(x)], name="two")
    with pytest.raises(reflow_tf.InputError, match=r"--task=classification needs one output\. Received: two with 2"):
        reflow_tf.measure_signal(model, inputs, task="classification")
    with pytest.raises(reflow_tf.InputError, match=r"--task must be one of .+\. Received: magic"):
        reflow_tf.measure_signal(model, inputs, task="magic")


@pytest.mark.parametrize("given", [("mobilenet_v2", CONFIG), (build_of_two, {"sparsity": 0.5})])
def test_what_is_no_model_or_no_configuration_is_told(given, inputs):
    model, config = given
    with pytest.raises(reflow_tf.InputError, match=r"takes a Keras model, and a PruneConfig\. Received: "):
        reflow_tf.prune(model() if callable(model) else model, config, inputs)
