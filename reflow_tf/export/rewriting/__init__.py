"""A .tflite file is changed so that XNNPACK can run it sparse, and computes what it did."""

from reflow_tf.export.rewriting.exact import rewrite_exact
from reflow_tf.export.rewriting.outcome import Applied, Refused, Rewritten

__all__ = ["Applied", "Refused", "Rewritten", "rewrite_exact"]
