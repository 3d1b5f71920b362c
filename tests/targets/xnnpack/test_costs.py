"""Predicted speeds of two well-known networks against measured ones, and the laws of costs."""

import pytest

from reflow_tf.targets.operators import Blocks, Operator, OperatorGraph, Value
from reflow_tf.targets.xnnpack import DEVICES, foresee_speedups, judge_version
from reflow_tf.targets.xnnpack.costs import count_work
from reflow_tf.targets.xnnpack.versions import NEWEST


class Sketch:
    """The graph of a network, without weights: each 1x1 convolution has this share of zeros, in blocks of `rows`."""

    def __init__(self, size, sparsity, rows=1):
        self._operators, self._values, self._sparsity, self._rows = [], [], sparsity, rows
        self.image = self._value((1, size, size, 3))

    def _value(self, shape, **settings):
        self._values.append(Value(len(self._values), "", tuple(shape), "float32", **settings))
        return len(self._values) - 1

    def shape(self, x):
        return self._values[x].shape

    def _op(self, kind, inputs, shape, **attributes):
        output = self._value(shape)
        self._operators.append(Operator(len(self._operators), kind, "", tuple(inputs), (output,), attributes))
        return output

    def _constant(self, *shape, sparsity=0.0):
        total = shape[0] * shape[-1]
        zeros = round(sparsity * total)
        kept = total - zeros
        blocks = ()
        if zeros and self._rows > 1:
            blocks = (Blocks(2, kept // 2, kept), Blocks(4, kept if self._rows == 2 else kept // 4, kept))
        return self._value(
            shape, constant=True, storage="dense", stored_dtype="float32", num_zeros=zeros, blocks=blocks
        )

    def _pad(self, x, by):
        batch, height, width, channels = self.shape(x)
        paddings = ((0, 0), (by, by), (by, by), (0, 0))
        shape = (batch, height + 2 * by, width + 2 * by, channels)
        return self._op("PAD", [x, self._constant(4, 2)], shape, paddings=paddings)

    def conv(self, x, filters, kernel=1, stride=1):
        x = self._pad(x, kernel // 2) if stride == 2 else x
        batch, height, width, channels = self.shape(x)
        shape = (batch, (height - kernel) // stride + 1, (width - kernel) // stride + 1, filters)
        zeros = self._sparsity if kernel == 1 else 0.0
        weights = self._constant(filters, kernel, kernel, channels, sparsity=zeros)
        attributes = {"strides": (stride, stride), "dilations": (1, 1), "padding": "VALID", "activation": "RELU6"}
        return self._op("CONV_2D", [x, weights, self._constant(filters)], shape, **attributes)

    def depthwise(self, x, stride, kernel=3):
        x = self._pad(x, kernel // 2) if stride == 2 else x
        batch, height, width, channels = self.shape(x)
        size = (height, width) if stride == 1 else ((height - kernel) // 2 + 1, (width - kernel) // 2 + 1)
        inputs = [x, self._constant(1, kernel, kernel, channels), self._constant(channels)]
        attributes = {"strides": (stride, stride), "dilations": (1, 1), "depth_multiplier": 1, "activation": "RELU6"}
        padding = "SAME" if stride == 1 else "VALID"
        return self._op("DEPTHWISE_CONV_2D", inputs, (batch, *size, channels), padding=padding, **attributes)

    def add(self, x, y):
        return self._op("ADD", [x, y], self.shape(x), activation="NONE")

    def finish(self, x):
        batch, *_, channels = self.shape(x)
        mean = self._op("MEAN", [x, self._constant(2)], (batch, channels), axes=(1, 2), keep_dims=False)
        weights, bias = self._constant(1000, channels), self._constant(1000)
        output = self._op("FULLY_CONNECTED", [mean, weights, bias], (batch, 1000), activation="NONE", weights_format=0)
        return OperatorGraph(tuple(self._operators), tuple(self._values), (self.image,), (output,))


def mobilenet_v1(*zeros):
    net = Sketch(224, *zeros)
    x = net.conv(net.image, 32, 3, 2)
    layers = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for filters, stride in layers:
        x = net.conv(net.depthwise(x, stride), filters)
    return net.finish(x)


def mobilenet_v2(*zeros):
    net = Sketch(224, *zeros)
    x = net.conv(net.depthwise(net.conv(net.image, 32, 3, 2), 1), 16)
    stages = [(24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)]
    for filters, count, first in stages:
        for number in range(count):
            y = net.conv(x, 6 * net.shape(x)[3])
            y = net.conv(net.depthwise(y, first if number == 0 else 1), filters)
            x = net.add(x, y) if number else y
    return net.finish(net.conv(x, 1280))


NETWORKS = {"MobileNet": mobilenet_v1, "MobileNetV2": mobilenet_v2}

# Dense by sparse, with ballast where it needs any: instructions of ai-edge-litert 1.4.0 on a Cortex-A76; and times in
# LiteRT.js 2.5.3, one thread (benchmarks/xnnpack_costs.py, whole networks, to which nothing was fitted).
MEASURED = [
    ("arm", "MobileNet", 0.3, 1, 0.682),
    ("arm", "MobileNet", 0.5, 1, 0.927),
    ("arm", "MobileNet", 0.5, 2, 1.336),
    ("arm", "MobileNet", 0.5, 4, 1.104),
    ("arm", "MobileNet", 0.8, 1, 2.013),
    ("arm", "MobileNetV2", 0.3, 1, 0.702),
    ("arm", "MobileNetV2", 0.5, 2, 1.308),
    ("arm", "MobileNetV2", 0.6, 1, 1.101),
    ("arm", "MobileNetV2", 0.7, 2, 1.825),
    ("arm", "MobileNetV2", 0.8, 1, 1.765),
    ("browser", "MobileNet", 0.5, 1, 1.34),
    ("browser", "MobileNet", 0.8, 1, 2.67),
    ("browser", "MobileNetV2", 0.4, 1, 1.26),
    ("browser", "MobileNetV2", 0.5, 1, 1.44),
    ("browser", "MobileNetV2", 0.6, 1, 1.65),
    ("browser", "MobileNetV2", 0.8, 1, 2.40),
    ("browser", "MobileNetV2", 0.5, 2, 0.37),
]
BANDS = {"arm": 0.04, "browser": 0.12}


@pytest.mark.parametrize(("device", "network", "sparsity", "rows", "measured"), MEASURED)
def test_what_is_predicted_is_near_what_was_measured(device, network, sparsity, rows, measured):
    graph = NETWORKS[network](sparsity, rows)
    predicted = foresee_speedups(graph, judge_version(graph, NEWEST))[device]
    assert predicted == pytest.approx(measured, rel=BANDS[device])


def test_the_instructions_are_those_that_were_counted():
    """118.3 million in MobileNetV2 with every weight dense, and 88.4 at 70 % (a Cortex-A76 under QEMU)."""
    device = DEVICES["arm"]
    graph = mobilenet_v2(0.7)
    switches = judge_version(graph, NEWEST).possible_switches
    assert device.cost(count_work(graph, (), device.tiles)) == pytest.approx(118.3e6, rel=0.04)
    assert device.cost(count_work(graph, switches, device.tiles)) == pytest.approx(88.4e6, rel=0.04)


@pytest.mark.parametrize("device", DEVICES.values(), ids=str)
def test_every_kind_of_work_of_these_networks_costs_something_or_nothing_but_never_less(device):
    assert all(value >= 0 for value in device.coefficients.values())
    for part in ("product", "depthwise9", "window", "depthwise3s1", "depthwise3s2", "stem", "sparse1_whole"):
        assert device.coefficients[part] > 0, part
    kinds = set()
    for sparsity, rows in ((0.0, 1), (0.5, 1), (0.5, 2), (0.5, 4)):
        graph = mobilenet_v2(sparsity, rows)
        for switches in ((), judge_version(graph, NEWEST).possible_switches):
            kinds |= set(count_work(graph, switches, device.tiles))
    assert kinds >= set(device.coefficients) & {"product", "sparse1_whole", "sparse2_whole", "sparse4_whole"}
