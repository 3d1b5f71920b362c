"""Do two .tflite files compute the same? Asked of LiteRT itself: bit for bit, or how far they are apart."""

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from reflow_tf.export import flatbuffer
from reflow_tf.native_stderr import native_stderr_dropped

_PROBABILITIES = (schema.BuiltinOperator.SOFTMAX, schema.BuiltinOperator.LOGISTIC)


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
    """Largest absolute difference of an output over four seeded images, divided by the largest absolute number in it.

    The images have coarse shapes and fine noise, so that a network that sees anything sees which way up they are; two
    lie around 0, two from 0 to 255, as a network with a rescaling of its own takes them. Where a softmax or a sigmoid
    gives the outputs of both files, its inputs are compared, the logits: it turns absolute differences of them into
    relative ones of the probabilities, however small, and hides others.

    Returns:
        The worst of the images; infinity where LiteRT cannot run one of the files, or where what is no number is not
        the same in both.
    """
    if _gives_probabilities(first) and _gives_probabilities(second):
        first, second = _end_at_logits(first), _end_at_logits(second)
    worst = 0.0
    with native_stderr_dropped():
        for seed, (scale, offset) in enumerate([(1, 0), (1, 0), (50, 128), (50, 128)]):
            try:
                pairs = list(zip(*(_invoke(content, seed, scale, offset) for content in (first, second)), strict=True))
            except (ValueError, RuntimeError):
                return math.inf
            if any(a.shape != b.shape for a, b in pairs):
                return math.inf
            for a, b in pairs:  # an output of small numbers is not to hide behind another
                a, b = (values.astype(np.float64) for values in (a, b))
                numbers = np.isfinite(a)
                if not np.array_equal(a[~numbers], b[~numbers], equal_nan=True):
                    return math.inf
                largest = float(np.max(np.abs(a[numbers]), initial=0))
                apart = float(np.max(np.abs(a[numbers] - b[numbers]), initial=0))
                if math.isnan(apart):
                    return math.inf
                worst = max(worst, apart / largest if largest else apart)
    return worst


def _gives_probabilities(content: bytes) -> bool:
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    last = [operator for operator in graph.operators if set(operator.outputs) & set(graph.outputs)]
    return all(flatbuffer.operator_code(model, operator) in _PROBABILITIES for operator in last)


def _end_at_logits(content: bytes) -> bytes:
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    inputs = {operator.outputs[0]: operator.inputs[0] for operator in graph.operators}
    graph.outputs = np.array([inputs[index] for index in graph.outputs], np.int32)
    model.signatureDefs = None  # they name the outputs of before
    return flatbuffer.serialize(model, size_hint=len(content))


def _invoke(content: bytes, seed: int = 0, scale: float = 1, offset: float = 0) -> list[np.ndarray]:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    for details in interpreter.get_input_details():
        values = scale * _draw(tuple(details["shape"]), seed) + offset
        if not np.issubdtype(details["dtype"], np.floating):
            is_scaled = bool(details["quantization"][0])
            values = np.clip(40 * values, -128, 127) if is_scaled else np.where(values > 0, 1.0, 0.0)  # maybe indices
        interpreter.set_tensor(details["index"], values.astype(details["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(details["index"]).copy() for details in interpreter.get_output_details()]


def _draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Noise; in images (b, h, w, c), half of it in patches of an eighth of the image."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(shape)
    if len(shape) != 4:
        return noise
    patches = rng.standard_normal((shape[0], 8, 8, shape[3]))
    rows, columns = (np.arange(size) * 8 // size for size in shape[1:3])
    return (noise + 2 * patches[:, rows][:, :, columns]) / np.sqrt(5)
