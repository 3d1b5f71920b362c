import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.walking import find_batch_norms, walk
from reflow_tf.sparsity.layers import Kind


def kinds(model):
    return {spec.path: spec.kind.value for spec in find_kernels(model).specs}


def on_image(*stack, shape=(8, 8, 4)):
    return keras.Sequential([keras.Input(shape), *stack])


def test_every_kind_of_convolution():
    model = on_image(
        layers.Conv2D(8, 3, name="conv"),
        layers.Conv2D(8, 1, name="pointwise"),
        layers.Conv2D(8, 1, strides=2, name="strided"),
        layers.Conv2D(8, 1, groups=2, name="grouped"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise"),
        layers.SeparableConv2D(6, 3, padding="same", name="separable"),
        layers.Conv2DTranspose(5, 3, name="transposed"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, name="dense"),
    )
    assert kinds(model) == {
        "conv/kernel": "conv",
        "pointwise/kernel": "pointwise_conv",
        "strided/kernel": "conv",
        "grouped/kernel": "grouped_conv",
        "depthwise/kernel": "depthwise_conv",
        "separable/depthwise_kernel": "depthwise_conv",
        "separable/pointwise_kernel": "pointwise_conv",
        "transposed/kernel": "transposed_conv",
        "dense/kernel": "dense",
    }
    shapes = {spec.path: spec.canonical_shape for spec in find_kernels(model).specs}
    assert shapes["conv/kernel"] == (8, 3, 3, 4)
    assert shapes["grouped/kernel"] == (8, 1, 1, 4)
    assert shapes["depthwise/kernel"] == (16, 3, 3, 1)
    assert shapes["transposed/kernel"] == (5, 3, 3, 6)
    assert shapes["dense/kernel"] == (3, 5)


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank):
    conv = getattr(layers, f"Conv{rank}D")
    transposed = getattr(layers, f"Conv{rank}DTranspose")
    model = on_image(conv(6, 1, name="one"), transposed(5, 3, name="up"), shape=(*[6] * rank, 4))
    assert kinds(model) == {"one/kernel": "conv", "up/kernel": "transposed_conv"}
    assert find_kernels(model).specs[1].canonical_shape == (5, *[3] * rank, 6)


def test_recurrent_wrappers_and_attention():
    inputs = keras.Input((5, 4))
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(inputs)
    x = layers.TimeDistributed(layers.Dense(4), name="each")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    model = keras.Model(inputs, layers.GRU(2, name="gru")(x))
    found = kinds(model)
    assert sum(kind == "recurrent" for kind in found.values()) == 6
    assert sum(kind == "dense" for kind in found.values()) == 1 + 4
    query = next(s for s in find_kernels(model).specs if s.path.endswith("query/kernel"))
    assert query.shape == (4, 2, 3) and query.canonical_shape == (6, 4)
    output = next(s for s in find_kernels(model).specs if "attention_output" in s.path)
    assert output.shape == (2, 3, 4) and output.canonical_shape == (4, 6)


def test_nested_and_shared_layers_count_once():
    shared = layers.Conv2D(4, 1, name="shared")
    inner = on_image(shared, layers.BatchNormalization(name="bn"))
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, inner(shared(inner(inputs))))
    assert len(kinds(model)) == 1
    assert len(find_batch_norms(model)) == 1


def test_a_kernel_variable_that_two_layers_tie_counts_once():
    first = layers.Dense(4, name="a")

    class Tied(layers.Dense):
        def build(self, shape):
            self._kernel, self.bias = first._kernel, None

    assert list(kinds(on_image(first, Tied(4, use_bias=False, name="b"), shape=(4,)))) == ["a/kernel"]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.stack = [layers.Dense(4, name="same"), layers.Dense(4, name="same")]
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x, training=False):
        for layer in self.stack:
            x = layer(x)
        return self.norm(x, training=training)


def test_subclassed_models_and_equal_names():
    model = Subclassed()
    with pytest.raises(InputError, match="must be built"):
        walk(model)
    model(np.zeros((1, 4), np.float32))
    assert list(kinds(model)) == ["same/kernel", "same#2/kernel"]
    assert [norm.path for norm in find_batch_norms(model)] == ["norm"]


class Unknown(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(shape[-1], 2), name="table")

    def call(self, x):
        return keras.ops.matmul(x, self.table)


def test_what_has_no_rule_is_skipped_with_a_reason():
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, Unknown(name="mine")(layers.Embedding(10, 4, name="words")(inputs)))
    kernels = find_kernels(model)
    assert kernels.specs == ()
    assert {skip.path: skip.reason.split(":")[0] for skip in kernels.skipped} == {
        "words/embeddings": "an embedding is a lookup table",
        "mine/table": "no rule says which axes of a weight of Unknown are outputs and which are inputs",
    }


class Biased(Unknown):
    def build(self, shape):
        super().build(shape)
        self.add_weight(shape=(3, 2), name="gate_bias")


def attend(x):
    return layers.MultiHeadAttention(2, 3, name="layer")(x, x)


@pytest.mark.parametrize(
    ("apply", "expected"),
    [
        (layers.GRU(3, name="layer"), []),
        (layers.GRU(3, reset_after=False, name="layer"), []),
        (layers.LSTM(3, name="layer"), []),
        (layers.Bidirectional(layers.GRU(3), name="layer"), []),
        (attend, []),
        (layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="layer"), []),
        (layers.PReLU(name="layer"), []),
        (layers.LayerNormalization(axis=(1, 2), name="layer"), []),
        (layers.GroupNormalization(2, name="layer"), []),
        (Biased(name="layer"), ["layer/table"]),
    ],
)
def test_what_is_added_or_scales_is_no_kernel_and_nothing_is_said_of_it(apply, expected):
    inputs = keras.Input((5, 4))
    assert [skip.path for skip in find_kernels(keras.Model(inputs, apply(inputs))).skipped] == expected


def test_the_factors_of_lora_are_weights_without_a_rule():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(6, name="dense")])
    model.layers[0].enable_lora(2)
    assert {skip.path.rpartition("/")[2] for skip in find_kernels(model).skipped} == {"lora_kernel_a", "lora_kernel_b"}


def test_mixed_precision_and_frozen_layers_are_found():
    layer = layers.Conv2D(4, 1, dtype="mixed_float16", name="half", trainable=False)
    assert kinds(on_image(layer)) == {"half/kernel": Kind.POINTWISE_CONV}


def test_read_gives_the_canonical_layout():
    model = on_image(layers.Conv2D(6, (3, 5), name="conv"))
    kernel = model.layers[0].kernel.numpy()
    np.testing.assert_array_equal(find_kernels(model).read()["conv/kernel"], kernel.transpose(3, 0, 1, 2))
