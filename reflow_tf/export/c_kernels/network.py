"""An int8 network as the C generator sees it: integers, shapes and what is done with them; no file format inside."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """An int8 activation: real = (stored - zero_point) * scale.

    Attributes:
        index: in the file.
        shape: with the batch, which is 1.
        scale: of one step; the file's float32, exactly.
        zero_point: what stands for 0.
    """

    index: int
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    @property
    def size(self) -> int:
        """Number of elements, and of bytes."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Window:
    """How a kernel walks over an image.

    Attributes:
        kernel: height and width.
        strides: down and right.
        padding: rows above and columns to the left of the image.
        input_size: height and width.
        output_size: height and width.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int]
    input_size: tuple[int, int]
    output_size: tuple[int, int]

    @property
    def num_pixels(self) -> int:
        """Of the output."""
        return self.output_size[0] * self.output_size[1]


@dataclass(frozen=True)
class Weights:
    """Weights of outputs, and how sums become int8.

    Attributes:
        values: int8 (outputs, ...); 0 stands for 0.
        biases: int64 (outputs,), in steps of the sum.
        scales: float64 (outputs,): steps of the output in one step of the sum.
    """

    values: np.ndarray
    biases: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class Convolution:
    """CONV_2D, weights (outputs, height, width, channels)."""

    weights: Weights
    window: Window


@dataclass(frozen=True)
class DepthwiseConvolution:
    """DEPTHWISE_CONV_2D, weights (outputs, height, width); output channel k reads input channel k // multiplier."""

    weights: Weights
    window: Window


@dataclass(frozen=True)
class Dense:
    """FULLY_CONNECTED, or a 1x1 convolution of a single pixel; weights (outputs, inputs)."""

    weights: Weights


@dataclass(frozen=True)
class Addition:
    """ADD of two tensors of one shape."""


@dataclass(frozen=True)
class Pooling:
    """MAX_POOL_2D or AVERAGE_POOL_2D, `kind` 'max' or 'average'."""

    kind: str
    window: Window


@dataclass(frozen=True)
class Mean:
    """MEAN over height and width, or over the time of a series."""


@dataclass(frozen=True)
class Relu:
    """RELU, RELU6 or RELU_N1_TO_1 as an operator."""


@dataclass(frozen=True)
class Softmax:
    """SOFTMAX over the last axis of `beta` times the input."""

    beta: float


@dataclass(frozen=True)
class Logistic:
    """LOGISTIC of each number by itself."""


@dataclass(frozen=True)
class Padding:
    """PAD of height and width, or of channels alone, each (before, after)."""

    height: tuple[int, int]
    width: tuple[int, int]
    channels: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Placing:
    """What CONCATENATION does with one of its inputs: its rows become a part of the output's.

    Attributes:
        rows: of both.
        start: where the part begins in a row of the output.
        length: of the part, in elements.
        pitch: of the output's rows, in elements.
    """

    rows: int
    start: int
    length: int
    pitch: int


@dataclass(frozen=True)
class Reshape:
    """The same bytes with another shape."""


Operation = (
    Convolution
    | DepthwiseConvolution
    | Dense
    | Addition
    | Pooling
    | Mean
    | Relu
    | Softmax
    | Logistic
    | Padding
    | Placing
    | Reshape
)


@dataclass(frozen=True)
class Layer:
    """One operator; of CONCATENATION, what it does with one input.

    Attributes:
        name: the Keras layer, as `read_operators` says it.
        kind: TFLite's name of the operator.
        operation: what it does.
        inputs: the activations that it reads.
        output: the activation that it writes.
        limits: least and greatest int8 of the output, after the fused activation.
    """

    name: str
    kind: str
    operation: Operation
    inputs: tuple[Tensor, ...]
    output: Tensor
    limits: tuple[int, int]


@dataclass(frozen=True)
class Network:
    """Layers in the order in which they run, and the ends of the network in the order of the file."""

    layers: tuple[Layer, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
