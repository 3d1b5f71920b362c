import keras
import pytest
from keras import layers

from reflow_tf.models.consumers import find_norm_cover
from reflow_tf.models.graph import find_kernels


def sort(model):
    cover = find_norm_cover(model, [spec.path for spec in find_kernels(model).specs])
    return {path: name for name in ("covered", "bare", "unknown") for path in getattr(cover, name)}


def on_image(*stack):
    return keras.Sequential([keras.Input((8, 8, 4)), *stack])


def conv():
    return layers.Conv2D(4, 1, name="conv")


@pytest.mark.parametrize(
    "between",
    [
        [],
        [layers.ReLU()],
        [layers.Activation("gelu"), layers.Dropout(0.1), layers.ZeroPadding2D(1)],
        [layers.Reshape((4, 16, 4))],
        [on_image(layers.ReLU())],
    ],
)
def test_a_batch_norm_behind_what_keeps_channels_covers(between):
    assert sort(on_image(conv(), *between, layers.BatchNormalization()))["conv/kernel"] == "covered"


@pytest.mark.parametrize(
    "between", [layers.AveragePooling2D(2), layers.LayerNormalization(), layers.Conv2D(4, 1, name="next")]
)
def test_what_mixes_or_normalizes_otherwise_does_not(between):
    assert sort(on_image(conv(), between, layers.BatchNormalization()))["conv/kernel"] == "bare"


def test_a_way_around_the_batch_norm_is_bare():
    inputs = keras.Input((8, 8, 4))
    x = conv()(inputs)
    model = keras.Model(inputs, layers.Add()([layers.BatchNormalization()(x), x]))
    assert sort(model) == {"conv/kernel": "bare"}


def test_an_output_of_the_model_is_bare():
    inputs = keras.Input((8, 8, 4))
    x = conv()(inputs)
    model = keras.Model(inputs, [layers.BatchNormalization()(x), x])
    assert sort(model) == {"conv/kernel": "bare"}


def test_a_squeeze_excite_and_a_classifier_are_bare():
    inputs = keras.Input((8, 8, 4))
    x = layers.BatchNormalization()(conv()(inputs))
    gate = keras.ops.relu(layers.Dense(2, name="squeeze")(layers.GlobalAveragePooling2D(keepdims=True)(x)))
    x = x * layers.Dense(4, activation="sigmoid", name="excite")(gate)
    x = layers.BatchNormalization()(keras.ops.relu(layers.Conv2D(6, 3, name="after")(x)))
    model = keras.Model(inputs, layers.Dense(3, name="classes")(layers.GlobalAveragePooling2D()(x)))
    assert sort(model) == {
        "conv/kernel": "covered",
        "squeeze/kernel": "bare",
        "excite/kernel": "bare",
        "after/kernel": "covered",
        "classes/kernel": "bare",
    }


def test_nested_models_are_read_through_in_both_directions():
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 1, name="conv")], name="inner")
    norm = keras.Sequential([keras.Input((8, 8, 4)), layers.BatchNormalization()], name="norm")
    inputs = keras.Input((8, 8, 4))
    assert sort(keras.Model(inputs, norm(inner(inputs)))) == {"inner/conv/kernel": "covered"}
    # Used twice, the second time with nothing behind it.
    assert sort(keras.Model(inputs, inner(norm(inner(inputs))))) == {"inner/conv/kernel": "bare"}


def test_layers_applied_step_by_step():
    inputs = keras.Input((5, 8))
    x = layers.TimeDistributed(layers.Dense(4, name="dense"), name="steps")(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(layers.BatchNormalization())(x))
    assert sort(model) == {"steps/dense/kernel": "covered"}


class Subclassed(keras.Model):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = layers.Conv2D(4, 1, name="conv"), norm

    def call(self, x):
        return self.norm(self.conv(x))


def test_a_subclassed_model_is_unknown_unless_it_has_no_batch_norm():
    for norm, expected in ((layers.BatchNormalization(), "unknown"), (layers.LayerNormalization(), "bare")):
        model = Subclassed(norm)
        model(keras.ops.zeros((1, 8, 8, 4)))
        assert sort(model) == {"conv/kernel": expected}


def test_layers_inside_a_composite_layer_are_unknown():
    inputs = keras.Input((5, 8))
    model = keras.Model(
        inputs, layers.BatchNormalization()(layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs))
    )
    assert set(sort(model).values()) == {"unknown"}
