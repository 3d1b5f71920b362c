import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models import fisher
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.observation import compile_inference
from reflow_tf.task import Task

INPUTS = np.random.default_rng(0).normal(size=(21, 5)).astype(np.float32)


def gather(model, *batches, block_size=4):
    specs = find_kernels(model).specs
    return specs, fisher.gather(model, specs, batches, block_size)


def blocks_of(gradients, width):
    """The definition: samples (n, weights) -> (blocks, B, B)."""
    padded = np.pad(gradients, [(0, 0), (0, -gradients.shape[1] % width)])
    parts = padded.reshape(len(padded), -1, width)
    return np.einsum("nbi,nbj->bij", parts, parts) / len(padded)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def draw(probabilities):
    """What is drawn for the first inputs: u (n, classes) with E u u^T = diag p - p p^T."""
    noise = [tf.random.stateless_normal((1, probabilities.shape[1]), seed=[0, i])[0] for i in range(len(probabilities))]
    parts = np.sqrt(probabilities) * np.array(noise)
    return parts - probabilities * parts.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("activation", ["softmax", None])
def test_a_linear_classifier_has_the_gradients_of_the_textbook(activation):
    """d u^T log p / dW = u x^T for u that sum to 0, whether it gives probabilities or logits; 21 samples."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation=activation, trainable=False, name="d")])
    (spec,), found = gather(model, INPUTS[:19], INPUTS[19:])
    kernel, bias = (v.numpy() for v in model.layers[0].variables)
    probabilities = softmax(INPUTS @ kernel + bias)
    gradients = np.einsum("no,ni->noi", draw(probabilities), INPUTS).reshape(21, 15)  # canonical: (output, input)
    assert found[spec.path].shape == (4, 4, 4) and found[spec.path].dtype == np.float32
    np.testing.assert_allclose(found[spec.path], blocks_of(gradients, 4), rtol=1e-4, atol=1e-7)


class Branching(keras.Model):
    """A subclassed model with a nested one, a recurrent layer and a layer that its output does not depend on."""

    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential(
            [keras.Input((5, 1)), layers.Conv1D(3, 2, name="conv"), layers.BatchNormalization()]
        )
        self.memory, self.head = layers.SimpleRNN(3, name="memory"), layers.Dense(3, name="head")
        self.unused = layers.Dense(2, name="unused")

    def build(self, shape):
        self.unused.build((None, 5))
        self.built = True

    def call(self, x, training=False):
        return self.head(self.memory(self.inner(x[..., None], training=training)))


def test_against_differences_of_what_is_drawn():
    keras.utils.set_random_seed(1)
    model = Branching()
    model(INPUTS)
    inputs = INPUTS[:3]
    specs, found = gather(model, inputs, block_size=6)
    assert "unused/kernel" in {spec.path for spec in specs} and "unused/kernel" not in found
    assert len(found) == len(specs) - 1
    weights = draw(softmax(model(inputs).numpy().astype(float)))

    infer = compile_inference(model)

    def score():
        return np.sum(weights * np.log(softmax(infer(inputs).numpy().astype(float))), axis=1)

    kernels = find_kernels(model)
    for spec in specs:
        if spec.path not in found:
            continue
        variable, gradients = kernels.variables[spec.path], []
        values = variable.numpy()
        for index in range(values.size):
            ends = []
            for step in (1e-2, -1e-2):
                moved = values.copy().ravel()
                moved[index] += step
                variable.assign(moved.reshape(values.shape))
                ends.append(score())
            gradients.append((ends[0] - ends[1]) / 2e-2)
        variable.assign(values)
        gradients = np.array(gradients).T.reshape(3, *values.shape)
        canonical = np.array([spec.to_canonical(gradient).ravel() for gradient in gradients])
        np.testing.assert_allclose(
            found[spec.path], blocks_of(canonical, 6), atol=2e-3 * np.abs(found[spec.path]).max()
        )


def test_batches_are_required_and_have_to_fit():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    with pytest.raises(InputError, match="at least one calibration batch"):
        gather(model)
    with pytest.raises(InputError, match="must have the shape"):
        gather(model, INPUTS[:, :4])


def exact_fisher(logits, weights):
    """E W (diag p - p p^T) W^T over inputs, of W (n, ..., classes): what gradients are to the logits."""
    p = softmax(logits.astype(float))
    of_logits = np.einsum("nc,cd->ncd", p, np.eye(p.shape[1])) - p[:, :, None] * p[:, None]
    return np.einsum("nhc,ncd,nkd->hk", weights, of_logits, weights) / len(p)


def test_the_fisher_of_a_kernel_is_the_exact_one_over_many_inputs_of_a_confident_network():
    """E (diag p - p p^T) kron x x^T; the likeliest class alone would have hardly any of it."""
    keras.utils.set_random_seed(4)
    head = layers.Dense(3, use_bias=False, name="head")
    model = keras.Sequential([keras.Input((2,)), head])
    head.kernel.assign(6 * head.kernel)
    inputs = np.random.default_rng(1).normal(size=(3000, 2)).astype(np.float32)
    (spec,), found = gather(model, inputs, block_size=6)
    p = softmax(inputs @ head.kernel.numpy())
    of_logits = np.einsum("nc,cd->ncd", p, np.eye(3)) - p[:, :, None] * p[:, None]
    exact = np.einsum("ncd,ni,nj->cidj", of_logits, inputs, inputs).reshape(6, 6) / len(p)
    np.testing.assert_allclose(found[spec.path][0], exact, atol=0.1 * np.abs(exact).max())


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_output_gains_are_those_of_the_exact_fisher_over_many_inputs(activation):
    """logits = W h, h = V x: the Fisher of the logits is diag p - p p^T, and W^T times that times W of h."""
    keras.utils.set_random_seed(2)
    hidden, classes = layers.Dense(4, use_bias=False, name="hidden"), layers.Dense(3, use_bias=False, name="classes")
    classes.activation = keras.activations.get(activation)
    model = keras.Sequential([keras.Input((5,)), hidden, classes])
    inputs = np.random.default_rng(0).normal(size=(4000, 5)).astype(np.float32)
    logits = inputs @ hidden.kernel.numpy() @ classes.kernel.numpy()
    gains = fisher.gather_output_gains(model, find_kernels(model).specs, inputs)
    for path, weights in (("hidden/kernel", classes.kernel.numpy()), ("classes/kernel", np.eye(3))):
        found = exact_fisher(logits, np.broadcast_to(weights, (len(inputs), *weights.shape)))
        expected = np.sqrt(np.diag(found))
        np.testing.assert_allclose(gains[path], np.maximum(expected / expected.mean(), 0.1), rtol=0.05)


def test_what_is_drawn_is_the_same_each_time():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="hidden"), layers.Dense(3)])
    inputs = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    specs = find_kernels(model).specs
    one, other = (fisher.gather_output_worth(model, specs, inputs) for _ in range(2))
    assert all(np.array_equal(one[path], other[path]) for path in one)


def test_an_activation_inside_a_layer_stays_where_it_is():
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((5, 4)), layers.GRU(6, name="memory"), layers.Dense(3, "softmax")])
    inputs = np.random.default_rng(0).normal(size=(8, 5, 4)).astype(np.float32)
    before = model(inputs).numpy()
    gains = fisher.gather_output_gains(model, find_kernels(model).specs, inputs)
    assert all(np.isfinite(found).all() for found in gains.values()) and "dense" in " ".join(gains)
    np.testing.assert_array_equal(model(inputs).numpy(), before)


def test_outputs_that_no_gradient_reaches_count_like_any_other():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="hidden"), layers.Dense(1)])
    gains = fisher.gather_output_gains(model, find_kernels(model).specs, np.ones((2, 5), np.float32))
    np.testing.assert_array_equal(gains["hidden/kernel"], np.ones(4))


def test_gains_of_nothing_finite_are_refused():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="hidden"), layers.Dense(3)])
    with pytest.raises(InputError, match=r"gradients must be finite\. Received: NaN or infinity at hidden"):
        fisher.gather_output_gains(model, find_kernels(model).specs, np.full((2, 5), np.nan, np.float32))


def test_what_errors_cost_together_is_the_exact_fisher_over_many_inputs():
    """Softmax over W2 relu(x W1): gradients of the logits come to the hidden outputs through W2, where they are on."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="relu"), layers.Dense(3, "softmax")])
    inputs = np.random.default_rng(0).normal(size=(4000, 5)).astype(np.float32)
    hidden = inputs @ model.layers[0].kernel.numpy()
    weights = (hidden > 0)[:, :, None] * model.layers[1].kernel.numpy()
    expected = exact_fisher(np.maximum(hidden, 0) @ model.layers[1].kernel.numpy(), weights)
    (errors,) = fisher.gather_output_errors(model, {"hidden": model.layers[0]}, [inputs])
    np.testing.assert_allclose(errors["hidden"].fisher, expected, atol=0.05 * expected.max())


