"""Whatever precision a network's layers have: all that is done to it, tried on each; and the process's own policy.

Every repair, criterion and allocation meets every policy; not every pair of them.
"""

import contextlib
import functools
import itertools

import keras
import numpy as np
import pytest
from keras import layers

import reflow_tf
from reflow_tf.config import ALLOCATION_NAMES
from reflow_tf.models.graph import find_kernels
from reflow_tf.repair.chain import REPAIRS
from reflow_tf.repair.distillation import distill
from reflow_tf.sparsity.criteria import CRITERIA

# Policy of the body, policy of the head, largest relative difference of outputs from those of the float32 network.
POLICIES = {
    "mixed_float16": ("mixed_float16", "mixed_float16", 1e-3),
    "mixed_bfloat16": ("mixed_bfloat16", "mixed_bfloat16", 1e-3),
    "float16": ("float16", "float16", 0.02),
    "bfloat16": ("bfloat16", "bfloat16", 0.1),
    "float64": ("float64", "float64", 1e-3),
    "mixed_float16 and float32": ("mixed_float16", "float32", 1e-3),
    "float16 and float64": ("float16", "float64", 0.02),
}
STEPS = max(len(REPAIRS) + 1, len(CRITERIA), len(ALLOCATION_NAMES))
CHOICES = [
    {"repair": repair, "criterion": criterion, "allocation": allocation}
    for repair, criterion, allocation in itertools.islice(
        zip(
            itertools.cycle((*REPAIRS, "auto")),
            itertools.cycle(CRITERIA),
            itertools.cycle(ALLOCATION_NAMES),
            strict=False,
        ),
        STEPS,
    )
]


def build(body="float32", head="float32"):
    """Two kernels before batch norms, a separable one and a head before none; weights and moments by seed."""
    keras.utils.set_random_seed(3)
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, dtype=body)(image)
    x = layers.ReLU(6, dtype=body)(layers.BatchNormalization(dtype=body)(x))
    x = layers.SeparableConv2D(8, 3, activation="relu", dtype=body)(x)
    x = layers.BatchNormalization(dtype=body)(layers.Conv2D(12, 1, use_bias=False, dtype=body)(x))
    x = layers.GlobalAveragePooling2D(dtype=body)(layers.ReLU(6, dtype=body)(x))
    model = keras.Model(image, layers.Dense(4, activation="softmax", dtype=head)(x))
    reference = np.random.default_rng(0)
    for variable in model.variables:
        values = reference.normal(0, 1, variable.shape) / np.sqrt(np.prod(variable.shape[:-1]) or 1)
        is_variance = variable.name in ("moving_variance", "gamma")
        variable.assign(1 + 0.1 * np.abs(values) if is_variance else values)
    return model


def draw(seed, count=32):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 6, 6, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def short_distillation(monkeypatch):
    monkeypatch.setitem(REPAIRS, "distill", functools.partial(distill, epochs=1))


@contextlib.contextmanager
def global_policy(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def infer(model, images):
    """What the model's weights give in float32."""
    twin = build()
    for variable, own in zip(twin.variables, model.variables, strict=True):
        variable.assign(np.asarray(own.numpy(), np.float32))
    return twin(images, training=False).numpy()


@functools.cache
def of_float32(number):
    config = reflow_tf.PruneConfig(sparsity=0.5, target="storage", **CHOICES[number])
    return reflow_tf.prune(build(), config, draw(1))


@pytest.mark.parametrize("number", range(STEPS), ids=["-".join(choice.values()) for choice in CHOICES])
@pytest.mark.parametrize("name", POLICIES)
def test_everything_on_every_policy(name, number):
    body, head, tolerance = POLICIES[name]
    model = build(body, head)
    before = [variable.numpy() for variable in model.variables]
    result = reflow_tf.prune(
        model, reflow_tf.PruneConfig(sparsity=0.5, target="storage", **CHOICES[number]), draw(1), evaluation=draw(2)
    )
    for variable, same, own in zip(model.variables, before, result.model.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), same)
        assert own.dtype == variable.dtype
        assert np.isfinite(own.numpy().astype(np.float64)).all()
    assert [l.dtype_policy.name for l in result.model.layers] == [l.dtype_policy.name for l in model.layers]
    kernels = find_kernels(result.model).read()
    assert not any(kernels[path][~mask].any() for path, mask in result.masks.items())
    zeros = sum(int(np.count_nonzero(~mask)) for mask in result.masks.values())
    assert abs(zeros / sum(mask.size for mask in result.masks.values()) - 0.5) < 0.01
    outputs, wanted = infer(result.model, draw(2)), infer(of_float32(number).model, draw(2))
    print("DIFF", name, CHOICES[number], np.abs(outputs - wanted).max() / wanted.max())
