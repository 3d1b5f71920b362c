import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.surgery import read_bits, write_masks
from reflow_tf.repair import distillation, feature_matching
from reflow_tf.repair.batchnorm import recalibrate
from reflow_tf.repair.chain import REPAIRS, reflow, run_chain
from reflow_tf.repair.contract import PrunedModel, read_weights, show_nothing
from reflow_tf.repair.distillation import Recipe, distill
from reflow_tf.repair.feature_matching import Student, lost_share, measure_outputs
from reflow_tf.repair.holdout import is_held_out
from reflow_tf.sparsity.plan import PruningPlan

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(0, 1, (60, 8, 8, 3)).astype(np.float32)
BATCHES = np.split(IMAGES, 3)
TRAINED = IMAGES[~is_held_out(np.arange(len(IMAGES)))]


# Small networks with weights by chance learn in a few steps at a rate that real ones would not stand.
FAST = Recipe(learning_rate=1e-2, warm_up=2, averaging=0.5)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_learns_and_keeps_zeros(name):
    build, inputs = MODELS[name]
    model = build()
    dense = keras.ops.convert_to_numpy(model(inputs))
    pruned = prune(model)
    before = model(inputs)
    outcome = distill(pruned, np.split(inputs, 3), epochs=40, recipe=FAST)
    held_out = is_held_out(np.arange(len(inputs)))
    error, error_before = (np.square(dense - y)[held_out].mean() for y in (model(inputs), before))
    assert error < 0.7 * error_before
    for path, kernel in find_kernels(model).read().items():
        assert not kernel[~pruned.masks[path]].any() and kernel[pruned.masks[path]].all()
    assert "fell from" in outcome.statement and set(outcome.moved) >= {"kernel", "bias"}
    assert not any("call" in placed.__dict__ for placed in model._flatten_layers())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_but_for_the_order_of_sums():
    results = []
    for seed in (3, 3, 4):
        pruned = prune(classifier())
        distill(pruned, BATCHES, epochs=30, seed=seed, recipe=FAST)
        results.append(np.concatenate([np.ravel(weights) for weights in pruned.read_weights()]))
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-5)
    assert np.abs(results[0] - results[2]).max() > 1e-3


def test_held_out_inputs_are_never_trained_on(monkeypatch):
    seen = set()

    def recording(images, rng):
        seen.update(image.tobytes() for image in images)
        return images

    monkeypatch.setattr(distillation, "vary", recording)
    distill(prune(classifier()), BATCHES, epochs=2)
    assert seen == {image.tobytes() for image in TRAINED}


def test_a_repair_before_it_does_not_see_what_it_holds_out(monkeypatch):
    seen = []

    def recording(pruned, batches, progress, **_):
        seen.extend(image.tobytes() for batch in batches for image in batch)
        return reflow(pruned, batches, progress)

    monkeypatch.setitem(REPAIRS, "reflow", recording)
    monkeypatch.setitem(REPAIRS, "distill", lambda pruned, batches, progress, **_: distill(pruned, batches, epochs=1))
    run_chain(("reflow", "distill"), prune(classifier()), BATCHES, show_nothing, plan=PruningPlan({}))
    assert seen == [image.tobytes() for image in TRAINED]


@pytest.mark.parametrize("learning_rate", [30.0, 1e30])
def test_when_nothing_helps_the_model_stays(learning_rate):
    pruned = prune(classifier())
    reflow(pruned, [TRAINED], show_nothing)
    before = read_bits(pruned.model.variables)
    outcome = distill(pruned, BATCHES, epochs=3, recipe=Recipe(learning_rate))
    assert read_bits(pruned.model.variables) == before
    assert outcome.repaired == outcome.moved == () and "stays as it was" in outcome.statement


def test_it_stops_when_it_runs_out_of_patience(monkeypatch):
    steps = []
    learn = Student.learn
    monkeypatch.setattr(Student, "learn", lambda *args: steps.append(1) or learn(*args))
    distill(prune(classifier()), BATCHES, epochs=20, recipe=Recipe(1.0, batch_size=45, patience=3))
    assert len(steps) < 20


