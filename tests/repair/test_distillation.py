import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import read_bits, write_masks
from reflow_tf.repair import distillation
from reflow_tf.repair.batchnorm import recalibrate
from reflow_tf.repair.contract import PrunedModel, read_weights
from reflow_tf.repair.distillation import distill

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(0, 1, (60, 8, 8, 3)).astype(np.float32)
BATCHES = np.split(IMAGES, 3)


@pytest.fixture(autouse=True)
def fast_rate(monkeypatch):
    """Small networks with weights by chance learn in a few steps at a rate that real ones would not stand."""
    monkeypatch.setattr(distillation, "LEARNING_RATE", 1e-2)


def prune(model, sparsity=0.5):
    """Zeroes the smallest weights of each kernel."""
    kernels = find_kernels(model)
    masks = {path: np.abs(w) > np.quantile(np.abs(w), sparsity) for path, w in kernels.read().items()}
    dense = read_weights(model)
    write_masks(kernels, masks)
    return PrunedModel(model, masks, dense)


def classifier(activation="softmax", inner=False):
    keras.utils.set_random_seed(1)
    body = [
        layers.Conv2D(16, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(16, 1),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
    ]
    if inner:
        body = [keras.Sequential([keras.Input((8, 8, 3)), *body], name="inner")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *body, layers.Dense(4, activation=activation)])
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 5)
    recalibrate(model, [IMAGES])
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = layers.Conv2D(8, 3), layers.BatchNormalization()
        self.pool, self.head = layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax")

    def call(self, x, training=False):
        return self.head(self.pool(keras.ops.relu(self.norm(self.conv(x), training=training))))


def subclassed():
    keras.utils.set_random_seed(1)
    model = Subclassed()
    model(IMAGES)
    recalibrate(model, [IMAGES])
    return model


def on_vectors():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((12,)), layers.Dense(32, activation="relu"), layers.Dense(1)])


