"""The rules against the runtimes themselves: no file is called eligible that runs dense, none blocked that runs sparse.

Every file is run with its weights stored dense and stored sparse. On ARM, XNNPACK ran sparse if and only if it executed
another number of instructions; in LiteRT.js, if the outputs differ in their last bits. A shape that XNNPACK gets wrong
shows on ARM alone: LiteRT.js hands out what the file states.
"""

import contextlib
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from reflow_tf.errors import InputError
from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import Rewritten
from reflow_tf.export.rewriting.ballast import add_ballast
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflite import export_tflite
from reflow_tf.runtimes.aarch64 import machine
from reflow_tf.runtimes.web.browser import Browser
from reflow_tf.runtimes.web.runtime import Web
from reflow_tf.targets.xnnpack import shortfall
from reflow_tf.targets.xnnpack.clusters import find_clusters
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
    ran = run_on_arm(module, [content for pair in pairs.values() for content in pair], tmp_path)
    seen = {}
    for position, name in enumerate(pairs):
        (dense, before), (sparse, after) = ran[2 * position : 2 * position + 2]
        assert dense is not None, name
        seen[name] = compare(dense, sparse, abs(after - before) < _SAME * before)
    assert seen == {name: judge(sparse, version) for name, (_, sparse) in pairs.items()}
    assert seen["int8"] == "D"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "version"), [("ai_edge_litert", LITERT_1_4), ("tflite_runtime", TFLITE_2_14)], ids=lambda x: str(x)[:14]
)
def test_ballast_changes_no_bit_and_runs_sparse_on_arm(aarch64, ballasted, tmp_path, module, version):
    ran = run_on_arm(module, [content for each in ballasted.values() for content in each], tmp_path)
    for position, (name, contents) in enumerate(ballasted.items()):
        outputs, counts = zip(*ran[5 * position : 5 * position + 5], strict=True)
        check_ballast(name, contents, outputs, version)
        # At some shares of zeros, sparse takes as many instructions as dense; then the order of additions tells.
        same = abs(counts[1] - counts[2]) < _SAME * counts[1] and are_equal(outputs[1], outputs[2])
        assert compare(outputs[1], outputs[2], same) == judge(contents[2], version), name


def run_on_arm(module, contents, tmp_path):
    """(outputs or None, instructions) of each file."""
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"{number}.tflite")
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
    return list(zip(map(_load, outcomes), counts, strict=True))


def _load(outcome):
    return None if isinstance(outcome, str) else [np.load(pathlib.Path(path)) for path in outcome]


def check_ballast(name, contents, ran, version):
    """Outputs with ballast against those without, both dense, and both sparse where both run sparse."""
    plain, dense, sparse, plainly_sparse, sparse_twice = ran
    assert are_equal(plain, dense), name
    assert compare(dense, sparse, False) == "S", name
    if judge(contents[3], version) == judge(contents[4], version):
        assert are_equal(plainly_sparse, sparse_twice), name


def are_equal(ran, other):
    """To the last bit."""
    return all(np.array_equal(one, another) for one, another in zip(ran, other, strict=True))


@pytest.fixture(scope="module")
def ballasted(files):
    """Name -> five files: 45 % zeros plain, with ballast stored dense and sparse; 90 % zeros sparse, and with ballast.

    Of all cases that can run sparse, and one cluster that lacks zeros: those get ballast.
    """
    found = {}
    for name, case in files.items():
        few = dataclasses.replace(case, settings=case.settings | {"zeros": 0.45}).dense
        added = add_ballast(few, ())
        if not added.applied:
            continue
        many = dataclasses.replace(case, settings=case.settings | {"zeros": 0.9}).dense
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shortfall, "find_clusters", _find_poor_clusters)
            forced = add_ballast(many, ())
        if not forced.applied:  # another cluster of it would be computed wrong
            assert "W" in case.seen, name
            many, forced = few, Rewritten(few, (), ())
        found[name] = (few, added.content, *map(store_sparse, (added.content, many, forced.content)))
    assert len(found) >= 20
    return found


def _find_poor_clusters(*arguments):
    """Every cluster as if it had no zeros."""
    return tuple(dataclasses.replace(cluster, num_zeros=0) for cluster in find_clusters(*arguments))


def test_ballast_changes_no_bit_on_x86(ballasted):
    for name, contents in ballasted.items():
        ran = [run_here(content) for content in contents]
        assert are_equal(ran[0], ran[1]) and are_equal(ran[1], ran[2]), name
        assert are_equal(ran[3], ran[4]), name


def run_here(content):
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    interpreter.set_tensor(image["index"], images(read_operators(content)))
    interpreter.invoke()
    return [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]


@pytest.mark.slow
def test_ballast_changes_no_bit_and_runs_sparse_in_litert_js(web, ballasted):
    with Browser() as browser:
        for name, contents in ballasted.items():
            graph = read_operators(contents[0])
            if len(graph.outputs) > 1:
                continue
            ran = [_run(content, images(graph), browser) for content in contents]
            check_ballast(name, contents, ran, NEWEST)
            assert not are_equal(ran[1], ran[2]), name  # sparse kernels add in another order


@pytest.mark.slow
def test_litert_js_does_what_the_rules_say(web, files):
    seen, expected = {}, {}
    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(Browser())
        for name, case in files.items():
            graph = read_operators(case.content)
            if name == "stored dense":
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