def test_outputs_are_worth_what_each_input_says_with_the_same_voice():
    """Of g = W u, where u are weights of the logits, the mean of g g^T / |g|^2 over inputs at which any is on."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="relu"), layers.Dense(3, "softmax")])
    specs = find_kernels(model).specs
    inputs = np.random.default_rng(0).normal(size=(4000, 5)).astype(np.float32)
    hidden, kernel = inputs @ model.layers[0].kernel.numpy(), model.layers[1].kernel.numpy()
    p = softmax((np.maximum(hidden, 0) @ kernel).astype(float))
    noise = np.sqrt(p) * np.random.default_rng(1).normal(size=(20, *p.shape))
    weights = noise - p * noise.sum(axis=-1, keepdims=True)
    gradients = ((hidden > 0) * (weights @ kernel.T))[:, (hidden > 0).any(axis=1)]
    scaled = (gradients / np.linalg.norm(gradients, axis=-1, keepdims=True)).reshape(-1, 4)
    expected = scaled.T @ scaled / len(scaled)
    gains = np.sqrt(np.diag(expected)) / np.sqrt(np.diag(expected)).mean()
    worth = fisher.gather_output_worth(model, specs, inputs)[specs[0].path]
    correlations = expected / np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    believed = fisher.WORTH_BELIEVED * correlations + (1 - fisher.WORTH_BELIEVED) * np.eye(4)
    np.testing.assert_allclose(worth, believed * np.outer(gains, gains), atol=0.03)
    assert np.linalg.eigvalsh(worth).min() > 0


def test_an_input_of_which_the_network_is_sure_says_as_much_as_any():
    """One of two inputs has all of the gradients but a millionth; either has one channel on."""
    inputs = keras.Input((2,))
    hidden = layers.Dense(2, use_bias=False, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(1, use_bias=False, name="number")(hidden))
    model.get_layer("hidden").kernel.assign(np.eye(2))
    model.get_layer("number").kernel.assign([[1.0], [1e-3]])
    each = np.array([[1, -1], [-1, 1]], np.float32)
    worth = fisher.gather_output_worth(model, find_kernels(model).specs, each, Task.FIDELITY)
    np.testing.assert_allclose(worth["hidden/kernel"], np.eye(2), rtol=1e-4)


def test_of_numbers_it_is_what_the_jacobians_come_to():
    """W2 relu(x W1): errors of hidden outputs come to all numbers through W2, where they are on."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="relu"), layers.Dense(3, name="numbers")])
    inputs = np.random.default_rng(0).normal(size=(4000, 5)).astype(np.float32)
    kernel = model.layers[1].kernel.numpy()
    (errors,) = fisher.gather_output_errors(model, {"numbers": model.layers[1]}, [inputs], Task.FIDELITY)
    np.testing.assert_allclose(errors["numbers"].fisher, np.eye(3), atol=0.06)
    (errors,) = fisher.gather_output_errors(model, {"hidden": model.layers[0]}, [inputs], Task.FIDELITY)
    # Before its activation a hidden output says something where it is on.
    on = (inputs @ model.layers[0].kernel.numpy() > 0).astype(np.float64)
    expected = (on.T @ on / len(on)) * (kernel @ kernel.T)
    np.testing.assert_allclose(errors["hidden"].fisher, expected, atol=0.06 * np.abs(expected).max())


