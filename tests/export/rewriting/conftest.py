"""Small .tflite graphs drawn operator by operator, and what LiteRT makes of them."""

import types

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from reflow_tf.export import flatbuffer
from reflow_tf.export.operators import read_operators

_CODES = {name: code for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
RELU = schema.ActivationFunctionType.RELU
_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2, np.dtype(np.int8): 9}


class Sketch:
    """A network, drawn front to back; every method returns the tensor that it computes.

    Weights are random by seed and shrink with their number, so that signals neither die nor grow.
    """

    def __init__(self, *shape, dtype=np.float32, half=False):
        self.rng = np.random.default_rng(0)
        self.half = half
        self.tensors, self.buffers, self.codes, self.operators = [], [schema.BufferT()], [], []
        self.dtype = np.dtype(dtype)
        self.input = self.value("image", *(shape or (1, 16, 16, 3)))

    def value(self, name, *shape):
        self.tensors.append(
            schema.TensorT(name=name.encode(), shape=list(shape), type=_TYPES[self.dtype], buffer=0, hasRank=True)
        )
        return len(self.tensors) - 1

    def shape(self, index):
        return tuple(self.tensors[index].shape)

    def constant(self, values, name="constant"):
        values = np.asarray(values)
        self.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        index = self.value(name, *values.shape)
        self.tensors[index].type, self.tensors[index].buffer = _TYPES[values.dtype], len(self.buffers) - 1
        return index

    def weights(self, *shape, name="weights"):
        values = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        if not self.half:
            return self.constant(values.astype(self.dtype), name)
        return self.add("DEQUANTIZE", [self.constant(values.astype(np.float16), name)], shape)

    def add(self, kind, inputs, shape, options=None, name=None):
        output = self.value(name or f"{kind.lower()}_{len(self.operators)}", *shape)
        code = _CODES[kind]
        self.codes.append(schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=1))
        kind_of_options = "NONE" if options is None else type(options).__name__.removesuffix("T")
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=len(self.codes) - 1,
                inputs=list(inputs),
                outputs=[output],
                builtinOptions=options,
                builtinOptionsType=getattr(schema.BuiltinOptions, kind_of_options),
            )
        )
        return output

    def conv(
        self, x, channels, kernel=1, stride=1, padding=SAME, *, depthwise=False, dilation=1, weights=None, name=None
    ):
        batch, height, width, inputs = self.shape(x)
        size = [-(-n // stride) if padding == SAME else (n - kernel) // stride + 1 for n in (height, width)]
        options = schema.DepthwiseConv2DOptionsT(depthMultiplier=1) if depthwise else schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, stride, stride
        options.dilationHFactor, options.dilationWFactor = dilation, dilation
        options.fusedActivationFunction = RELU
        if weights is None:
            shape = (1, kernel, kernel, channels) if depthwise else (channels, kernel, kernel, inputs)
            weights = self.weights(*shape)
        bias = self.constant(self.rng.uniform(0, 0.5, channels).astype(np.float32), "bias")
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        return self.add(kind, [x, weights, bias], (batch, *size, channels), options, name)

    def depthwise(self, x, kernel=3, stride=1, padding=SAME, name=None):
        return self.conv(x, self.shape(x)[3], kernel, stride, padding, depthwise=True, name=name)

    def pad(self, x, rows, columns):
        batch, height, width, channels = self.shape(x)
        paddings = self.constant(np.array([(0, 0), rows, columns, (0, 0)], np.int32), "paddings")
        shape = batch, height + sum(rows), width + sum(columns), channels
        return self.add("PAD", [x, paddings], shape, schema.PadOptionsT())

    def binary(self, kind, x, y, name=None):
        shape = np.broadcast_shapes(self.shape(x), self.shape(y))
        return self.add(kind, [x, y], shape, getattr(schema, f"{kind.title()}OptionsT")(), name)

    def mean(self, x, keep=False):
        batch, _, _, channels = self.shape(x)
        shape = (batch, 1, 1, channels) if keep else (batch, channels)
        axes = self.constant(np.array([1, 2], np.int32), "axes")
        return self.add("MEAN", [x, axes], shape, schema.ReducerOptionsT(keepDims=keep))

    def dense(self, x, channels, keep=False, activation=0):
        weights = self.weights(channels, self.shape(x)[-1])
        options = schema.FullyConnectedOptionsT(keepNumDims=keep, fusedActivationFunction=activation)
        return self.add("FULLY_CONNECTED", [x, weights, -1], (*self.shape(x)[:-1], channels), options)

    def reshape(self, x, *shape):
        constant = self.constant(np.array(shape, np.int32), "shape")
        return self.add("RESHAPE", [x, constant], shape, schema.ReshapeOptionsT())

    def pool(self, x, kind, kernel, stride, padding):
        batch, height, width, channels = self.shape(x)
        size = [-(-n // stride) if padding == SAME else (n - kernel) // stride + 1 for n in (height, width)]
        options = schema.Pool2DOptionsT(
            padding=padding, strideH=stride, strideW=stride, filterHeight=kernel, filterWidth=kernel
        )
        return self.add(kind, [x], (batch, *size, channels), options)

    def stem(self, x=None, padding=SAME, name="stem"):
        """What a cluster begins with: a 3x3 convolution with stride 2 of 3 channels, and a 1x1 one behind it."""
        return self.conv(self.conv(self.input if x is None else x, 8, 3, 2, padding, name=name), 8)

    def finish(self, *outputs):
        graph = schema.SubGraphT(
            tensors=self.tensors, inputs=[self.input], outputs=list(outputs), operators=self.operators
        )
        model = schema.ModelT(version=3, operatorCodes=self.codes, subgraphs=[graph], buffers=self.buffers)
        return flatbuffer.serialize(model)

    def classify(self, x):
        return self.finish(self.dense(self.mean(self.conv(x, 12)), 5))


def run(content, *images):
    """The outputs of a file for each image, as one vector an image."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    rows = []
    for image in images:
        interpreter.set_tensor(entry["index"], image.astype(entry["dtype"]))
        interpreter.invoke()
        outputs = [interpreter.get_tensor(details["index"]) for details in interpreter.get_output_details()]
        rows.append(np.concatenate([output.reshape(-1) for output in outputs]).astype(np.float64))
    return np.array(rows)


def make_images(shape, seed=0):
    """Images that differ in their corners, so that a mirror, or a swap of height and width, is seen."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.3, shape)
    image[:, : shape[1] // 3, : shape[2] // 2] += rng.normal(0, 2, shape[3])
    image[:, shape[1] // 2 :, : shape[2] // 4] += rng.normal(0, 2, shape[3])
    return image.astype(np.float32)


def measure(old, new, images=None):
    """Largest difference of two files' outputs, relative to the largest one, on images on which a mirror would show."""
    if images is None:
        (entry,) = Interpreter(model_content=old).get_input_details()
        images = [make_images(tuple(entry["shape"]), seed) for seed in (0, 1)]
    ours, theirs = run(new, *images), run(old, *images)
    scale = np.abs(theirs).max()
    for axes in ((1,), (2,), (1, 2), (3,)):
        mirrored = run(old, *(np.flip(image, axes) for image in images))
        assert np.abs(mirrored - theirs).max() > 1e-4 * scale, f"the outputs do not tell a mirror along {axes}"
    return np.abs(ours - theirs).max() / scale


def count(content, kind):
    return sum(operator.kind == kind for operator in read_operators(content).operators)


def list_strided(content):
    """(kernel height, paddings, padding) of each convolution with stride 2 that is not alone for itself."""
    graph = read_operators(content)
    producers = {operator.outputs[0]: operator for operator in graph.operators}
    found = []
    for operator in graph.operators:
        if "CONV_2D" in operator.kind and operator.attributes["strides"] == (2, 2):
            before = producers.get(operator.inputs[0])
            paddings = before.attributes["paddings"][1:3] if before and before.kind == "PAD" else None
            kernel = graph.values[operator.inputs[1]].shape[1]
            found.append((kernel, paddings, operator.attributes["padding"]))
    return found


@pytest.fixture(scope="session")
def draw():
    """Everything above, by name."""
    return types.SimpleNamespace(
        Sketch=Sketch, run=run, measure=measure, make_images=make_images, count=count, list_strided=list_strided
    )