VECTORS = RNG.normal(size=(60, 12)).astype(np.float32)
MODELS = {
    "softmax": (classifier, IMAGES),
    "logits": (lambda: classifier(None), IMAGES),
    "nested": (lambda: classifier(inner=True), IMAGES),
    "subclassed": (subclassed, IMAGES),
    "regression": (on_vectors, VECTORS),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_keeps_zeros_and_leaves_moments(name):
    build, inputs = MODELS[name]
    model = build()
    dense = keras.ops.convert_to_numpy(model(inputs))
    pruned = prune(model)
    moments = [v for v in model.non_trainable_variables if "moving" in v.name]
    before, moments_before = model(inputs), read_bits(moments)
    outcome = distill(pruned, np.split(inputs, 3), epochs=12)
    held_out = np.arange(len(inputs)) % 5 == 2
    error, error_before = (np.square(dense - y)[held_out].mean() for y in (model(inputs), before))
    assert error < 0.7 * error_before
    for path, kernel in find_kernels(model).read().items():
        assert not kernel[~pruned.masks[path]].any() and kernel[pruned.masks[path]].all()
    assert read_bits(moments) == moments_before
    assert "fell from" in outcome.statement and set(outcome.moved) >= {"kernel", "bias"}
    assert not any("call" in placed.__dict__ for placed in model._flatten_layers())


def test_the_same_seed_gives_the_same_weights():
    results = []
    for seed in (3, 3, 4):
        pruned = prune(classifier())
        distill(pruned, BATCHES, epochs=2, seed=seed)
        results.append(read_bits(pruned.model.variables))
    assert results[0] == results[1] != results[2]


def test_held_out_inputs_are_never_trained_on(monkeypatch):
    seen = []
    build_step = distillation._build_step

    def recording(pruned, inputs, probabilities):
        step = build_step(pruned, inputs, probabilities)
        return lambda indices, views, rate: (seen.append(inputs[indices]), step(indices, views, rate))

    monkeypatch.setattr(distillation, "_build_step", recording)
    distill(prune(classifier()), BATCHES, epochs=2)
    trained = {image.tobytes() for batch in seen for image in batch}
    assert trained == {image.tobytes() for i, image in enumerate(IMAGES) if i % 5 != 2}


def test_when_nothing_helps_the_model_stays(monkeypatch):
    monkeypatch.setattr(distillation, "LEARNING_RATE", 30.0)
    pruned = prune(classifier())
    before = read_bits(pruned.model.variables)
    outcome = distill(pruned, BATCHES, epochs=3)
    assert read_bits(pruned.model.variables) == before
    assert outcome.repaired == outcome.moved == () and "stays as it was" in outcome.statement


def test_frozen_layers_stay():
    model = classifier()
    model.layers[0].trainable = model.layers[1].trainable = False
    pruned = prune(model)
    frozen = [*model.layers[0].variables, *model.layers[1].variables]
    before = read_bits(frozen)
    outcome = distill(pruned, BATCHES, epochs=3)
    assert read_bits(frozen) == before
    assert model.layers[0].name not in outcome.repaired and model.layers[3].name in outcome.repaired


def test_the_wall_clock_budget_ends_it():
    draws = distillation._Draws(10, np.random.default_rng(0), seconds=0.05, epochs=None)
    batches = [(distillation.time.sleep(0.01), len(batch)) for batch in draws]
    assert 1 <= len(batches) <= 6 and draws.spent >= 1


def test_each_input_is_drawn_once_before_any_twice(monkeypatch):
    monkeypatch.setattr(distillation, "BATCH_SIZE", 4)
    draws = distillation._Draws(6, np.random.default_rng(0), seconds=1, epochs=4)
    drawn = np.concatenate(list(draws))
    assert len(drawn) == 24
    for epoch in drawn.reshape(4, 6):
        assert sorted(epoch) == list(range(6))


def test_divergences_in_closed_form():
    p, q = np.array([[0.7, 0.2, 0.1]], np.float32), np.array([[0.5, 0.25, 0.25]], np.float32)
    np.testing.assert_allclose(distillation._divergence(q, p, True), np.sum(p * np.log(p / q)), rtol=1e-5)
    soft_p, soft_q = (np.sqrt(x) / np.sqrt(x).sum() for x in (p, q))
    expected = 4 * np.sum(soft_p * np.log(soft_p / soft_q))
    np.testing.assert_allclose(distillation._divergence(q, p, True, 2.0), expected, rtol=1e-5)
    values, targets = RNG.normal(size=(2, 9, 3)).astype(np.float32)
    expected = np.mean((values - targets) ** 2) / targets.var()
    np.testing.assert_allclose(distillation._divergence(values, targets, False), expected, rtol=1e-5)


def interrupted(good):
    yield from good
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("batches", "options", "error"),
    [
        ([], {}, InputError),
        ([IMAGES[:4]], {}, InputError),
        ([IMAGES[:, :5]], {}, InputError),
        ([IMAGES * np.nan], {}, InputError),
        (BATCHES, {"seconds": 0}, InputError),
        (BATCHES, {"epochs": 0}, InputError),
        (interrupted(BATCHES), {}, KeyboardInterrupt),
    ],
)
def test_bad_input_leaves_the_model(batches, options, error):
    pruned = prune(classifier())
    before = read_bits(pruned.model.variables)
    with pytest.raises(error):
        distill(pruned, batches, **options)
    assert read_bits(pruned.model.variables) == before


def test_an_interrupt_in_the_middle_restores_everything():
    pruned = prune(classifier())
    before = read_bits(pruned.model.variables)

    def interrupt(batches, description):
        for number, batch in enumerate(batches):
            if number == 3:
                assert read_bits(pruned.model.variables) != before
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        distill(pruned, BATCHES, interrupt, epochs=9)
    assert read_bits(pruned.model.variables) == before
    assert not any("call" in layer.__dict__ for layer in pruned.model.layers)


def test_a_model_that_is_all_frozen_is_refused():
    model = classifier()
    pruned = prune(model)
    model.trainable = False
    with pytest.raises(InputError, match="all frozen"):
        distill(pruned, BATCHES, epochs=1)
