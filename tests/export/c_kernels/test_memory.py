"""Activations that share memory, in whole networks: the same bits in a smaller arena."""

import numpy as np
import pytest

from reflow_tf.export.c_kernels import memory
from reflow_tf.export.c_kernels.generation import generate_c

pytestmark = pytest.mark.slow


def draw_network(seed):
    """An int8 file of a few blocks: residual ones, inverted ones, concatenations, strides."""
    import keras
    from keras import layers

    from reflow_tf.export.tflite import export_tflite

    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)

    def conv(filters, size=3, **options):
        return layers.Conv2D(filters, size, padding="same", activation="relu", **options)

    def residual(x):
        return layers.ReLU()(layers.Add()([x, layers.Conv2D(x.shape[-1], 3, padding="same")(conv(8)(x))]))

    def inverted(x):
        hidden = layers.DepthwiseConv2D(3, padding="same", activation="relu")(conv(3 * x.shape[-1], 1)(x))
        return layers.Add()([x, layers.Conv2D(x.shape[-1], 1)(hidden)])

    blocks = [
        residual,
        inverted,
        lambda x: layers.Concatenate()([conv(8, 1)(x), conv(4)(x)]),
        lambda x: conv(12, strides=2)(x),
        lambda x: conv(6, 1)(layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu")(x)),
        lambda x: layers.Conv2D(8, 3, activation="relu")(x),
    ]
    inputs = keras.Input((*map(int, rng.integers(12, 20, 2)), 3))
    x = conv(8)(inputs)
    for block in rng.permutation(len(blocks))[:4]:
        x = blocks[block](x)
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    images = rng.standard_normal((16, *inputs.shape[1:])).astype(np.float32)
    return export_tflite(model, quantize="int8", calibration=[images], storage="dense").content


@pytest.mark.parametrize("seed", range(4))
def test_networks_compute_the_same_bits_in_less_memory(compare, monkeypatch, seed):
    content = draw_network(seed)
    sources, outputs = compare(content)
    assert len(np.unique(outputs)) > 5
    monkeypatch.setattr(memory, "_find_overlaps", lambda *_: memory.Overlaps())
    assert sources.arena_bytes < generate_c(content).arena_bytes
