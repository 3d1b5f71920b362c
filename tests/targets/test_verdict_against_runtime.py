"""The rules against the runtimes themselves: no file is called eligible that runs dense, none blocked that runs sparse.

Every file is run with its weights stored dense and stored sparse. On ARM, XNNPACK ran sparse if and only if it executed
another number of instructions; in LiteRT.js, if the outputs differ in their last bits. A shape that XNNPACK gets wrong
shows on ARM alone: LiteRT.js hands out what the file states.
"""

import contextlib
import json
import pathlib
import re

import numpy as np
import pytest

from reflow_tf.errors import InputError
from reflow_tf.export.operators import read_operators
from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes.aarch64 import machine
from reflow_tf.runtimes.web.browser import Browser
from reflow_tf.runtimes.web.runtime import Web
from reflow_tf.targets.xnnpack.judgement import judge_version
from reflow_tf.targets.xnnpack.versions import LITERT_1_4, NEWEST, TFLITE_2_14

# Float noise of a sum in another order; what is wrong is wrong in the first digit or two.
_NOISE = 1e-4
# Of the instructions of one inference. The least of a cluster that is switched saves more, and a dense file repeats its
# number to within a few hundred.
_SAME = 0.005

_GUEST = """
import gc, importlib, json, os, sys
import numpy as np
Interpreter = importlib.import_module(sys.argv[1] + ".interpreter").Interpreter
gc.disable()
for path in sys.argv[2:]:
    try:
        interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
        (image,) = interpreter.get_input_details()
        interpreter.set_tensor(image["index"], (20 * np.load(path + ".npy")).astype(image["dtype"]))
        interpreter.invoke()
        interpreter.invoke()
        os.getpgid(0)
        interpreter.invoke()
        os.getpgid(0)
        for output in interpreter.get_output_details():
            np.save(f"{path}.{output['index']}.npy", interpreter.get_tensor(output["index"]))
        print(json.dumps([f"{path}.{output['index']}.npy" for output in interpreter.get_output_details()]))
    except (RuntimeError, ValueError) as error:
        os.getpgid(0)
        os.getpgid(0)
        print(json.dumps(str(error)))
"""


def build_int8():
    """(stored dense, stored sparse) of a network that would run sparse in float32."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(32, 3, 2, activation="relu")(layers.ZeroPadding2D(1)(image))
    for filters in (64, 64):
        x = layers.Conv2D(filters, 1, activation="relu")(layers.DepthwiseConv2D(3, padding="same")(x))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    for layer in model.layers:
        if getattr(layer, "kernel_size", None) == (1, 1):
            layer.kernel.assign(layer.kernel.numpy() * (np.random.default_rng(0).random(layer.kernel.shape) > 0.9))
    batches = [np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype(np.float32)]
    return [
        export_tflite(model, quantize="int8", calibration=batches, storage=storage).content
        for storage in ("dense", "sparse")
    ]


def images(graph):
    (shape,) = (graph.values[index].shape for index in graph.inputs)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def judge(content, version):
    judgement = judge_version(read_operators(content), version)
    return "W" if judgement.corrupts else "S" if judgement.eligible else "D"


def compare(dense, sparse, same):
    """What a runtime did with a sparse file: outputs are lists of arrays, or None where it refused the file."""
    if sparse is None:
        return "W"
    for expected, found in zip(dense, sparse, strict=True):
        if expected.shape != found.shape or not np.abs(expected - found).max() <= _NOISE * np.abs(expected).max():
            return "W"
    return "D" if same else "S"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "version"), [("ai_edge_litert", LITERT_1_4), ("tflite_runtime", TFLITE_2_14)], ids=lambda x: str(x)[:14]
)
def test_arm_runtimes_do_what_the_rules_say(aarch64, files, tmp_path, module, version):
    pairs = {name: (case.dense, case.content) for name, case in files.items()} | {"int8": build_int8()}
    paths = []
    for name, pair in pairs.items():
        for storage, content in zip(("dense", "sparse"), pair, strict=True):
            paths.append(tmp_path / f"{re.sub(r'[^0-9A-Za-z]', '_', name)}.{storage}.tflite")
            paths[-1].write_bytes(content)
            np.save(f"{paths[-1]}.npy", images(read_operators(content)))
    (tmp_path / "guest.py").write_text(_GUEST)
    counted = tmp_path / "counted"
    done = machine.find_machine().python([str(tmp_path / "guest.py"), module, *map(str, paths)], tmp_path, counted)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    marks = [int(line) for line in counted.read_text().split()]
    counts = [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]
    assert len(outcomes) == len(counts) == len(paths)
    seen = {}
    for position, name in enumerate(pairs):
        dense, sparse = (_load(outcome) for outcome in outcomes[2 * position : 2 * position + 2])
        assert dense is not None, (name, outcomes[2 * position])
        before, after = counts[2 * position : 2 * position + 2]
        seen[name] = compare(dense, sparse, abs(after - before) < _SAME * before)
    assert seen == {name: judge(sparse, version) for name, (_, sparse) in pairs.items()}
    assert seen["int8"] == "D"


def _load(outcome):
    return None if isinstance(outcome, str) else [np.load(pathlib.Path(path)) for path in outcome]


@pytest.mark.slow
def test_litert_js_does_what_the_rules_say(web, files):
    seen, expected = {}, {}
    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(Browser())
        for name, case in files.items():
            graph = read_operators(case.content)
            if len(graph.outputs) > 1 or name == "stored dense":  # `Web` takes one output
                continue
            dense = _run(case.dense, images(graph), browser)
            sparse = _run(case.content, images(graph), browser)
            assert dense is not None, name
            same = sparse is not None and np.array_equal(dense[0], sparse[0])
            seen[name] = compare(dense, sparse, same)
            expected[name] = judge(case.content, NEWEST)
            if seen[name] == "W":  # it may have written where other files' memory is
                stack.close()
                browser = stack.enter_context(Browser())
    assert seen == expected
    assert len(seen) > 45


def _run(content, batch, browser):
    try:
        with Web(content, browser) as runtime:
            return [runtime.run(batch)]
    except InputError:
        return None
