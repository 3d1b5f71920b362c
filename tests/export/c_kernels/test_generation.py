"""Whole networks, on this machine and on an emulated Cortex-M; storage; and what is refused."""

import subprocess
from importlib import resources

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.errors import InputError
from reflow_tf.export.c_kernels.generation import generate_c
from reflow_tf.jobs.microcontroller import build
from reflow_tf.runtimes.tflm.runtime import TFLM


def draw_convolution(drawing, sparsity=0.0, kind=schema.TensorType.INT8, batch=1, dilation=1):
    rng = np.random.default_rng(0)
    source = drawing.activation((batch, 4, 4, 16), 0.05, 3, kind)
    output = drawing.activation((batch, 4, 4, 40), 0.3, -5)
    options = schema.Conv2DOptionsT(strideH=1, strideW=1, dilationHFactor=dilation, dilationWFactor=dilation)
    values = rng.integers(-127, 128, (40, 1, 1, 16)) * (rng.random((40, 1, 1, 16)) >= sparsity)
    drawing.weighted("CONV_2D", source, values.astype(np.int8), rng.integers(-99, 99, 40), output, options)
    return drawing.finish(source, output)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["dense", "auto"])
def test_mobilenet_pruned_to_80_percent(mobilenet_files, compare, storage):
    content = mobilenet_files(0.8)
    inputs = np.random.default_rng(1).integers(-128, 128, (20, 64, 64, 3)).astype(np.int8)
    sources, outputs = compare(content, storage, inputs, options=("-O1",))
    assert len(np.unique(outputs)) > 5
    pointwise = [layer for layer in sources.layers if layer.kind == "CONV_2D" and layer.name != "Conv1"]
    assert {layer.storage for layer in pointwise} == {"dense" if storage == "dense" else "sparse"}
    assert not [layer.function for layer in sources.layers if layer.function.endswith("_exact")][1:]


@pytest.mark.slow
def test_what_is_sparse_takes_fewer_bytes_and_instructions(mobilenet_files):
    dense, sparse = (generate_c(mobilenet_files(0.8), storage=storage) for storage in ("dense", "auto"))
    assert sparse.weight_bytes < 0.55 * dense.weight_bytes
    costs = [sum(layer.estimated_instructions for layer in sources.layers) for sources in (dense, sparse)]
    assert costs[1] < 0.6 * costs[0]
    assert [layer.num_macs for layer in sparse.layers] == [layer.num_macs for layer in dense.layers]


@pytest.mark.parametrize(
    ("sparsity", "chosen"),
    [
        (0.0, {"auto": "dense", "size": "dense", "dense": "dense"}),
        (0.3, {"auto": "dense", "speed": "sparse", "size": "dense", "dense": "dense"}),
        (0.8, {"auto": "sparse", "speed": "sparse", "size": "sparse", "dense": "dense"}),
    ],
)
def test_storage_follows_the_objective(drawing, sparsity, chosen):
    content = draw_convolution(drawing, sparsity)
    assert {name: generate_c(content, storage=name).layers[0].storage for name in chosen} == chosen


def test_only_the_kernels_that_are_called_are_written(drawing):
    files = set(generate_c(draw_convolution(drawing, 0.8)).files)
    headers = {"kernels.h", "rescaling.h", "conv_rows.h", "conv_gather.h"}
    assert files == headers | {"model.h", "model.c", "conv_gather.c", "conv_sparse.c"}


def test_the_header_says_what_goes_in_and_out(drawing):
    header = generate_c(draw_convolution(drawing), name="keyword").files["keyword.h"]
    for line in (
        "#define REFLOW_INPUT_BYTES 256",
        "#define REFLOW_INPUT_SCALE 0.0500000007",
        "#define REFLOW_INPUT_ZERO_POINT (3)",
        "#define REFLOW_OUTPUT_BYTES 640",
        "#define REFLOW_OUTPUT_ZERO_POINT (-5)",
        "#define REFLOW_ARENA_BYTES 256",
        "#ifndef REFLOW_KEYWORD_H",
    ):
        assert line in header.splitlines()