def test_kernels_of_a_network_of_numbers_have_a_fisher():
    """y = x W: blocks are E x x^T for each output, whatever W is."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, use_bias=False, name="numbers")])
    inputs = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
    specs = find_kernels(model).specs
    (blocks,) = fisher.gather(model, specs, [inputs], 4, Task.FIDELITY).values()
    expected = inputs.T @ inputs / len(inputs)
    for block in blocks:  # one an output
        np.testing.assert_allclose(block, expected, atol=0.2)


def test_errors_that_are_the_same_everywhere_cost_as_much_more_as_there_are_positions():
    """Behind a global average the gradients of all positions are one; a layer without positions has no more of them."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            *(keras.Input((4, 4, 3)), layers.Conv2D(5, 1, name="conv")),
            *(layers.GlobalAveragePooling2D(), layers.Dense(3, name="classes")),
        ]
    )
    inputs = np.random.default_rng(0).normal(size=(6, 4, 4, 3)).astype(np.float32)
    watched = {name: model.get_layer(name) for name in ("conv", "classes")}
    whole, half, rest = fisher.gather_output_errors(model, watched, [inputs, inputs[:3], inputs[3:]])
    for errors in (whole, half, rest):
        assert {name: pytest.approx(found.coherence, rel=1e-4) for name, found in errors.items()} == {
            "conv": 16,
            "classes": 1,
        }
    alone = fisher.gather_output_errors(model, watched, [inputs[:3]])[0]
    np.testing.assert_array_equal(half["conv"].fisher, alone["conv"].fisher)


def test_outputs_that_no_gradient_reaches_cost_nothing_together():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(3, "softmax")])
    model.layers[1].kernel.assign(np.zeros((4, 3)))
    specs = find_kernels(model).specs
    worth = fisher.gather_output_worth(model, specs, np.ones((2, 5), np.float32))
    np.testing.assert_array_equal(worth[specs[0].path], np.eye(4))


def test_a_layer_of_too_many_outputs_is_refused_before_it_takes_gigabytes():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(fisher.MOST_OUTPUTS + 1, name="wide")])
    with pytest.raises(InputError, match=r"at most 8,192 outputs.*Received: 8,193 outputs of wide/kernel"):
        fisher.gather_output_worth(model, find_kernels(model).specs, np.ones((2, 2), np.float32))
