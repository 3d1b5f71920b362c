"""Do two .tflite files compute the same? Asked of LiteRT itself: bit for bit, or how far they are apart."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from reflow_tf.export import flatbuffer
from reflow_tf.native_stderr import native_stderr_dropped


def compute_same(first: bytes, second: bytes) -> bool:
    """Whether both files load in LiteRT and give bit-equal outputs for one seeded random input.

    0.0 and -0.0 count as equal, NaN equals NaN. A file that LiteRT cannot run equals nothing.
    """
    with native_stderr_dropped():
        try:
            outputs = [_invoke(content) for content in (first, second)]
        except (ValueError, RuntimeError):  # what LiteRT raises for operators it lacks or cannot prepare
            return False
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*outputs, strict=True))


def relative_difference(first: bytes, second: bytes) -> float:
    """Largest absolute difference of the outputs for one seeded random input, divided by the largest absolute output.

    Where a softmax gives the outputs, its inputs are compared, the logits: it turns absolute differences of them into
    relative ones of the probabilities, however small, and hides others.

    Raises:
        ValueError, RuntimeError: LiteRT cannot run one of them.
    """
    with native_stderr_dropped():
        pairs = list(zip(_invoke(_end_at_logits(first)), _invoke(_end_at_logits(second)), strict=True))
    largest = max(float(np.max(np.abs(a.astype(np.float64)), initial=0)) for a, _ in pairs)
    apart = max(float(np.max(np.abs(a.astype(np.float64) - b), initial=0)) for a, b in pairs)
    return apart / largest if largest else apart


def _end_at_logits(content: bytes) -> bytes:
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    last = {
        operator.outputs[0]: operator.inputs[0]
        for operator in graph.operators
        if flatbuffer.operator_code(model, operator) == schema.BuiltinOperator.SOFTMAX
    }
    if not last.keys() & set(graph.outputs):
        return content
    graph.outputs = np.array([last.get(index, index) for index in graph.outputs], np.int32)
    model.signatureDefs = None  # they name the outputs of before
    return flatbuffer.serialize(model, size_hint=len(content))


def _invoke(content: bytes) -> list[np.ndarray]:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for details in interpreter.get_input_details():
        scale = 1 if np.issubdtype(details["dtype"], np.floating) else 40
        values = np.clip(scale * rng.standard_normal(details["shape"]), -128, 127)
        interpreter.set_tensor(details["index"], values.astype(details["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(details["index"]).copy() for details in interpreter.get_output_details()]
