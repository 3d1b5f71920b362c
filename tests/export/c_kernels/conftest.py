"""Small int8 networks written tensor by tensor, their C compiled for this machine, and TFLite's reference kernels."""

import dataclasses
import functools
import pathlib
import subprocess
import tempfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from reflow_tf.export import flatbuffer
from reflow_tf.export.c_kernels.generation import generate_c
from reflow_tf.export.operators import read_operators
from reflow_tf.runtimes.device_script import join, split
from reflow_tf.runtimes.runtime import join_shapes
from reflow_tf.runtimes.tflm.interpreter import invoke, open_interpreter

MAIN = """#include <stdio.h>
#include "model.h"
int main(void) {
  static int8_t input[REFLOW_INPUT_BYTES], output[REFLOW_OUTPUT_BYTES];
  while (fread(input, 1, sizeof input, stdin) == sizeof input) {
    reflow_invoke(input, output);
    fwrite(output, 1, sizeof output, stdout);
  }
  return 0;
}
"""
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")


class Drawing:
    """A .tflite file in the making. Each method returns the index of the activation that it adds."""

    def __init__(self):
        self._tensors, self._buffers, self._operators, self._codes = [], [schema.BufferT()], [], []

    def activation(self, shape, scale=0.05, zero_point=0, kind=schema.TensorType.INT8):
        return self._tensor(shape, 0, kind, [scale], [zero_point])

    def constant(self, values, scales=None, axis=0):
        kind = {"int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32, "float32": 0}[values.dtype.name]
        self._buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        points = None if scales is None else [0] * len(scales)
        return self._tensor(values.shape, len(self._buffers) - 1, kind, scales, points, axis)

    def _tensor(self, shape, buffer, kind, scales, points, axis=0):
        quantization = None
        if scales is not None:
            quantization = schema.QuantizationParametersT(
                scale=np.asarray(scales, np.float32), zeroPoint=np.asarray(points, np.int64), quantizedDimension=axis
            )
        name = f"tensor{len(self._tensors)}".encode()
        self._tensors.append(
            schema.TensorT(name=name, shape=list(shape), type=kind, buffer=buffer, quantization=quantization)
        )
        return len(self._tensors) - 1

    def operator(self, kind, inputs, output, options=None, version=1):
        code = flatbuffer.OPERATOR_CODES[kind]
        self._codes.append(
            schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version)
        )
        name = "" if options is None else type(options).__name__.removesuffix("T")
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=len(self._codes) - 1,
                inputs=list(inputs),
                outputs=[output],
                builtinOptionsType=getattr(schema.BuiltinOptions, name) if name else 0,
                builtinOptions=options,
            )
        )
        return output

    def weighted(self, kind, source, values, biases, output, options, scales=None):
        """A layer with weights, and biases in steps of the sum; `scales` one for each output channel, or one."""
        axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
        scales = np.asarray(np.full(values.shape[axis], 0.01) if scales is None else scales, np.float32)
        steps = np.float32(self._tensors[source].quantization.scale[0]) * scales
        inputs = [source, self.constant(values, scales, axis), self.constant(biases.astype(np.int32), steps)]
        return self.operator(kind, inputs, output, options, version=3)

    def finish(self, sources, outputs):
        """The file; ends are one activation, or a list of some."""
        inputs, outputs = ([ends] if isinstance(ends, int) else list(ends) for ends in (sources, outputs))
        graph = schema.SubGraphT(tensors=self._tensors, inputs=inputs, outputs=outputs, operators=self._operators)
        return flatbuffer.serialize(
            schema.ModelT(version=3, operatorCodes=self._codes, subgraphs=[graph], buffers=self._buffers)
        )


@pytest.fixture
def drawing():
    return Drawing()


def draw_inputs(shape, count=24):
    """Uniform ones, narrow ones, and those at both ends, (count, *shape without the batch)."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(-128, 128, (count, *shape[1:]))
    inputs[::3] = np.clip(rng.normal(0, 30, inputs[::3].shape), -128, 127)
    inputs[0], inputs[1] = -128, 127
    return inputs.astype(np.int8)


def run_reference(content, inputs):
    """TFLite's reference kernels: LiteRT's, or TFLM's, where they differ.

    In FULLY_CONNECTED, TFLM rounds twice, as convolutions do in both, and LiteRT 2.3 once. RELU6 as an operator does
    not rescale in TFLM, whose files have one scale on both sides of it.
    """
    graph = read_operators(content)
    ends, num_outputs = [{"shape": graph.values[index].shape} for index in graph.inputs], len(graph.outputs)
    if len(ends) > 1 or {"FULLY_CONNECTED", "LOGISTIC"} & {operator.kind for operator in graph.operators}:
        interpreter = open_interpreter(content, 1 << 24)
        return np.concatenate([join(invoke(interpreter, split(one[None], ends), num_outputs)) for one in inputs])
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(source["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result["index"]))
    return np.concatenate(outputs)


@dataclasses.dataclass
class Program:
    path: pathlib.Path

    def run(self, inputs):
        done = subprocess.run([self.path], input=inputs.tobytes(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return np.frombuffer(done.stdout, np.int8).reshape(len(inputs), -1)


def compile_program(folder, sources, options=SANITIZED):
    """Compiles without a warning; running it stops at undefined behaviour and at memory that is not its own."""
    for name, text in {**sources.files, "main.c": MAIN}.items():
        (folder / name).write_text(text)
    command = ["gcc", *STRICT, *options, *sorted(folder.glob("*.c")), "-o", folder / "program"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Program(folder / "program")


@pytest.fixture
def compare(c_compiler):
    """A function that checks C against the reference on many inputs, and returns the C sources and the outputs."""

    def check(content, storage="auto", inputs=None, options=SANITIZED):
        graph = read_operators(content)
        if inputs is None:
            inputs = draw_inputs(join_shapes([graph.values[index].shape for index in graph.inputs]))
        sources = generate_c(content, storage=storage)
        with tempfile.TemporaryDirectory() as folder:
            outputs = compile_program(pathlib.Path(folder), sources, options).run(inputs)
        expected = run_reference(content, inputs)
        np.testing.assert_array_equal(outputs, expected.reshape(len(inputs), -1))
        return sources, outputs

    return check


@pytest.fixture(scope="session")
def mobilenet_files():
    """The embedded MobileNetV2 as int8 files, by the sparsity of its 1x1 convolutions."""
    import keras

    from reflow_tf.export.tflite import export_tflite
    from reflow_tf.models.loading import load_model

    @functools.cache
    def build(sparsity):
        model = load_model("mobilenet_v2").model
        for layer in model.layers:
            if type(layer) is keras.layers.Conv2D and layer.kernel_size == (1, 1):
                kernel = np.array(layer.kernel)
                layer.kernel.assign(kernel * (np.abs(kernel) >= np.quantile(np.abs(kernel), sparsity)))
        images = np.random.default_rng(0).uniform(-1, 1, (16, *model.input_shape[1:])).astype(np.float32)
        return export_tflite(model, quantize="int8", calibration=[images], storage="dense").content

    return build
