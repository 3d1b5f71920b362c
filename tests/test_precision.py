"""Whatever precision a network's layers have: all that is done to it, tried on each; and the process's own policy.

Every repair, criterion and allocation meets every policy; not every pair of them.
"""

import functools
import itertools
import re

import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.choices import ALLOCATION_NAMES
from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import write_values
from reflow_tf.models.walking import find_batch_norms
from reflow_tf.models.zoo.architectures import ARCHITECTURES
from reflow_tf.models.zoo.pretrained import build_pretrained
from reflow_tf.repair.chain import REPAIRS
from reflow_tf.repair.distillation import Recipe, distill
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.sparsity.criteria import CRITERIA

# Policies, taken in turn by the layers; largest difference from the float32 network, as a share of its largest output.
POLICIES = {
    "mixed_float16": (("mixed_float16",), 1e-4),
    "mixed_bfloat16": (("mixed_bfloat16",), 1e-4),
    "float16": (("float16",), 0.02),
    "bfloat16": (("bfloat16",), 0.1),
    "float64": (("float64",), 1e-3),
    "layer by layer": (("float16", "float64", "mixed_bfloat16", "float32"), 0.02),
}
# (criterion, allocation, repair): so few that each name comes up; 'auto' tries reflow, least_squares and obs.
CHOICES = [
    ("magnitude", "global", "woodfisher,moments"),
    ("fisher", "lamp", "chita,distill"),
    ("obs", "auto", "auto"),
    ("activation", "uniform", "none"),
    ("woodfisher", "erk", "none"),
    ("cbs", "global", "none"),
]


def build(*policies, gain=1.0):
    """Two kernels before batch norms, a separable one and a head before none; weights and moments by seed."""
    policy = itertools.cycle(policies or ("float32",))
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, dtype=next(policy), name="first")(image)
    x = layers.ReLU(6, dtype=next(policy))(layers.BatchNormalization(dtype=next(policy), name="norm")(x))
    x = layers.SeparableConv2D(8, 3, activation="relu", dtype=next(policy))(x)
    x = layers.Conv2D(12, 1, use_bias=False, dtype=next(policy))(x)
    x = layers.ReLU(6, dtype=next(policy))(layers.BatchNormalization(dtype=next(policy))(x))
    x = layers.GlobalAveragePooling2D(dtype=next(policy))(x)
    model = keras.Model(image, layers.Dense(4, dtype=next(policy), name="head")(x))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        values = rng.normal(size=variable.shape) / np.sqrt(np.prod(variable.shape[:-1]))
        is_scale = variable.name in ("moving_variance", "gamma")
        variable.assign(0.5 + 0.1 * np.abs(values) if is_scale else values)
    for layer, factor in (("first", gain), ("head", 8.0)):
        kernel = model.get_layer(layer).kernel
        kernel.assign(keras.ops.convert_to_numpy(kernel) * factor)
    return model


def draw(seed, count=16):
    """Images of one colour each, and noise."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(-1, 1, (count, 1, 1, 3)) + rng.normal(0, 0.3, (count, 6, 6, 3))).astype(np.float32)


def of_config(choice):
    names = dict(zip(("criterion", "allocation", "repair"), choice, strict=True))
    return reflow_tf.PruneConfig(sparsity=0.5, target="storage", **names)


def read(model):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]


def policies_of(model):
    return [layer.dtype_policy.name for layer in model.layers]


def infer(model, images):
    """What the model's weights give in float32, by Keras alone."""
    twin = build()
    for variable, values in zip(twin.variables, read(model), strict=True):
        variable.assign(values.astype(np.float32))
    return twin(images, training=False).numpy()


