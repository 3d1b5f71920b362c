import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite


@pytest.fixture(scope="module")
def small():
    """A stem, a block with squeeze and excitation, a head; half of the 1x1 weights of `project` are zero."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, 2, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0, name="stem_relu")(layers.BatchNormalization(name="stem_norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="spatial")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(gate)
    x = layers.Conv2D(64, 1, activation="relu", name="project")(layers.Multiply(name="scale")([x, gate]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(4, name="classes")(x), name="small")
    kernel = model.get_layer("project").kernel
    kernel.assign(kernel.numpy() * (np.arange(64) % 2))
    return model


@pytest.fixture(scope="module")
def graph(small):
    return read_operators(export_tflite(small).content)


def test_operators_are_named_after_the_layers_that_a_person_knows(graph):
    assert [(operator.kind, operator.name) for operator in graph.operators] == [
        ("CONV_2D", "stem"),
        ("DEPTHWISE_CONV_2D", "spatial"),
        ("MEAN", "squeeze"),
        ("CONV_2D", "excite"),
        ("LOGISTIC", "excite"),
        ("MUL", "scale"),
        ("CONV_2D", "project"),
        ("MEAN", "pool"),
        ("FULLY_CONNECTED", "fully_connected"),  # the file's output: the converter calls it Identity
    ]
    assert [operator.index for operator in graph.operators] == list(range(9))


def test_attributes(graph):
    stem, spatial, squeeze, *_, pool, dense = graph.operators
    assert stem.attributes == {"padding": "SAME", "strides": (2, 2), "dilations": (1, 1), "activation": "RELU6"}
    assert spatial.attributes["depth_multiplier"] == 1
    assert (squeeze.attributes["axes"], squeeze.attributes["keep_dims"]) == ((1, 2), True)
    assert (pool.attributes["axes"], pool.attributes["keep_dims"]) == ((1, 2), False)
    assert not dense.attributes["keep_num_dims"]


def test_values(graph):
    (image,) = graph.inputs
    assert (graph.values[image].shape, graph.values[image].dtype) == ((1, 16, 16, 3), "float32")
    assert not graph.values[image].constant
    (output,) = graph.outputs
    assert graph.operators[-1].outputs == (output,)
    assert [value.index for value in graph.values] == list(range(len(graph.values)))


@pytest.mark.parametrize(("quantize", "stored"), [("none", "float32"), ("float16", "float16")])
def test_what_unpacks_a_constant_is_that_constant(small, quantize, stored):
    graph = read_operators(export_tflite(small, quantize=quantize).content)
    assert not {operator.kind for operator in graph.operators} & {"DENSIFY", "DEQUANTIZE"}
    project = next(operator for operator in graph.operators if operator.name == "project")
    weights = graph.values[project.inputs[1]]
    assert weights.constant
    assert weights.storage == "sparse"
    assert (weights.shape, weights.num_elements, weights.num_zeros) == ((64, 1, 1, 8), 512, 256)
    assert (weights.dtype, weights.stored_dtype) == ("float32", stored)
    stem = graph.values[graph.operators[0].inputs[1]]
    assert (stem.constant, stem.storage, stem.num_zeros) == (True, "dense", 0)


def test_stored_dense_has_the_same_zeros(small):
    graph = read_operators(export_tflite(small, storage="dense").content)
    project = next(operator for operator in graph.operators if operator.name == "project")
    weights = graph.values[project.inputs[1]]
    assert (weights.storage, weights.num_zeros) == ("dense", 256)


def test_int8(small):
    batches = [np.random.default_rng(0).random((4, 16, 16, 3), np.float32)]
    graph = read_operators(export_tflite(small, quantize="int8", calibration=batches).content)
    project = next(operator for operator in graph.operators if operator.name == "project")
    weights = graph.values[project.inputs[1]]
    assert (weights.dtype, weights.stored_dtype) == ("int8", "int8")
    assert weights.num_zeros >= 256


def test_names_that_nobody_gave_become_the_kind(conv_file, weights):
    (operator,) = read_operators(conv_file(weights((4, 1, 1, 4), 0.5))).operators
    assert operator.name == "result0"  # a name without a scope is somebody's choice
    model = flatbuffer.parse(conv_file(weights((4, 1, 1, 4), 0.5)))
    model.subgraphs[0].tensors[operator.outputs[0]].name = b"StatefulPartitionedCall_1:0"
    assert read_operators(flatbuffer.serialize(model)).operators[0].name == "conv_2d"


def test_scopes_without_numbers_keep_theirs(conv_file, weights):
    model = flatbuffer.parse(conv_file(weights((4, 1, 1, 4), 0.5)))
    model.subgraphs[0].tensors[3].name = b"MobilenetV2/expanded_conv_3/Relu6;MobilenetV2/expanded_conv_3/Conv2D"
    model.subgraphs[0].tensors[2].name = b"MobilenetV2/Conv/weights"
    assert read_operators(flatbuffer.serialize(model)).operators[0].name == "expanded_conv_3"


def test_negative_axes_are_counted_from_the_front(conv_file, weights):
    model = flatbuffer.parse(conv_file(weights((4, 1, 1, 4), 0.5)))
    graph = model.subgraphs[0]
    model.buffers.append(schema.BufferT(data=np.frombuffer(np.array([-2, -3], np.int32).tobytes(), np.uint8)))
    graph.tensors += [
        schema.TensorT(name=b"axes", shape=[2], type=schema.TensorType.INT32, buffer=len(model.buffers) - 1),
        schema.TensorT(name=b"mean", shape=[1, 4], type=0, buffer=0),
    ]
    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=40, builtinCode=40, version=1))
    graph.operators.append(
        schema.OperatorT(
            opcodeIndex=len(model.operatorCodes) - 1,
            inputs=[3, 4],
            outputs=[5],
            builtinOptionsType=schema.BuiltinOptions.ReducerOptions,
            builtinOptions=schema.ReducerOptionsT(),
        )
    )
    assert read_operators(flatbuffer.serialize(model)).operators[1].attributes["axes"] == (1, 2)


def damage(model, what):
    graph = model.subgraphs[0]
    operator = graph.operators[0]
    match what:
        case "options":
            operator.builtinOptions, operator.builtinOptionsType = None, 0
        case "output":
            operator.outputs = [99]
        case "input":
            operator.inputs = [operator.inputs[0], 589_824, -1]
        case "first input":
            operator.inputs = [-1, *operator.inputs[1:]]
        case "code":
            operator.opcodeIndex = 7
        case "buffer":
            graph.tensors[0].buffer = 99
        case "end":
            graph.outputs = [99]
        case "shape":
            graph.tensors[operator.inputs[0]].shape = []


@pytest.mark.parametrize("what", ["options", "output", "input", "first input", "code", "buffer", "end", "shape"])
def test_a_damaged_file_is_refused(conv_file, weights, what):
    model = flatbuffer.parse(conv_file(weights((4, 1, 1, 4), 0.5)))
    damage(model, what)
    with pytest.raises(InputError, match="must be whole"):
        read_operators(flatbuffer.serialize(model))


def test_no_file_at_all():
    with pytest.raises(InputError, match="TFL3"):
        read_operators(b"hello, hello")


@pytest.mark.parametrize(
    "layer, kind",
    [
        (layers.Conv2D(4, 3), "CONV_2D"),
        (layers.Conv1D(4, 3), "CONV_2D"),
        (layers.DepthwiseConv2D(3), "DEPTHWISE_CONV_2D"),
        (layers.MaxPooling2D(), "MAX_POOL_2D"),
        (layers.AveragePooling2D(2), "AVERAGE_POOL_2D"),
        (layers.Conv2DTranspose(4, 3, strides=2), "TRANSPOSE_CONV"),
        (layers.Conv1DTranspose(4, 3, strides=2), "TRANSPOSE_CONV"),
    ],
)
def test_operators_of_maps_are_read_as_the_converter_writes_them(layer, kind):
    shape = (8, 3) if "1D" in type(layer).__name__ else (8, 8, 3)
    file = export_tflite(keras.Sequential([keras.Input(shape), layer]))
    assert kind in [operator.kind for operator in read_operators(file.content).operators]