def draw_block(drawing):
    """What MobileNetV2 repeats: expand and clip at zero, 3x3 depthwise, project, add; then classes."""
    rng = np.random.default_rng(4)

    def draw(kind, source, values, shape, scale, point):
        options = schema.Conv2DOptionsT if kind == "CONV_2D" else schema.DepthwiseConv2DOptionsT
        options = options(strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
        options.depthMultiplier = 1
        options.fusedActivationFunction = int(point == -128)
        biases, output = rng.integers(-99, 99, shape[-1]), drawing.activation(shape, scale, point)
        return drawing.weighted(kind, source, values.astype(np.int8), biases, output, options)

    source = drawing.activation((1, 5, 5, 12), 0.05, 3)
    kernel = rng.integers(-127, 128, (30, 1, 1, 12)) * (rng.random((30, 1, 1, 12)) < 0.3)
    expanded = draw("CONV_2D", source, kernel, (1, 5, 5, 30), 0.1, -128)
    filtered = draw("DEPTHWISE_CONV_2D", expanded, rng.integers(-127, 128, (1, 3, 3, 30)), (1, 5, 5, 30), 0.3, -128)
    kernel = rng.integers(-127, 128, (12, 1, 1, 30)) * (rng.random((12, 1, 1, 30)) < 0.3)
    projected = draw("CONV_2D", filtered, kernel, (1, 5, 5, 12), 1.5, -7)
    added = drawing.activation((1, 5, 5, 12), 1.3, 5)
    drawing.operator("ADD", [source, projected], added, schema.AddOptionsT(), version=2)
    output = draw("CONV_2D", added, rng.integers(-127, 128, (6, 3, 3, 12)), (1, 5, 5, 6), 3.0, 0)
    return drawing.finish(source, output)


@pytest.mark.usefixtures("cortex_m")
@pytest.mark.parametrize("board", ["m3", "m4", "m55"])
def test_boards_compute_the_same(drawing, compare, board):
    """With and without the DSP instructions that this machine lacks."""
    content = draw_block(drawing)
    inputs = np.random.default_rng(2).integers(-128, 128, (16, 5, 5, 12)).astype(np.int8)
    sources, expected = compare(content, "auto", inputs)
    assert {layer.storage for layer in sources.layers} == {"sparse", "dense", ""}
    runtime = build(content, sources, board)
    np.testing.assert_array_equal(runtime.run_int8(inputs).reshape(len(inputs), -1), expected)
    assert len(np.unique(expected)) > 50


@pytest.mark.usefixtures("cortex_m")
@pytest.mark.parametrize("cpu", ["cortex-m3", "cortex-m4", "cortex-m55"])
def test_arm_compilers_have_nothing_to_warn_of(tmp_path, cpu):
    folder = resources.files("reflow_tf.export.c_kernels") / "sources"
    options = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", f"-mcpu={cpu}", "-mthumb"]
    sources = sorted(str(path) for path in folder.iterdir() if path.name.endswith(".c"))
    command = ["arm-none-eabi-gcc", *options, "-c", *sources]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_operators_without_a_kernel_are_named(drawing):
    source = drawing.activation((1, 4), 0.05, 0)
    output = drawing.operator("TANH", [source], drawing.activation((1, 4), 1 / 128, 0))
    message = r"C is generated for ADD, .*, SOFTMAX: replace or remove layer 'tensor1'.*\. Received: TANH"
    with pytest.raises(InputError, match=message):
        generate_c(drawing.finish(source, output))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": schema.TensorType.FLOAT32}, r"export with quantize='int8'\. Received: float32 at the input"),
        ({"batch": 2}, r"a batch of 1, .* Received: \(2, 4, 4, 16\)"),
        ({"dilation": 2}, r"CONV_2D only with dilation 1: change layer 'tensor1'\. Received: \(2, 2\)"),
    ],
)
def test_other_files_are_refused(drawing, arguments, message):
    with pytest.raises(InputError, match=message):
        generate_c(draw_convolution(drawing, **arguments))


def test_sparse_files_are_refused(drawing, mobilenet_files):
    from reflow_tf.export.sparse_storage import store_sparse

    with pytest.raises(InputError, match=r"export with storage='dense'\. Received: \d+ tensors stored otherwise"):
        generate_c(store_sparse(mobilenet_files(0.8)))


def test_a_model_that_hands_its_input_through_is_refused(drawing):
    source = drawing.activation((1, 4), 0.05, 0)
    shape = drawing.constant(np.array([1, 2, 2], np.int32))
    output = drawing.operator("RESHAPE", [source, shape], drawing.activation((1, 2, 2), 0.05, 0))
    with pytest.raises(InputError, match="Received: one that is an input"):
        generate_c(drawing.finish(source, output))


