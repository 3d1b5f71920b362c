"""Hand-made .tflite files that each try one rule of XNNPACK, and what real runtimes do with them.

What `FILES` says of runtimes was seen in them: in ai-edge-litert 1.4.0 and tflite-runtime 2.14.0 by the instructions
that QEMU counts, in LiteRT.js 2.5.3 by outputs that differ in their last bits; test_verdict_against_runtime.py looks
again.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.sparse_storage import store_sparse

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
ONE = ((1, 1), (1, 1))
_OPTIONS = {"ADD": schema.AddOptionsT, "MUL": schema.MulOptionsT, "SUB": schema.SubOptionsT}


class Network:
    """A float32 file, operator by operator; every method takes and gives tensor numbers."""

    def __init__(self, shape=(1, 32, 32, 3), zeros=0.9, half=False, half_bias=False):
        self._rng = np.random.default_rng(0)
        self._zeros, self._half, self._half_bias = zeros, half, half_bias
        self._buffers, self._tensors, self._operators, self._codes = [schema.BufferT()], [], [], []
        self.image = self._tensor("image", shape)

    def shape(self, x):
        return tuple(self._tensors[x].shape)

    def constant(self, values, dtype=np.float32):
        return self._tensor("constant", np.shape(values), np.asarray(values, dtype))

    def op(self, kind, inputs, shape, options=None):
        code = getattr(schema.BuiltinOperator, kind)
        if code not in self._codes:
            self._codes.append(code)
        output = self._tensor(f"{kind.lower()}_{len(self._operators)}", shape)
        name = type(options).__name__.removesuffix("T") if options else "NONE"
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=self._codes.index(code),
                inputs=list(inputs),
                outputs=[output],
                builtinOptionsType=getattr(schema.BuiltinOptions, name),
                builtinOptions=options,
            )
        )
        return output

    def conv(self, x, filters, kernel=1, stride=1, padding=SAME, zeros=None):
        channels = self.shape(x)[3]
        weights = self._weights((filters, kernel, kernel, channels), self._zeros if zeros is None else zeros)
        if kernel > 1:
            weights = self._weights(weights.shape, 0)
        options = schema.Conv2DOptionsT(padding=padding, strideH=stride, strideW=stride)
        shape = (*self._slide(x, kernel, stride, padding), filters)
        return self.op("CONV_2D", [x, self._stored(weights), self._bias(filters)], shape, options)

    def depthwise(self, x, kernel=3, stride=1, padding=SAME, multiplier=1, dilation=1):
        channels = self.shape(x)[3] * multiplier
        weights = self._weights((1, kernel, kernel, channels), 0)
        options = schema.DepthwiseConv2DOptionsT(
            padding=padding,
            strideH=stride,
            strideW=stride,
            depthMultiplier=multiplier,
            dilationHFactor=dilation,
            dilationWFactor=dilation,
            fusedActivationFunction=schema.ActivationFunctionType.RELU6,
        )
        shape = (*self._slide(x, (kernel - 1) * dilation + 1, stride, padding), channels)
        return self.op("DEPTHWISE_CONV_2D", [x, self._stored(weights), self._bias(channels)], shape, options)

    def pad(self, x, rows_and_columns=ONE):
        paddings = np.array([(0, 0), *rows_and_columns, (0, 0)], np.int32)
        shape = np.array(self.shape(x)) + paddings.sum(1)
        return self.op("PAD", [x, self._tensor("paddings", (4, 2), paddings)], shape.tolist(), schema.PadOptionsT())

    def stem(self, x=None, padding=ONE):
        return self.conv(self.pad(self.image if x is None else x, padding), 32, 3, 2, VALID)

    def block(self, x, filters=64, **kwargs):
        return self.conv(self.depthwise(x, **kwargs), filters)

    def body(self, x=None):
        return self.block(self.block(self.stem() if x is None else x))

    def mean(self, x, keep=False, axes=(1, 2), kind="MEAN"):
        sizes = enumerate(self.shape(x))
        shape = [1 if axis in axes else size for axis, size in sizes if keep or axis not in axes]
        return self.op(kind, [x, self.constant(axes, np.int32)], shape, schema.ReducerOptionsT(keepDims=keep))

    def reshape(self, x, shape):
        return self.op("RESHAPE", [x, self.constant(shape, np.int32)], shape, schema.ReshapeOptionsT(newShape=shape))

    def dense(self, x, units, keep=False, zeros=0.0):
        depth = self.shape(x)[-1]
        leading = self.shape(x)[:-1] if keep else (int(np.prod(self.shape(x))) // depth,)
        weights = self._stored(self._weights((units, depth), zeros))
        options = schema.FullyConnectedOptionsT(keepNumDims=keep)
        return self.op("FULLY_CONNECTED", [x, weights, self._bias(units)], (*leading, units), options)

    def unary(self, x, kind, options=None):
        return self.op(kind, [x], self.shape(x), options)

    def binary(self, first, second, kind="ADD"):
        options = _OPTIONS.get(kind, schema.MaximumMinimumOptionsT)()
        return self.op(kind, [first, second], np.broadcast_shapes(self.shape(first), self.shape(second)), options)

    def excite(self, x, squeezed):
        """Squeeze and excitation, from the squeezed features on."""
        gate = self.unary(self.conv(self.conv(squeezed, 16), self.shape(x)[3]), "LOGISTIC")
        return self.binary(x, gate, "MUL")

    def pool(self, x, kind="MAX_POOL_2D", size=2, window=None):
        window = window or size
        options = schema.Pool2DOptionsT(strideH=size, strideW=size, filterHeight=window, filterWidth=window)
        return self.op(kind, [x], (*self._slide(x, size, size, SAME), self.shape(x)[3]), options)

    def concatenate(self, *values):
        shape = (*self.shape(values[0])[:3], sum(self.shape(value)[3] for value in values))
        return self.op("CONCATENATION", values, shape, schema.ConcatenationOptionsT(axis=3))

    def file(self, *outputs):
        graph = schema.SubGraphT(
            tensors=self._tensors, inputs=[self.image], outputs=list(outputs), operators=self._operators
        )
        # Version 1 of FULLY_CONNECTED knows no keep_num_dims.
        codes = [
            schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=1 + (code == 9))
            for code in self._codes
        ]
        return flatbuffer.serialize(
            schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=self._buffers)
        )

    def _tensor(self, name, shape, values=None):
        buffer, kind = 0, schema.TensorType.FLOAT32
        if values is not None:
            raw = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
            self._buffers.append(schema.BufferT(data=raw))
            buffer = len(self._buffers) - 1
            kind = next(code for code, dtype in flatbuffer.NUMPY_TYPES.items() if dtype == values.dtype)
        self._tensors.append(
            schema.TensorT(name=name.encode(), shape=[int(size) for size in shape], type=kind, buffer=buffer)
        )
        return len(self._tensors) - 1

    def _weights(self, shape, zeros):
        values = self._rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        values.reshape(-1)[self._rng.permutation(values.size)[: round(zeros * values.size)]] = 0
        return values

    def _stored(self, weights):
        if not self._half:
            return self.constant(weights)
        return self.op("DEQUANTIZE", [self.constant(weights, np.float16)], weights.shape, schema.DequantizeOptionsT())

    def _bias(self, size):
        values = self._rng.standard_normal(size)
        return self._stored(values) if self._half_bias else self.constant(values)

    def _slide(self, x, window, stride, padding):
        batch, *sizes, _ = self.shape(x)
        return batch, *(-(-(size - (window - 1) * (padding == VALID)) // stride) for size in sizes)


def _file(build, **kwargs):
    network = Network(**kwargs)
    outputs = build(network)
    return network.file(*(outputs if isinstance(outputs, tuple) else (outputs,)))


def _tail(n, end):
    """A chain that no mean ends, beside one that a mean ends."""
    return end(n.body()), n.mean(n.body())


def _twice(n, kind):
    x = n.block(n.stem())
    return n.mean(n.block(n.binary(x, x, kind)))


def _kept(n, **kwargs):
    return n.mean(n.body(), True, **kwargs)


def _softmax(n, x):
    return n.unary(x, "SOFTMAX", schema.SoftmaxOptionsT(beta=1.0))


def _to_space(n, x):
    batch, height, width, depth = n.shape(x)
    shape = (batch, 2 * height, 2 * width, depth // 4)
    return n.op("DEPTH_TO_SPACE", [x], shape, schema.DepthToSpaceOptionsT(blockSize=2))


@dataclasses.dataclass(frozen=True)
class Case:
    """A file, its 1x1 weights stored sparse, and the same stored dense; what each runtime does with the sparse one.

    Attributes:
        seen: in LiteRT.js 2.5.3, ai-edge-litert 1.4.0 and tflite-runtime 2.14.0: S runs sparse, D runs dense, W gives
            wrong outputs or none.
    """

    build: Callable[[Network], int | tuple[int, ...]]
    seen: str
    settings: dict = dataclasses.field(default_factory=dict)
    stored_sparse: bool = True

    @property
    def dense(self):
        return _file(self.build, **self.settings)

    @property
    def content(self):
        return store_sparse(self.dense) if self.stored_sparse else self.dense


def _then_mean(change):
    """stem, block, something, block, mean."""
    return lambda n: n.mean(n.block(change(n, n.block(n.stem()))))


def _activated(kind, options=None):
    return _then_mean(lambda n, x: n.unary(x, kind, options() if options else None))


FILES = {
    "plain": Case(lambda n: n.mean(n.body()), "SSS"),
    "stored dense": Case(lambda n: n.mean(n.body()), "DDD", stored_sparse=False),
    "65 % zeros": Case(lambda n: n.mean(n.body()), "DDD", {"zeros": 0.65}),
    "67 % zeros": Case(lambda n: n.mean(n.body()), "SSS", {"zeros": 0.67}),
    "batch of 2": Case(lambda n: n.mean(n.body()), "SSS", {"shape": (2, 32, 32, 3)}),
    "float16": Case(lambda n: n.mean(n.body()), "SSS", {"half": True, "half_bias": True}),
    "float16, float32 bias": Case(lambda n: n.mean(n.body()), "WWS", {"half": True}),
    "float16, few zeros": Case(lambda n: n.mean(n.body()), "DDD", {"half": True, "half_bias": True, "zeros": 0.65}),
    "wide": Case(lambda n: n.mean(n.excite(x := n.body(), n.mean(x, True))), "SSS", {"shape": (1, 32, 64, 3)}),
    "stem SAME": Case(lambda n: n.mean(n.body(n.conv(n.image, 32, 3, 2))), "DDD"),
    "stem SAME, odd": Case(lambda n: n.mean(n.body(n.conv(n.image, 32, 3, 2))), "DDD", {"shape": (1, 33, 33, 3)}),
    "stem padded (0,1)": Case(lambda n: n.mean(n.body(n.stem(padding=((0, 1), (0, 1))))), "DDD"),
    "stem of 4 channels": Case(lambda n: n.mean(n.body()), "DDD", {"shape": (1, 32, 32, 4)}),
    "stem with stride 1": Case(lambda n: n.mean(n.body(n.conv(n.image, 32, 3))), "DDD", {"shape": (1, 16, 16, 3)}),
    "stem 5x5": Case(lambda n: n.mean(n.body(n.conv(n.pad(n.image, ((2, 2), (2, 2))), 32, 5, 2, VALID))), "DDD"),
    "before the stem": Case(lambda n: n.mean(n.body(n.stem(n.binary(n.image, n.constant(2.0), "MUL")))), "SSS"),
    "two stems": Case(lambda n: n.mean(n.body(n.binary(n.stem(), n.stem()))), "SSS"),
    "padding read twice": Case(
        lambda n: n.mean(n.body(n.binary(*(n.conv(p, 32, 3, 2, VALID) for p in [n.pad(n.image)] * 2)))), "DDD"
    ),
    "depthwise SAME, stride 2": Case(_then_mean(lambda n, x: n.depthwise(x, stride=2)), "WWW"),
    "depthwise padded, stride 2": Case(_then_mean(lambda n, x: n.block(n.pad(x), stride=2, padding=VALID)), "SSS"),
    "depthwise 5x5": Case(_then_mean(lambda n, x: n.block(x, kernel=5)), "SSS"),
    "stem, then SAME, stride 2": Case(lambda n: n.mean(n.body(n.depthwise(n.stem(), stride=2))), "DDD"),
    "depthwise 7x7": Case(_then_mean(lambda n, x: n.depthwise(x, kernel=7)), "WWW"),
    "depthwise x 2": Case(_then_mean(lambda n, x: n.depthwise(x, multiplier=2)), "WWW"),
    "depthwise dilated": Case(_then_mean(lambda n, x: n.depthwise(x, dilation=2)), "WWW"),
    "add": Case(_then_mean(lambda n, x: n.binary(x, n.block(x))), "SSS"),
    "subtract": Case(lambda n: n.mean(n.binary(x := n.body(), n.block(x), "SUB")), "DDD"),
    "x times x": Case(lambda n: _twice(n, "MUL"), "SSS"),
    "x plus x": Case(lambda n: _twice(n, "ADD"), "DSS"),
    "times a scalar": Case(lambda n: n.mean(n.binary(n.body(), n.constant(0.5), "MUL")), "DDD"),
    "times a scalar of rank 4": Case(lambda n: n.mean(n.binary(n.body(), n.constant([[[[0.5]]]]), "MUL")), "DDD"),
    "a scalar of rank 4 times": Case(lambda n: n.mean(n.binary(n.constant([[[[0.5]]]]), n.body(), "MUL")), "SSS"),
    "a vector times": Case(
        lambda n: n.mean(n.binary(n.constant(np.linspace(-1, 1, 64).reshape(1, 1, 1, 64)), n.body(), "MUL")), "SSS"
    ),
    "concatenate": Case(lambda n: n.mean(n.block(n.concatenate(x := n.block(n.stem()), n.block(x)))), "DDD"),
    "hard-swish": Case(_activated("HARD_SWISH"), "SSS"),
    "swish": Case(_then_mean(lambda n, x: n.binary(x, n.unary(x, "LOGISTIC"), "MUL")), "SSS"),
    "gelu": Case(lambda n: n.mean(n.body(n.unary(n.stem(), "GELU", schema.GeluOptionsT()))), "SSD"),
    "tanh": Case(lambda n: n.mean(n.body(n.unary(n.stem(), "TANH"))), "SSD"),
    "not delegated": Case(lambda n: n.mean(n.body(n.unary(n.stem(), "SIGN"))), "DDD"),
    "not delegated, before": Case(lambda n: n.mean(n.body(n.stem(n.unary(n.image, "SIGN")))), "SSS"),
    "squeeze, kept": Case(lambda n: n.mean(n.block(n.excite(x := n.body(), n.mean(x, True)))), "SSS"),
    "squeeze, dropped": Case(
        lambda n: n.mean(n.block(n.excite(x := n.body(), n.reshape(n.mean(x), (1, 1, 1, 64))))), "DDD"
    ),
    "no mean": Case(lambda n: n.body(), "DDD"),
    "average pool": Case(lambda n: n.pool(n.body(), "AVERAGE_POOL_2D", 16), "DDD"),
    "mean over height": Case(lambda n: n.mean(n.body(), axes=(1,)), "WWD"),
    "mean over channels": Case(lambda n: n.mean(n.body(), axes=(3,)), "SSD"),
    "sum": Case(lambda n: n.mean(n.body(), kind="SUM"), "SSD"),
    "another output": Case(lambda n: (n.mean(n.block(x := n.body())), n.pool(x)), "DDD"),
    "two clusters": Case(lambda n: n.binary(n.mean(n.body()), n.mean(n.body())), "SSS"),
    "two clusters, one blocked": Case(
        lambda n: n.binary(n.mean(n.body()), n.mean(n.body(n.conv(n.image, 32, 3, 2)))), "SSS"
    ),
    "dense head": Case(lambda n: n.dense(n.mean(n.body()), 500), "SSS"),
    "dense head, kept": Case(lambda n: n.dense(n.mean(n.body()), 500, keep=True), "DDS"),
    "1x1 head": Case(lambda n: n.reshape(n.conv(n.mean(n.body(), True), 500, zeros=0), (1, 500)), "DDD"),
    "1x1 head, sparse": Case(lambda n: n.reshape(n.conv(n.mean(n.body(), True), 100), (1, 100)), "WWS"),
    "mean read twice": Case(lambda n: (n.conv(m := n.mean(n.body(), True), 32), n.reshape(m, (1, 64))), "DDD"),
    "chain into a pool": Case(lambda n: _tail(n, n.pool), "WWW"),
    "chain out of the file": Case(lambda n: _tail(n, lambda x: x), "WWW"),
    "chain into a 3x3": Case(_then_mean(lambda n, x: n.conv(x, 64, 3)), "WWW"),
    "mean kept": Case(lambda n: _kept(n), "SWS"),
    "mean kept, batch of 2": Case(lambda n: _kept(n), "SWS", {"shape": (2, 32, 32, 3)}),
    "mean kept, dense": Case(lambda n: n.dense(_kept(n), 50), "SSS"),
    "mean kept, reshape": Case(lambda n: n.reshape(_kept(n), (1, 64)), "SSS"),
    "mean kept, softmax": Case(lambda n: _softmax(n, _kept(n)), "WWS"),
    "mean kept, softmax, reshape": Case(lambda n: n.reshape(_softmax(n, _kept(n)), (1, 64)), "WWS"),
    "mean kept, sigmoid": Case(lambda n: n.unary(_kept(n), "LOGISTIC"), "WWS"),
    "mean kept, add": Case(lambda n: n.binary(_kept(n), n.constant(np.linspace(-1, 1, 64))), "WWS"),
    "mean kept, concatenate": Case(lambda n: n.concatenate(_kept(n), _kept(n)), "WWS"),
    "mean kept, squeeze": Case(
        lambda n: n.op("SQUEEZE", [_kept(n)], (1, 64), schema.SqueezeOptionsT(squeezeDims=[1, 2])), "WWS"
    ),
    "mean kept, mean": Case(lambda n: n.mean(_kept(n)), "WWS"),
    "mean kept, not delegated": Case(lambda n: n.unary(_kept(n), "LOG_SOFTMAX", schema.LogSoftmaxOptionsT()), "WWS"),
    "sum kept": Case(lambda n: _kept(n, kind="SUM"), "SWD"),
    "sum kept, softmax": Case(lambda n: _softmax(n, _kept(n, kind="SUM")), "WWD"),
    "mean over channels, kept": Case(lambda n: _kept(n, axes=(3,)), "SWD"),
    "mean over all, kept": Case(lambda n: _kept(n, axes=(1, 2, 3)), "SSD"),
    "stem with stride 1, SAME behind": Case(
        lambda n: n.mean(n.block(n.block(n.conv(n.image, 32, 3)), stride=2)), "DDD", {"shape": (1, 16, 16, 3)}
    ),
    "stem of 1 channel, SAME": Case(
        lambda n: n.mean(n.body(n.conv(n.image, 32, 3, 2))), "DDD", {"shape": (1, 32, 32, 1)}
    ),
    "stem SAME, max pool": Case(lambda n: n.mean(n.block(n.pool(n.block(n.conv(n.image, 32, 3, 2)), window=3))), "DDD"),
    "stem SAME, depth to space": Case(lambda n: _to_space(n, n.body(n.conv(n.image, 32, 3, 2))), "DDD"),
    "no stem, times a scalar": Case(
        lambda n: n.mean(n.block(n.binary(n.conv(n.image, 32), n.constant(0.5), "MUL"))), "DDD", {"shape": (1, 8, 8, 3)}
    ),
}


@pytest.fixture(scope="session")
def network():
    """`Network`."""
    return Network


@pytest.fixture(scope="session")
def files():
    """`FILES`."""
    return FILES
