"""Constants that share one buffer: TensorFlow's converter gives equal bytes one, whatever their shapes and scales."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from reflow_tf.export import flatbuffer
from reflow_tf.export.bitmap_storage import store_bitmaps
from reflow_tf.export.constants import list_tensors, read_constants
from reflow_tf.export.equivalence import compute_same
from reflow_tf.export.forecast import Forecast
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflite import export_tflite
from reflow_tf.export.verification import check_masks
from reflow_tf.models.graph import find_kernels
from reflow_tf.runtimes.tflm.runtime import TFLM

_BYTES_OF = {"none": 4, "float16": 2, "int8": 1}


def build(seed=0):
    """Every kernel has 4,096 weights, in five shapes, with biases that tell the layers apart."""
    keras.utils.set_random_seed(seed)
    settings = {"bias_initializer": "normal"}
    model = keras.Sequential(
        [
            layers.Input((6, 6, 128)),
            layers.DepthwiseConv2D((4, 8), padding="same", **settings, name="deep_1"),
            layers.Conv2D(32, 1, activation="relu", **settings, name="down_1"),
            layers.Conv2D(128, 1, **settings, name="up_1"),
            layers.DepthwiseConv2D((4, 8), padding="same", **settings, name="deep_2"),
            layers.Conv2D(32, 1, **settings, name="down_2"),
            layers.Conv2D(32, 2, **settings, name="spatial"),
            layers.Conv2D(128, 1, **settings, name="up_2"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(32, **settings, name="dense"),
        ]
    )
    return model, np.random.default_rng(seed).uniform(-1, 1, (16, 6, 6, 128)).astype(np.float32)


@pytest.fixture(scope="module")
def files():
    """quantize -> a dense file of `build()`; and inputs."""
    model, images = build()
    made = {
        quantize: export_tflite(
            model, quantize=quantize, storage="dense", calibration=[images] if quantize == "int8" else None
        ).content
        for quantize in _BYTES_OF
    }
    return made, images


def share(content, seed):
    """The file with its kernels on one to three buffers, each as sparse as chance has it."""
    rng = np.random.default_rng(seed)
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    kernels = [
        tensor
        for tensor in graph.tensors
        if tensor.shape is not None and len(tensor.shape) > 1 and np.prod(tensor.shape) == 4096
        if model.buffers[tensor.buffer].data is not None
    ]
    assert len(kernels) >= 7
    pool = []
    for _ in range(rng.integers(1, 4)):
        dtype = flatbuffer.NUMPY_TYPES[kernels[0].type]
        values = rng.integers(1, 100, 4096) * (rng.random(4096) >= rng.choice([0.6, 0.9, 1.0]))
        values = values.astype(dtype) if dtype == np.int8 else (values / 100).astype(dtype)
        pool.append(len(model.buffers))
        model.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
    for tensor in kernels:
        tensor.buffer = int(rng.choice(pool))
    return flatbuffer.serialize(model)


def assert_same_constants(first, second):
    wanted, found = read_constants(first), read_constants(second)
    assert set(wanted) == set(found)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("seed", range(8))
def test_bitmaps_of_shared_buffers_are_read_back_and_computed_alike(files, seed):
    content, images = share(files[0]["int8"], seed), files[1]
    stored = store_bitmaps(content)
    assert len(stored) < len(content)
    assert_same_constants(content, stored)
    np.testing.assert_array_equal(TFLM(stored).run_bytes(images), TFLM(content).run_bytes(images))


@pytest.mark.parametrize("quantize", _BYTES_OF)
@pytest.mark.parametrize("seed", range(6))
def test_sparse_tensors_of_shared_buffers_are_read_back_and_computed_alike(files, quantize, seed):
    content = share(files[0][quantize], seed)
    stored = store_sparse(content)
    assert len(stored) <= len(content)
    wanted, found = read_constants(content), read_constants(stored)
    assert set(found) <= set(wanted), "equal ones of one shape are stored once"
    for name, values in found.items():
        np.testing.assert_array_equal(values, wanted[name])
    assert compute_same(content, stored)


@pytest.mark.parametrize("quantize", ["none", "float16"])
def test_empty_kernels_of_two_shapes_are_stored_sparse(quantize):
    model, _ = build()
    names = ("down_1", "up_1")
    for name in names:
        layer = model.get_layer(name)
        layer.kernel.assign(np.zeros(layer.kernel.shape))
    file = export_tflite(model, quantize=quantize)
    parsed = flatbuffer.parse(file.dense_content)
    empty = [t for t in parsed.subgraphs[0].tensors if _is_kernel(t) and _is_empty(parsed.buffers[t.buffer].data)]
    assert [tensor.buffer for tensor in empty] == [empty[0].buffer] * 2, "the converter gave both one buffer"
    sparse = [tensor for tensor in file.tensors if tensor.storage == "sparse"]
    assert sorted(tensor.shape for tensor in sparse) == [(32, 1, 1, 128), (128, 1, 1, 32)]
    assert len(file.content) < len(file.dense_content)


def _is_empty(data):
    return data is not None and not np.any(data)


def _is_kernel(tensor):
    return tensor.shape is not None and len(tensor.shape) > 1 and np.prod(tensor.shape) == 4096


@pytest.mark.parametrize("names", [("deep_1", "deep_2"), ("down_1", "down_2"), ("up_1", "down_2", "deep_1", "dense")])
@pytest.mark.parametrize("keep", [0.0, 0.2])
def test_equal_kernels_of_a_model_are_exported_for_tflm(names, keep):
    """As the fault was found: with equal kernels, mostly empty ones, of scales that follow from the layers."""
    model, images = build(1)
    values = np.random.default_rng(2)
    values = values.normal(size=4096) * (values.random(4096) < keep)
    masks = {}
    for spec in find_kernels(model).specs:
        layer = model.get_layer(spec.path.split("/")[0])
        if layer.name in names:
            layer.kernel.assign(spec.from_canonical(values.reshape(spec.canonical_shape)))
            masks[spec.path] = values.reshape(spec.canonical_shape) != 0
    file = export_tflite(model, quantize="int8", calibration=[images], storage="bitmap")
    assert any(tensor.storage == "bitmap" for tensor in file.tensors)
    assert_same_constants(file.dense_content, file.content)
    np.testing.assert_array_equal(TFLM(file.content).run_bytes(images), TFLM(file.dense_content).run_bytes(images))
    for content in (file.dense_content, file.content):
        assert [check.ok for check in check_masks(content, masks)] == [True] * len(names)


@pytest.mark.parametrize("quantize", ["none", "float16"])
def test_masks_of_equal_kernels_are_found_in_the_one_tensor_that_holds_them(quantize):
    model, _ = build(1)
    values = np.random.default_rng(2)
    values = values.normal(size=(1, 1, 128, 32)) * (values.random((1, 1, 128, 32)) < 0.2)
    for name in ("down_1", "down_2"):
        model.get_layer(name).kernel.assign(values)
    mask = (values != 0).transpose(3, 0, 1, 2)
    content = export_tflite(model, quantize=quantize).content
    checks = check_masks(content, {"down_1/kernel": mask, "down_2/kernel": mask})
    assert [check.ok for check in checks] == [True, True]
    assert len({check.tensor for check in checks}) == 1


def test_a_mask_does_not_hide_behind_an_equal_one_that_another_kernel_keeps():
    model, _ = build(1)
    mask = np.random.default_rng(2).random((32, 1, 1, 128)) < 0.2
    kernel = model.get_layer("down_1").kernel
    kernel.assign(np.array(kernel) * mask.transpose(1, 2, 3, 0))  # and that of down_2 is left as it was
    checks = check_masks(export_tflite(model).content, {"down_1/kernel": mask, "down_2/kernel": mask})
    assert [check.ok for check in checks] == [True, False]


def test_a_bitmap_that_several_operators_read_has_the_name_that_the_dense_tensor_had(files):
    model = flatbuffer.parse(files[0]["int8"])
    graph = model.subgraphs[0]
    first, last = (
        o for o in graph.operators if _reads(o) and tuple(graph.tensors[o.inputs[1]].shape) == (32, 1, 1, 128)
    )
    last.inputs = [last.inputs[0], first.inputs[1], last.inputs[2]]
    for tensor in graph.tensors:
        if _is_kernel(tensor):
            tensor.name = None
    kernel = graph.tensors[first.inputs[1]]
    model.buffers[kernel.buffer].data = np.zeros(4096, np.uint8)
    content = flatbuffer.serialize(model)
    assert_same_constants(content, store_bitmaps(content))


def _reads(operator):
    return operator.inputs is not None and len(operator.inputs) == 3


def test_a_filter_stays_dense_where_a_tensor_of_its_buffer_has_another_zero(files):
    content = share(files[0]["int8"], 0)
    model = flatbuffer.parse(content)
    last = [tensor for tensor in model.subgraphs[0].tensors if _is_kernel(tensor)][-1]
    last.quantization.zeroPoint = np.full(len(last.quantization.zeroPoint), 3)
    names = {t.name.decode() for t in model.subgraphs[0].tensors if t.buffer == last.buffer}
    stored = list_tensors(store_bitmaps(flatbuffer.serialize(model)))
    assert {tensor.storage for tensor in stored if tensor.name in names} == {"dense"}


@pytest.mark.parametrize(("quantize", "storage"), [("int8", "bitmap"), ("int8", "sparse")])
def test_the_size_of_a_file_is_foretold_though_kernels_share_a_buffer_before_they_are_pruned(quantize, storage):
    keras.utils.set_random_seed(0)
    convolutions = [layers.Conv2D(64, 1, bias_initializer="normal", name=f"conv_{n}") for n in range(3)]
    model = keras.Sequential([layers.Input((6, 6, 64)), *convolutions])
    for factor, layer in enumerate(convolutions[1:], start=2):  # of equal integers, at other scales
        layer.kernel.assign(factor * np.array(convolutions[0].kernel))
    images = [np.random.default_rng(0).uniform(-1, 1, (16, 6, 6, 64)).astype(np.float32)]
    settings = {"quantize": quantize, "calibration": images}
    kernels = find_kernels(model).read()
    dense = export_tflite(model, storage="dense", **settings).content
    parsed = flatbuffer.parse(dense)
    assert len({t.buffer for t in parsed.subgraphs[0].tensors if t.shape is not None and np.prod(t.shape) == 4096}) == 1
    forecast = Forecast(dense, kernels, storage)
    masks = {path: np.random.default_rng(n).random((64, 1, 1, 64)) < 0.1 for n, path in enumerate(kernels)}
    for layer, mask in zip(convolutions, masks.values(), strict=True):
        layer.kernel.assign(np.array(layer.kernel) * mask.transpose(1, 2, 3, 0))
    size = len(export_tflite(model, storage=storage, **settings).content)
    assert size <= forecast.measure_size(masks) < 1.15 * size


def test_rewriting_lets_equal_constants_share_a_buffer_again(conv_file, weights):
    kernel = weights((8, 3, 3, 8), 0.0)
    model = flatbuffer.parse(conv_file(kernel, kernel))
    graph = EditableGraph(flatbuffer.serialize(model))
    for operator in graph.operators:
        graph.change_constant(operator, 1, lambda old: old[:, ::-1], "mirror")
    changed = flatbuffer.parse(graph.serialize())
    buffers = [tensor.buffer for tensor in changed.subgraphs[0].tensors if len(tensor.shape) == 4 and tensor.buffer]
    assert len(buffers) == 2 and len(set(buffers)) == 1
    assert len(graph.serialize()) < 1.5 * kernel.nbytes


def test_a_buffer_that_holds_more_than_weights_stays_as_it_is(conv_file, weights):
    """An empty kernel may lie where the zeros of a bias, or of anything else of as many bytes, do."""
    model = flatbuffer.parse(conv_file(weights((64, 1, 1, 64), 1.0)))
    graph = model.subgraphs[0]
    kernel = next(tensor for tensor in graph.tensors if len(tensor.shape) == 4 and tensor.buffer)
    graph.tensors.append(schema.TensorT(name=b"zeros", shape=[4096], type=kernel.type, buffer=kernel.buffer))
    graph.outputs = [*graph.outputs, len(graph.tensors) - 1]
    content = flatbuffer.serialize(model)
    assert store_sparse(content) is content