def draw_towers(drawing):
    """Two inputs, joined; what joins them is an output, and so is what is computed of it."""
    rng = np.random.default_rng(5)
    image, vector = drawing.activation((1, 3, 3, 2), 0.05, 3), drawing.activation((1, 5), 0.04, -9)
    pooled, seen = drawing.activation((1, 2), 0.05, 3), drawing.activation((1, 6), 0.1, -4)
    axes = drawing.constant(np.arange(1, 3, dtype=np.int32))
    drawing.operator("MEAN", [image, axes], pooled, schema.ReducerOptionsT(keepDims=False), version=2)
    for source, output in ((pooled, seen), (vector, drawing.activation((1, 4), 0.1, -4))):
        shape = (6, 2) if source == pooled else (4, 5)
        values, biases = rng.integers(-127, 128, shape).astype(np.int8), rng.integers(-99, 99, shape[0])
        drawing.weighted("FULLY_CONNECTED", source, values, biases, output, schema.FullyConnectedOptionsT(), [0.01])
    joined = drawing.activation((1, 10), 0.1, -4)
    drawing.operator("CONCATENATION", [seen, output], joined, schema.ConcatenationOptionsT(axis=-1), version=2)
    classes = drawing.activation((1, 10), 1 / 256, -128)
    drawing.operator("SOFTMAX", [joined], classes, schema.SoftmaxOptionsT(beta=1.0), version=2)
    return [image, vector], [joined, classes]


def test_several_inputs_and_outputs(drawing, compare):
    """They lie one after the other; an output that is read again stays what it is."""
    sources, outputs = compare(drawing.finish(*draw_towers(drawing)))
    assert outputs.shape[1] == 20 and len(np.unique(outputs[:, :10])) > 50
    header = sources.files["model.h"].splitlines()
    for line in (
        "#define REFLOW_INPUT_BYTES 23",
        "#define REFLOW_INPUT_0_OFFSET 0",
        "#define REFLOW_INPUT_0_BYTES 18",
        "#define REFLOW_INPUT_1_OFFSET 18",
        "#define REFLOW_INPUT_1_BYTES 5",
        "#define REFLOW_INPUT_1_ZERO_POINT (-9)",
        "#define REFLOW_OUTPUT_BYTES 20",
        "#define REFLOW_OUTPUT_1_OFFSET 10",
        "#define REFLOW_OUTPUT_1_ZERO_POINT (-128)",
    ):
        assert line in header


@pytest.mark.usefixtures("cortex_m")
def test_several_of_both_on_a_board(drawing):
    """Floats go through the scale of their own input, and come from that of their own output."""
    content = drawing.finish(*draw_towers(drawing))
    runtime, reference = build(content, generate_c(content), "m4"), TFLM(content)
    assert (runtime.input_shape, runtime.output_shape, runtime.output_sizes) == ((1, 23), (1, 20), (10, 10))
    assert runtime.num_inputs == 2
    batch = np.random.default_rng(0).normal(size=(8, 23)).astype(np.float32)
    np.testing.assert_array_equal(runtime.run(batch), reference.run(batch))
    assert runtime.measure() > 500


def test_an_output_that_is_another_one_reshaped_is_refused(drawing):
    (image, vector), (_, classes) = draw_towers(drawing)
    shape = drawing.constant(np.array([1, 2, 5], np.int32))
    folded = drawing.operator("RESHAPE", [classes, shape], drawing.activation((1, 2, 5), 1 / 256, -128))
    with pytest.raises(InputError, match="Received: one that is another output"):
        generate_c(drawing.finish([image, vector], [classes, folded]))
    with pytest.raises(InputError, match="Received: one that is an input"):
        generate_c(drawing.finish([image, vector], [classes, vector]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"storage": "small"}, "storage must be one of auto, speed, size, dense. Received: small"),
        ({"name": "my-model"}, "must be a C identifier. Received: my-model"),
        ({"name": "conv_gather"}, "must not be a kernel's. Received: conv_gather"),
    ],
)
def test_arguments_are_checked(drawing, arguments, message):
    with pytest.raises(InputError, match=message):
        generate_c(draw_convolution(drawing, 0.8), **arguments)


def test_only_kernels_that_hold_sizes_in_16_bits_limit_them(drawing):
    source = drawing.activation((1, 200, 200, 1), 0.05, 0)
    flat = drawing.operator(
        "RESHAPE", [source, drawing.constant(np.array([1, 40_000], np.int32))], drawing.activation((1, 40_000), 0.05, 0)
    )
    output = drawing.operator("RELU", [flat], drawing.activation((1, 40_000), 0.05, 0))
    assert generate_c(drawing.finish(source, output))


def test_a_constant_to_add_is_named(drawing):
    source = drawing.activation((1, 4), 0.05, 0)
    added = drawing.constant(np.array([[1, 2, 3, 4]], np.int8))
    output = drawing.operator("ADD", [source, added], drawing.activation((1, 4), 0.05, 0))
    with pytest.raises(InputError, match=r"ADD only with two operands that are no constants.* Received: 1$"):
        generate_c(drawing.finish(source, output))
