"""Convolutions take over the padding that stands before them: their kernels pad for free."""

from dataclasses import replace

from reflow_tf.export.c_kernels.network import Convolution, DepthwiseConvolution, Layer, Network, Padding


def absorb_padding(network: Network) -> Network:
    """The same network without each PAD that nothing but one convolution without padding of its own reads."""
    layers = list(network.layers)
    for pad in network.layers:
        readers = [layer for layer in layers if pad.output in layer.inputs]
        if len(readers) != 1 or pad.output in network.outputs or (merged := _merge(pad, readers[0])) is None:
            continue
        layers = [merged if layer is readers[0] else layer for layer in layers if layer is not pad]
    return replace(network, layers=tuple(layers))


def _merge(pad: Layer, reader: Layer) -> Layer | None:
    padding, convolution = pad.operation, reader.operation
    if not isinstance(padding, Padding) or not isinstance(convolution, Convolution | DepthwiseConvolution):
        return None
    if convolution.window.padding != (0, 0) or padding.channels != (0, 0):
        return None
    size = pad.inputs[0].shape[1], pad.inputs[0].shape[2]
    window = replace(convolution.window, padding=(padding.height[0], padding.width[0]), input_size=size)
    return replace(reader, operation=replace(convolution, window=window), inputs=pad.inputs)