def test_frozen_layers_stay():
    model = classifier()
    model.layers[0].trainable = model.layers[1].trainable = False
    pruned = prune(model)
    frozen = [*model.layers[0].variables, model.layers[1].gamma, model.layers[1].beta]
    before = read_bits(frozen)
    outcome = distill(pruned, BATCHES, epochs=30, recipe=FAST)
    assert read_bits(frozen) == before
    assert model.layers[0].name not in outcome.repaired and model.layers[3].name in outcome.repaired


def test_the_wall_clock_budget_ends_it():
    draws = distillation._Draws(np.arange(10), 4, np.random.default_rng(0), seconds=0.05, epochs=None)
    batches = [(distillation.time.sleep(0.01), len(batch)) for batch in draws]
    assert 1 <= len(batches) <= 6 and draws.spent >= 1


def test_each_input_is_drawn_once_before_any_twice():
    draws = distillation._Draws(np.arange(6), 4, np.random.default_rng(0), seconds=1, epochs=4)
    drawn = np.concatenate(list(draws))
    assert len(drawn) == 24
    for epoch in drawn.reshape(4, 6):
        assert sorted(epoch) == list(range(6))


def test_lost_shares_in_closed_form():
    targets = np.float32([[[1, 0, 5], [3, 0, 5]], [[5, 2, 5], [7, 2, 5]]])  # variances 5, 1 and 0
    values = targets + np.float32([1, -1, 0])
    floor = feature_matching.VARIANCE_FLOOR * 2
    np.testing.assert_allclose(lost_share(values, targets), (1 / (5 + floor) + 1 / (1 + floor)) / 3, rtol=1e-6)
    assert lost_share(np.ones((2, 3)), np.zeros((2, 3))) == 0
    p, q = np.float32([[0.7, 0.2, 0.1]]), np.float32([[0.5, 0.25, 0.25]])
    np.testing.assert_allclose(measure_outputs(q, p, True), np.sum(p * np.log(p / q)), rtol=1e-5)
    np.testing.assert_allclose(measure_outputs(values, targets, False), lost_share(values, targets))


def test_the_average_is_there_for_the_time_of_a_block():
    pruned = prune(classifier())
    student = Student(pruned, averaging=0.5, output_weight=1.0, probabilities=True)
    states = [[np.array(v) for v in pruned.model.trainable_variables]]
    for _ in range(3):
        student.learn(IMAGES, 1e-2)
        states.append([np.array(v) for v in pruned.model.trainable_variables])
    expected = states[1]
    for state in states[2:]:
        expected = [0.5 * average + 0.5 * value for average, value in zip(expected, state, strict=True)]
    with student.averaged():
        for variable, value in zip(pruned.model.trainable_variables, expected, strict=True):
            np.testing.assert_allclose(np.array(variable), value, rtol=1e-4, atol=1e-6)
    assert list(read_bits(pruned.model.trainable_variables)) == [value.tobytes() for value in states[-1]]


def interrupted(good):
    yield from good
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("batches", "options", "error"),
    [
        ([], {}, InputError),
        ([IMAGES[:3]], {}, InputError),
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


def test_inputs_that_do_not_fit_into_memory_are_learnt_from_all_the_same():
    weights = []
    for memory_budget in (10**9, 1):
        pruned = prune(classifier())
        distill(pruned, BATCHES, epochs=2, recipe=FAST, memory_budget=memory_budget)
        weights.append(pruned.read_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "recurrent",
    [
        layers.LSTM(6),
        layers.Bidirectional(layers.GRU(4)),
        layers.LSTM(6, return_sequences=True, return_state=True),
        layers.TimeDistributed(layers.Dense(4)),
    ],
)
def test_what_a_loop_computes_is_learnt_from_what_the_layer_around_it_gives(recurrent):
    keras.utils.set_random_seed(1)
    sequence = keras.Input((6, 5))
    x, *_ = keras.tree.flatten(recurrent(sequence))
    model = keras.Model(sequence, layers.Dense(3)(layers.Flatten()(x)))
    pruned = prune(model)
    inputs = RNG.normal(size=(48, 6, 5)).astype(np.float32)
    outcome = distill(pruned, [inputs], epochs=4, recipe=FAST)
    assert outcome.name == "distill" and any("kernel" in path for path in pruned.masks)
    for path, kernel in find_kernels(model).read().items():
        assert not kernel[~pruned.masks[path]].any()
