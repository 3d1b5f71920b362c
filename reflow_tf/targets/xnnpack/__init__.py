"""XNNPACK, the CPU delegate of mobile TensorFlow Lite: which networks it runs sparse, and what stands in the way."""

from reflow_tf.targets.xnnpack.costs import DEVICES
from reflow_tf.targets.xnnpack.judgement import Judgement, judge_version
from reflow_tf.targets.xnnpack.speedups import foresee_speedups
from reflow_tf.targets.xnnpack.target import XNNPack

__all__ = ["DEVICES", "Judgement", "XNNPack", "foresee_speedups", "judge_version"]