def assert_near(outputs, wanted, tolerance):
    assert wanted.std(axis=0).max() > 0.04 * np.abs(wanted).max()  # else all networks are near each other
    assert np.abs(outputs - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.fixture
def short_distillation(monkeypatch):
    monkeypatch.setitem(REPAIRS, "distill", functools.partial(distill, epochs=1))


@pytest.fixture
def process_policy():
    """Sets the policy that layers have which are not told one, as users do; it is what it was afterwards."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@functools.cache
def outputs_of_float32(choice):
    return infer(reflow_tf.prune(build(), of_config(choice), draw(1)).model, draw(2))


def test_every_name_is_tried():
    criteria, allocations, repairs = (set(",".join(names).split(",")) for names in zip(*CHOICES, strict=True))
    assert criteria == set(CRITERIA) and allocations == set(ALLOCATION_NAMES)
    assert repairs | {"reflow", "least_squares", "obs"} == {*REPAIRS, "auto", "none"}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
@pytest.mark.parametrize("name", POLICIES)
def test_everything_on_every_policy(short_distillation, name, choice):
    policies, tolerance = POLICIES[name]
    model = build(*policies)
    before = read(model)
    result = reflow_tf.prune(model, of_config(choice), draw(1))
    for variable, same, own in zip(model.variables, before, result.model.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), same)
        assert own.dtype == variable.dtype
        assert np.isfinite(keras.ops.convert_to_numpy(own).astype(np.float64)).all()
    assert policies_of(result.model) == policies_of(model) == policies_of(build(*policies))
    kernels = find_kernels(result.model).read()
    assert not any(kernels[path][~mask].any() for path, mask in result.masks.items())
    zeros = sum(int(np.count_nonzero(~mask)) for mask in result.masks.values())
    assert zeros == pytest.approx(0.5 * sum(mask.size for mask in result.masks.values()), abs=len(kernels))
    if choice[2] == "auto":
        assert all(tried.divergence is not None for tried in result.report.repair[0].tried)
    assert_near(infer(result.model, draw(2)), outputs_of_float32(choice), tolerance)


@pytest.mark.parametrize("name", POLICIES)
def test_file_signal_and_copy_on_every_policy(name, tmp_path):
    policies, _ = POLICIES[name]
    model = reflow_tf.recalibrate(build(*policies), draw(1))
    content = reflow_tf.export_tflite(model, rewrite="exact").content
    wanted = infer(model, draw(2))
    np.testing.assert_allclose(LiteRT(content).run(draw(2)), wanted, atol=1e-5)
    signal = reflow_tf.measure_signal(model, draw(2), task="classification")
    np.testing.assert_array_equal(signal.ranked[:, 0], wanted.argmax(-1))
    assert all(np.isfinite(variance).all() for variance in signal.variances.values())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert policies_of(loaded) == policies_of(model)
    for one, other in zip(read(loaded), read(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_16_bits_cannot_hold_is_refused_in_words():
    model = build("float16", gain=1000.0)  # a variance of some 1e6
    before = read(model)
    with pytest.raises(
        InputError, match=r"float16 variable moving_variance of layer norm .* mixed one.* Received: [0-9]"
    ):
        reflow_tf.recalibrate(model, draw(1), inplace=True)
    for one, other in zip(read(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_auto_says_what_16_bits_cannot_hold(monkeypatch):
    def write_much(pruned, batches, progress, crew, references):
        variance = find_batch_norms(pruned.model)[0].layer.moving_variance
        write_values(variance, np.full(variance.shape, 1e6))

    monkeypatch.setitem(REPAIRS, "reflow", write_much)
    result = reflow_tf.prune(build("float16"), of_config(CHOICES[2]), draw(1))
    reasons = {tried.chain: tried.reason for tried in result.report.repair[0].tried}
    assert "cannot hold" in reasons["reflow"] and reasons["least_squares"] is None


@pytest.mark.slow
def test_distillation_trains_what_16_bits_would_lose(monkeypatch):
    recipe = Recipe(learning_rate=3e-3, warm_up=1, averaging=0.8, output_weight=1.0)
    monkeypatch.setitem(REPAIRS, "distill", functools.partial(distill, epochs=25, recipe=recipe))
    config = reflow_tf.PruneConfig(sparsity=0.7, target="storage", criterion="magnitude", repair="reflow,distill")
    outcome = reflow_tf.prune(build("float16"), config, draw(1, count=64)).report.repair[1]
    before, after = map(float, re.search("fell from ([0-9.]+) to ([0-9.]+)", outcome.statement).groups())
    assert after < 0.6 * before


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_the_policy_of_the_process_says_nothing_and_stays(short_distillation, process_policy, policy):
    choice, model = CHOICES[0], build()
    wanted = outputs_of_float32(choice)
    process_policy(policy)
    result = reflow_tf.prune(model, of_config(choice), draw(1), evaluation=draw(2))
    assert keras.config.dtype_policy().name == policy
    assert set(policies_of(result.model)) == {"float32"}
    np.testing.assert_array_equal(infer(result.model, draw(2)), wanted)


@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
def test_zoo_is_built_in_float32(process_policy, policy):
    process_policy(policy)
    model = build_pretrained(ARCHITECTURES["mobilenet_v1_025"], None, None).model
    assert set(policies_of(model)) == {"float32"} and {v.dtype for v in model.variables} == {"float32"}
    assert keras.config.dtype_policy().name == policy
