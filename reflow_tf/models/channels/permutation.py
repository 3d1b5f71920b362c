"""Reordering channels: the same network, whose outputs differ by the order of summation alone."""

import keras
import numpy as np

from reflow_tf.models.channels.groups import ChannelGroup


def permute(group: ChannelGroup, order: np.ndarray) -> None:
    """Writes the variables of a group with its channels in another order.

    Args:
        group: not frozen.
        order: which channel comes to each place, (size,) of 0 to size - 1, each once.
    """
    if group.frozen is not None:
        raise ValueError(f"A frozen group cannot be permuted. Received: one that {group.frozen}")
    if not np.array_equal(np.sort(order), np.arange(group.size)):
        raise ValueError(f"An order must have each of {group.size} channels once. Received: {order}")
    for span in group.spans:
        values = keras.ops.convert_to_numpy(span.variable)
        places = np.arange(values.shape[span.axis])
        places[span.start : span.start + group.size] = span.start + order
        span.variable.assign(np.take(values, places, span.axis))
