import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer
from reflow_tf.export.bitmap_storage import store_bitmaps
from reflow_tf.export.tflite import export_tflite
from reflow_tf.export.tflm_operators import settle_operators
from reflow_tf.runtimes.device_script import to_type
from reflow_tf.runtimes.tflm import arena, interpreter
from reflow_tf.runtimes.tflm.arena import STEP_BYTES, find_arena
from reflow_tf.runtimes.tflm.interpreter import ArenaTooSmall, open_interpreter
from reflow_tf.runtimes.tflm.probe import answer
from reflow_tf.runtimes.tflm.runtime import TFLM


def run_reference(content, inputs):
    """LiteRT's reference kernels."""
    loaded = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    loaded.allocate_tensors()
    (source,), (target,) = loaded.get_input_details(), loaded.get_output_details()
    outputs = []
    for image in inputs:
        loaded.set_tensor(source["index"], to_type(image[None], source))
        loaded.invoke()
        outputs.append(loaded.get_tensor(target["index"])[0].copy())
    return np.array(outputs)


def test_outputs_are_those_of_tflites_reference_kernels(int8_file):
    content, inputs = int8_file
    runtime = TFLM(content)
    outputs = runtime.run_bytes(inputs)
    np.testing.assert_array_equal(outputs, run_reference(content, inputs))
    assert runtime.input_shape == (1, 8, 8, 3) and runtime.output_shape == (1, 4)
    floats = runtime.run(inputs)
    assert floats.dtype == np.float32 and np.allclose(floats.sum(axis=1), 1, atol=0.05)  # a softmax
    assert runtime.measure() > 0 and runtime.name.startswith("TFLM 0.dev")


@pytest.mark.parametrize("stored", [False, True])
def test_the_arena_found_is_the_smallest(int8_file, stored):
    content = store_bitmaps(int8_file[0]) if stored else int8_file[0]
    found = find_arena(content)
    wanted = answer(content, 1 << 20, 0)
    assert answer(content, found, 0) == wanted != answer(content, found - STEP_BYTES, 0)


def test_memory_beside_the_arena_takes_what_is_expanded(int8_file):
    content = store_bitmaps(int8_file[0])
    inside, beside = find_arena(content), find_arena(content, 48 * 64)
    assert beside < inside <= beside + 48 * 64 + 1024


def test_an_arena_that_is_too_small_says_so(int8_file):
    with pytest.raises(ArenaTooSmall, match=r"larger arena. Received: 6000 bytes, with which it says: .*Requested"):
        open_interpreter(int8_file[0], 6000)


def test_an_arena_that_kills_the_process_counts_as_too_small(int8_file, monkeypatch):
    """The child is started anew; here every arena under 50,000 bytes kills it."""
    program = (
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    if int(line) < 50_000: os.kill(os.getpid(), 11)\n"
        "    print('equal', flush=True)\n"
    )
    start = arena.subprocess.Popen
    monkeypatch.setattr(
        arena.subprocess, "Popen", lambda command, **kwargs: start([command[0], "-c", program], **kwargs)
    )
    assert find_arena(int8_file[0]) == 50_000


def test_a_file_that_kills_the_process_is_refused_by_one_that_survives():
    """Of weights and biases that are zero, the converter gives softmax a scale that a check of TFLM does not pass."""
    model = keras.Sequential([layers.Input((8,)), layers.Dense(4, "softmax", kernel_initializer="zeros")])
    samples = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    content = export_tflite(model, quantize="int8", calibration=[samples], storage="dense").content
    for run in (TFLM, find_arena):
        with pytest.raises(InputError, match="Received: one at which it ends the process"):
            run(content)


def test_an_operator_that_tflm_lacks_is_named(int8_file):
    model = flatbuffer.parse(int8_file[0])
    lacking = flatbuffer.OPERATOR_CODES["ATAN2"]
    code = model.operatorCodes[model.subgraphs[0].operators[-1].opcodeIndex]
    code.builtinCode = lacking
    code.deprecatedBuiltinCode = flatbuffer.OPERATOR_CODES["PLACEHOLDER_FOR_GREATER_OP_CODES"]
    content = flatbuffer.serialize(model)
    with pytest.raises(InputError, match=r"must have every operator of the file.*ATAN2"):
        TFLM(content)
    with pytest.raises(InputError, match="ATAN2"):
        find_arena(content)


def test_sparse_tensors_are_refused_by_name(settled):
    model = settled[0]
    kernel = model.get_layer("conv_2").kernel
    before = np.array(kernel)
    kernel.assign(before * 0)
    try:
        content = export_tflite(model).content
    finally:
        kernel.assign(before)
    with pytest.raises(InputError, match=r"--target=tflm or cortex_m writes a file.*DENSIFY"):
        TFLM(content)


def test_what_tflm_takes_and_cannot_compute_is_refused(images):
    raw = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 127.5, -1)(raw))
    model = keras.Model(raw, keras.layers.GlobalAveragePooling2D()(x))
    content = export_tflite(model, quantize="int8", calibration=[images(16, seed=0)], storage="dense").content
    with pytest.raises(InputError, match=r"TFLM must be able to compute the file .* Received: Input type UINT8.*CAST"):
        TFLM(settle_operators(content)).run(images(2, seed=0).astype(np.float32))


def test_a_float_file_is_refused(settled):
    with pytest.raises(InputError, match=r"batch of 1 in int8. Received: \(1, 8, 8, 3\), float32"):
        TFLM(export_tflite(settled[0], storage="dense").content)


def test_without_the_package_the_message_says_what_to_install(int8_file, monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(interpreter.importlib, "import_module", fail)
    with pytest.raises(InputError, match=r"pip install '\.\[tflm\]' in the clone.*No module named 'tflite_micro'"):
        TFLM(int8_file[0])
