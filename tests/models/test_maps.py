"""The Dense layers that work on maps are those that exact rewriting makes 1x1 convolutions of."""

import keras
import numpy as np
import pytest
from keras import layers

from reflow_tf.config import PruneConfig
from reflow_tf.export.operators import read_operators
from reflow_tf.export.placement import find_places
from reflow_tf.export.tflite import export_tflite
from reflow_tf.export.verification import check_masks
from reflow_tf.jobs.explanation import explain
from reflow_tf.models.graph import find_kernels
from reflow_tf.pruning import prune
from reflow_tf.sparsity.layers import Kind
from reflow_tf.targets.xnnpack import XNNPack

WIDTH = 32


class Excitation(layers.Layer):
    """Squeeze-and-excitation as a layer of one's own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.squeeze = layers.Dense(48, activation="relu", name="squeeze")
        self.excite = layers.Dense(WIDTH, activation="sigmoid", name="excite")

    def build(self, shape):
        self.squeeze.build((shape[0], shape[-1]))
        self.excite.build((shape[0], 48))

    def call(self, x):
        y = self.excite(self.squeeze(keras.ops.mean(x, axis=(1, 2))))
        return x * keras.ops.reshape(y, (-1, 1, 1, WIDTH))


def connect(x, name, last="sigmoid"):
    x = layers.Dense(48, activation="silu", name=f"{name}_squeeze")(x)
    return layers.Dense(WIDTH, activation=last, name=f"{name}_excite")(x)


def reshape(x):
    return layers.Reshape((1, 1, WIDTH))(x)


def nest(x):
    inner = keras.Input(x.shape[1:])
    return keras.Model(inner, connect(inner, "nested"), name="nested")(x)


# name -> what makes a map of a map
ON_MAPS = {
    "dense, then reshaped": lambda x: x * reshape(connect(layers.GlobalAveragePooling2D()(x), "se")),
    "reshaped, then dense": lambda x: x * connect(reshape(layers.GlobalAveragePooling2D()(x)), "se"),
    "kept dimensions": lambda x: x * connect(layers.GlobalAveragePooling2D(keepdims=True)(x), "se"),
    "multiplied by layers": lambda x: layers.Multiply()(
        [x, reshape(layers.Dropout(0.1)(connect(layers.GlobalAveragePooling2D()(x), "se")))]
    ),
    "a mean of ops": lambda x: x * reshape(connect(keras.ops.mean(x, axis=(1, 2)), "se")),
    "a pooling of the whole map": lambda x: x * connect(layers.AveragePooling2D(16)(x), "se"),
    "activations of their own": lambda x: (
        x
        * reshape(
            layers.Activation("sigmoid")(keras.ops.add(connect(layers.GlobalAveragePooling2D()(x), "se", None), 1.0))
        )
    ),
    "a nested model": lambda x: x * reshape(nest(layers.GlobalAveragePooling2D()(x))),
    "each pixel": lambda x: connect(x, "se"),
    "a layer of one's own": Excitation(name="own"),
}


def build(make, *, head=None):
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, 2, padding="same", activation="relu", name="stem")(image)
    x = layers.Conv2D(WIDTH, 1, activation="relu", name="expand")(x)
    x = layers.Conv2D(24, 1, name="project")(make(x) if make else x)
    x = layers.GlobalAveragePooling2D(keepdims=bool(head))(x)
    return keras.Model(image, head(x) if head else layers.Dense(10, activation="softmax", name="head")(x))


def find(model):
    return {spec.path for spec in find_kernels(model).specs if spec.kind is Kind.MAP_DENSE}


def find_convolutions(model):
    """The Dense kernels that are 1x1 convolutions in the rewritten file."""
    content = export_tflite(model, rewrite="exact", storage="dense").content
    kernels = find_kernels(model)
    dense = {spec.path for spec in kernels.specs if spec.kind in (Kind.DENSE, Kind.MAP_DENSE)}
    read = {operator.inputs[1] for operator in read_operators(content).operators if operator.kind == "CONV_2D"}
    places = find_places(content, {path: kernel for path, kernel in kernels.read().items() if path in dense})
    return {path for path, found in places.items() if any(place.tensor in read for place in found)}


@pytest.mark.parametrize("name", ON_MAPS)
def test_they_are_those_that_rewriting_convolves(name):
    model = build(ON_MAPS[name])
    assert len(find(model)) == 2
    assert find(model) == find_convolutions(model)


@pytest.mark.parametrize(
    "head",
    [
        lambda x: layers.Flatten()(layers.Dense(10, name="head")(x)),
        lambda x: layers.Dense(10, name="head")(
            layers.Dense(20, activation="relu", name="hidden")(layers.Flatten()(x))
        ),
        lambda x: layers.Reshape((10,))(layers.Dense(10, activation="softmax", name="head")(x)),
    ],
)
def test_classifiers_are_not(head):
    model = build(None, head=head)
    assert find(model) == find_convolutions(model) == set()


def test_what_is_not_computed_from_a_map_is_not():
    """A vector that is fed, as in FiLM."""
    image, vector = keras.Input((8, 8, WIDTH)), keras.Input((16,))
    x = layers.Multiply()([image, reshape(layers.Dense(WIDTH)(vector))])
    assert find(keras.Model([image, vector], x)) == set()


def test_what_something_else_reads_too_is_not():
    image = keras.Input((8, 8, WIDTH))
    y = connect(layers.GlobalAveragePooling2D()(image), "se")
    model = keras.Model(image, [layers.Multiply()([image, reshape(y)]), layers.Dense(3, name="other")(y)])
    assert find(model) == set()


def test_a_layer_that_also_serves_as_a_head_is_not():
    image = keras.Input((8, 8, WIDTH))
    shared = layers.Dense(WIDTH, name="shared")
    x = layers.Multiply()([image, reshape(shared(layers.GlobalAveragePooling2D()(image)))])
    model = keras.Model(image, shared(layers.GlobalAveragePooling2D()(x)))
    assert find(model) == set()


def test_series_and_vectors_have_none():
    series = keras.Sequential([keras.Input((20, 4)), layers.Dense(8), layers.GlobalAveragePooling1D(), layers.Dense(3)])
    assert find(series) == set()


@pytest.mark.parametrize("name", ["dense, then reshaped", "kept dimensions", "a layer of one's own"])
def test_a_network_with_them_runs_sparse_at_the_default_sparsity(name):
    model = build(ON_MAPS[name])
    result = prune(model, PruneConfig(target="xnnpack", repair="none"))
    assert {path for path in result.masks if "head" in path} == set() and len(result.masks) == 4
    file = export_tflite(result.model, rewrite="exact")
    verdict = explain(file.content).as_given
    assert verdict.eligible and verdict.blockers == ()
    assert all(check.ok for check in check_masks(file.content, result.masks))
    assert np.all([np.count_nonzero(mask) > 0 for mask in result.masks.values()])
    assert XNNPack().objection(next(s for s in find_kernels(model).specs if s.path == "head/kernel")) is not None


def convolve(x, name):
    x = layers.Conv2D(8, 1, activation="relu", name=f"{name}_reduce")(x)
    return layers.Conv2D(WIDTH, 1, activation="sigmoid", name=f"{name}_expand")(x)


def heads(model):
    return {spec.path for spec in find_kernels(model).specs if spec.kind is Kind.HEAD_CONV}


def find_fully_connected(model):
    """The 1x1 convolutions that are no convolutions in the rewritten file, and so in no cluster of XNNPACK's."""
    content = export_tflite(model, rewrite="exact", storage="dense").content
    kernels, graph = find_kernels(model), read_operators(content)
    pointwise = {spec.path for spec in kernels.specs if spec.kind in (Kind.POINTWISE_CONV, Kind.HEAD_CONV)}
    read = {operator.inputs[1] for operator in graph.operators if operator.kind == "CONV_2D"}
    places = find_places(content, {path: kernel for path, kernel in kernels.read().items() if path in pointwise})
    return {path for path, found in places.items() if not any(place.tensor in read for place in found)}


