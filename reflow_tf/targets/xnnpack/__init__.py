"""XNNPACK, the CPU delegate of mobile TensorFlow Lite: which networks it runs sparse, and what stands in the way."""

from reflow_tf.targets.xnnpack.target import XNNPack

__all__ = ["XNNPack"]
