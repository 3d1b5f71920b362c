"""Small networks in which channels meet everything that can happen to them."""

import keras
import numpy as np
import pytest
from keras import layers

SIZE = 6


def randomize(model):
    """Weights that leave nothing symmetrical: biases, slopes and moments of batch norms, too."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            low = 0.5 if "variance" in variable.name or "gamma" in variable.name else -0.5
            variable.assign(rng.uniform(low, low + 1, variable.shape))
    return model


class Reversed(layers.Layer):
    """A layer of somebody's own, which reads channels by their place."""

    def call(self, inputs):
        return keras.ops.flip(inputs, axis=-1)


class Subclassed(keras.Model):
    """A model whose graph is written in Python only."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


STEPS = {
    "conv": lambda x, n: layers.Conv2D(n, 3, padding="same", activation="relu")(x),
    "pointwise": lambda x, n: layers.Conv2D(n, 1, use_bias=False)(x),
    "strided": lambda x, n: layers.Conv2D(n, 3, strides=2, padding="same")(x),
    "transposed": lambda x, n: layers.Conv2DTranspose(n, 3, padding="same")(x),
    "dense": lambda x, n: layers.Dense(n, activation="silu")(x),
    "einsum": lambda x, n: layers.EinsumDense("abcd,de->abce", (*x.shape[1:3], n), bias_axes="e", activation="relu")(x),
    "einsum of rows": lambda x, n: layers.EinsumDense("abcd,ce->abed", (x.shape[1], n, x.shape[-1]))(x),
    "depthwise": lambda x, n: layers.DepthwiseConv2D(3, padding="same")(x),
    "multiplied": lambda x, n: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x),
    "separable": lambda x, n: layers.SeparableConv2D(n, 3, padding="same")(x),
    "grouped": lambda x, n: layers.Conv2D(2 * x.shape[-1], 1, groups=x.shape[-1])(x),
    "each": lambda x, n: layers.Conv2D(x.shape[-1], 3, groups=x.shape[-1], padding="same")(x),
    "norm": lambda x, n: layers.BatchNormalization()(x),
    "layer norm": lambda x, n: layers.LayerNormalization()(x),
    "prelu": lambda x, n: layers.PReLU(shared_axes=[1, 2])(x),
    "slopes": lambda x, n: layers.PReLU()(x),
    "softmax": lambda x, n: layers.Softmax()(x),
    "activated softmax": lambda x, n: layers.Dense(n, activation="softmax")(x),
    "relu6": lambda x, n: layers.ReLU(6.0)(x),
    "hard swish": lambda x, n: x * (layers.ReLU(6.0)(x + 3.0) * (1 / 6)),
    "constant": lambda x, n: x * np.arange(1, x.shape[-1] + 1, dtype=np.float32),
    "clip": lambda x, n: keras.ops.clip(x, -1.0, np.arange(1, x.shape[-1] + 1, dtype=np.float32)),
    "residual": lambda x, n: layers.Add()([x, layers.Conv2D(x.shape[-1], 1)(x)]),
    "two paths": lambda x, n: layers.Add()([layers.Conv2D(n, 1)(x), layers.Conv2D(n, 3, padding="same")(x)]),
    "excite": lambda x, n: layers.Multiply()(
        [x, layers.Dense(x.shape[-1], "sigmoid")(layers.Dense(n)(layers.GlobalAveragePooling2D(keepdims=True)(x)))]
    ),
    "excite reshaped": lambda x, n: layers.Multiply()(
        [x, layers.Reshape((1, 1, x.shape[-1]))(layers.Dense(x.shape[-1])(keras.ops.mean(x, axis=(1, 2))))]
    ),
    "attention": lambda x, n: x * layers.Conv2D(1, 1, activation="sigmoid")(x),
    "concatenate": lambda x, n: layers.Concatenate()([x, layers.Conv2D(n, 1)(x), x]),
    "added halves": lambda x, n: layers.Add()(
        [layers.Concatenate()([layers.Conv2D(n, 1)(x), layers.Conv2D(n, 1)(x)]), layers.Conv2D(2 * n, 1)(x)]
    ),
    "stacked": lambda x, n: layers.Concatenate(axis=1)([x, layers.Conv2D(x.shape[-1], 1)(x)]),
    "pool": lambda x, n: layers.MaxPooling2D(2, padding="same")(x),
    "pad": lambda x, n: layers.ZeroPadding2D(1)(x),
    "mean over channels": lambda x, n: x - keras.ops.mean(x, axis=-1, keepdims=True),
    "permute": lambda x, n: layers.Permute((1, 3, 2))(x),
    "reshape": lambda x, n: layers.Reshape((x.shape[1] * x.shape[2], 1, x.shape[3]))(x),
    "fold": lambda x, n: layers.Reshape((x.shape[1], 1, x.shape[2] * x.shape[3]))(x),
    "shuffle": lambda x, n: layers.Reshape((x.shape[1], x.shape[2] * x.shape[3], 1))(x),
    "own": lambda x, n: Reversed()(x),
    "nested": lambda x, n: keras.Sequential([layers.Conv2D(n, 1), layers.BatchNormalization(), layers.ReLU()])(x),
    "called twice": lambda x, n: (lambda layer: layer(layer(x)))(layers.Conv2D(x.shape[-1], 1)),
}


def build(names, sizes):
    """A network of these steps, one behind the other, and a head."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 1)(inputs)
    for name, size in zip(names, sizes, strict=True):
        x = STEPS[name](x, size)
    x = layers.Flatten()(layers.AveragePooling2D(2, padding="same")(x))
    return randomize(keras.Model(inputs, layers.Dense(3)(layers.Dense(5, activation="relu")(x))))


@pytest.fixture(scope="session")
def build_network():
    """(names of steps, sizes) -> a network of them, with weights that leave nothing symmetrical."""
    return build


@pytest.fixture(scope="session")
def steps():
    """The names of all steps."""
    return sorted(STEPS)


@pytest.fixture(params=sorted(STEPS))
def step(request):
    """The name of each step, in turn."""
    return request.param


@pytest.fixture(scope="session", name="randomize")
def _randomize():
    """Gives a model weights that leave nothing symmetrical, and returns it."""
    return randomize


@pytest.fixture
def subclassed():
    """A built model of 3 features of which nothing is known."""
    model = Subclassed()
    model(np.zeros((1, 3)))
    return model