@pytest.mark.parametrize(
    ("make", "head", "expected"),
    [
        (None, lambda x: layers.Flatten()(layers.Conv2D(10, 1, name="head")(x)), {"head/kernel"}),
        (
            lambda x: x * convolve(layers.GlobalAveragePooling2D(keepdims=True)(x), "se"),
            lambda x: layers.Reshape((10,))(layers.Conv2D(10, 1, name="head")(layers.Dropout(0.1)(x))),
            {"head/kernel"},
        ),
        (
            None,
            lambda x: layers.Flatten()(
                layers.Conv2D(10, 1, name="head")(layers.Conv2D(20, 1, activation="relu", name="hidden")(x))
            ),
            {"head/kernel"},
        ),
    ],
    ids=["one", "beside squeeze-and-excitation", "two"],
)
def test_heads_are_the_convolutions_that_are_dense_in_the_file(make, head, expected):
    model = build(make, head=head)
    assert heads(model) == find_fully_connected(model) == expected


def classify(**options):
    return layers.Conv2D(10, 1, name="head", **options)


# name -> what makes classes of an average, and whether its convolution is fully connected in the file
HEADS = {
    "a softmax of its own": (lambda x: layers.Flatten()(classify(activation="softmax")(x)), True),
    "a softmax behind it": (lambda x: keras.ops.squeeze(layers.Softmax()(classify()(x)), (1, 2)), True),
    "a ReLU of its own": (lambda x: layers.Flatten()(layers.Dropout(0.1)(classify(activation="relu6")(x))), True),
    "a batch norm and a ReLU": (
        lambda x: layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(classify()(x)))),
        True,
    ),
    "separable": (lambda x: layers.Flatten()(layers.SeparableConv2D(10, 1, name="head")(x)), True),
    "reshaped twice": (lambda x: layers.Flatten()(layers.Reshape((1, 1, 10))(classify()(x))), True),
    "a ReLU that no operator has": (lambda x: layers.Flatten()(layers.ReLU(5)(classify()(x))), False),
    "a sigmoid": (lambda x: layers.Flatten()(classify(activation="sigmoid")(x)), False),
    "a row": (lambda x: layers.Reshape((1, 10))(classify()(x)), False),
    "a column": (lambda x: layers.Reshape((10, 1))(classify()(x)), False),
    "a Dense layer behind it": (lambda x: layers.Dense(5)(layers.ReLU()(layers.Flatten()(classify()(x)))), False),
    "read twice": (lambda x: (lambda y: layers.Flatten()(y * layers.ReLU()(y)))(classify()(x)), False),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_take_along_what_their_operators_do(name):
    head, is_one = HEADS[name]
    model = build(None, head=head)
    assert heads(model) == find_fully_connected(model)
    assert len(heads(model)) == is_one


def test_a_convolution_of_a_map_of_one_pixel_is_no_head():
    """A map that strides made small is in the cluster."""
    image = keras.Input((8, 8, WIDTH))
    x = layers.DepthwiseConv2D(8, 8, name="whole")(image)
    x = layers.Conv2D(WIDTH, 1, name="on_it")(x)
    assert heads(keras.Model(image, layers.Flatten()(x))) == set()


def test_a_convolution_that_also_serves_in_a_block_is_no_head():
    image = keras.Input((8, 8, WIDTH))
    shared = layers.Conv2D(WIDTH, 1, name="shared")
    x = layers.Multiply()([image, shared(layers.GlobalAveragePooling2D(keepdims=True)(image))])
    model = keras.Model(image, shared(layers.GlobalAveragePooling2D(keepdims=True)(x)))
    assert heads(model) == set()


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small"])
def test_heads_of_published_networks(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3))
    assert heads(model) == find_fully_connected(model) != set()
