import gzip

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer, sparse_storage, stored_zeros, tflite
from reflow_tf.export.constants import read_constants
from reflow_tf.export.equivalence import compute_same
from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting import Applied, Rewritten
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.export.tflite import export_tflite
from reflow_tf.export.verification import check_masks
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.targets.xnnpack import XNNPack


def images(shape, count=4, seed=5):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def run_float(content, batch):
    """Outputs of a float file of batch 1, one image at a time."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["dtype"] == target["dtype"] == np.float32
    outputs = []
    for image in batch:
        interpreter.set_tensor(source["index"], image[np.newaxis])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"])[0].copy())
    return np.array(outputs)


def small_net(*, policy="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential(
            [
                layers.Input((8, 8, 3)),
                layers.Conv2D(16, 3, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(6),
                layers.Conv2D(64, 1),
                layers.GlobalAveragePooling2D(),
                layers.Dense(40, dtype="float32"),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    kernel = model.layers[3].kernel
    kernel.assign(kernel * (np.random.default_rng(2).random(kernel.shape) >= 0.9))
    return model


@pytest.fixture(scope="module")
def exported(mobilenet):
    return export_tflite(mobilenet[0])


def test_a_pruned_mobilenet_is_smaller_and_computes_what_keras_does(exported, mobilenet):
    model, masks = mobilenet
    assert len(exported.content) < 0.45 * len(exported.dense_content)
    assert exported.gzip_size_bytes == len(gzip.compress(exported.content, 6))
    assert exported.notes == ()
    batch = images((32, 32, 3))
    want = model(batch, training=False).numpy()
    np.testing.assert_allclose(run_float(exported.content, batch), want, rtol=1e-4, atol=1e-6)
    checks = check_masks(exported.content, masks)
    assert [check.path for check in checks] == list(masks)
    assert all(check.ok and check.num_extra_zeros == 0 and check.storage == "sparse" for check in checks)


@pytest.mark.slow
def test_our_encoder_beats_the_converters_own(exported, mobilenet):
    model, _ = mobilenet
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((1, 32, 32, 3), tf.float32)
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    dense = converter.convert()
    converter.optimizations = {tf.lite.Optimize.EXPERIMENTAL_SPARSITY}
    theirs = converter.convert()
    assert len(exported.content) < len(theirs) < len(dense)
    # and our decoder reads what another encoder wrote
    ours, others, plain = read_constants(exported.content), read_constants(theirs), read_constants(dense)
    largest = max(plain, key=lambda name: plain[name].size)
    shape = plain[largest].shape
    (theirs_largest,) = (value for value in others.values() if value.shape == shape)
    np.testing.assert_array_equal(theirs_largest, plain[largest])
    (ours_largest,) = (value for value in ours.values() if value.shape == shape)
    np.testing.assert_array_equal(ours_largest, plain[largest])


def test_dense_on_demand(mobilenet, exported):
    dense = export_tflite(mobilenet[0], storage="dense")
    assert len(dense.content) == len(dense.dense_content)
    assert {stored.storage for stored in dense.tensors} == {"dense"}
    assert compute_same(dense.content, exported.content)


def test_int8_zeros_stay_zero(mobilenet):
    model, masks = mobilenet
    exported = export_tflite(model, quantize="int8", calibration=[images((32, 32, 3), 3), images((32, 32, 3), 2)])
    graph = flatbuffer.parse(exported.content).subgraphs[0]
    assert {graph.tensors[index].type for index in (*graph.inputs, *graph.outputs)} == {9}  # INT8
    checks = check_masks(exported.content, masks)
    assert all(check.ok for check in checks)
    assert any(check.storage == "sparse" for check in checks)
    assert len(exported.content) < 0.8 * len(exported.dense_content)
    assert any("DENSIFY" in note for note in exported.notes)
    assert any("FULLY_CONNECTED" in note for note in exported.notes)
    weights = {stored.name: stored for stored in exported.tensors}
    (head,) = (stored for stored in weights.values() if stored.shape == (10, 1280))
    assert (head.storage, head.dtype) == ("dense", "int8")


def test_float16_weights_go_sparse_through_dequantize():
    model = small_net()
    exported = export_tflite(model, quantize="float16")
    (stored,) = (stored for stored in exported.tensors if stored.shape == (64, 1, 1, 16))
    assert (stored.dtype, stored.storage) == ("float16", "sparse")
    batch = images((8, 8, 3))
    np.testing.assert_allclose(
        run_float(exported.content, batch), model(batch, training=False).numpy(), rtol=0.02, atol=2e-3
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_exported_in_float32_and_left_as_it_was(policy):
    model, reference = small_net(policy=policy), small_net()
    weights = [value.copy() for value in model.get_weights()]
    exported = export_tflite(model)
    batch = images((8, 8, 3))
    want = reference(batch, training=False).numpy()
    np.testing.assert_allclose(run_float(exported.content, batch), want, rtol=1e-4, atol=1e-6)
    assert model.layers[0].dtype_policy.name == policy
    assert model(batch).dtype == "float32"
    assert model.layers[0](batch).dtype == policy.removeprefix("mixed_")
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = small_net()
        self.head = layers.Dense(5)

    def call(self, inputs):
        return self.head(self.inner(inputs))


def test_a_subclassed_model_with_a_nested_one():
    keras.utils.set_random_seed(0)
    model = Subclassed()
    batch = images((8, 8, 3))
    want = model(batch).numpy()
    np.testing.assert_allclose(run_float(export_tflite(model).content, batch), want, rtol=1e-4, atol=1e-6)


def test_inputs_that_are_no_images():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((5, 6)), layers.Conv1D(8, 3), layers.LSTM(16), layers.Dense(3)])
    batch = images((5, 6))
    exported = export_tflite(model)
    np.testing.assert_allclose(run_float(exported.content, batch), model(batch).numpy(), rtol=1e-4, atol=1e-6)
    assert any("loops" in note for note in exported.notes)
    with pytest.raises(InputError, match="unroll=True"):
        export_tflite(model, quantize="int8", calibration=[batch])


def test_batch_and_open_dimensions_are_fixed_on_demand():
    model = keras.Sequential([layers.Input((None, None, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
    with pytest.raises(InputError, match="input_shape"):
        export_tflite(model)
    with pytest.raises(InputError, match="input_shape must fit"):
        export_tflite(model, input_shape=(8, 8, 1))
    content = export_tflite(model, input_shape=(8, 9, 3), batch_size=3).content
    interpreter = Interpreter(model_content=content)
    assert interpreter.get_input_details()[0]["shape"].tolist() == [3, 8, 9, 3]


def test_what_has_no_int8_form_is_named():
    model = keras.Sequential([layers.Input((5, 5, 5, 2)), layers.Conv3D(4, 3), layers.Flatten()])
    exported = export_tflite(model, quantize="int8", calibration=images((5, 5, 5, 2)))
    assert any("CONV_3D" in note for note in exported.notes)


def test_a_sparse_file_that_computes_something_else_is_not_returned(monkeypatch):
    model = small_net()

    def broken(content):
        damaged = flatbuffer.parse(store_sparse(content))
        for tensor in damaged.subgraphs[0].tensors:
            if tensor.sparsity is not None:
                buffer = damaged.buffers[tensor.buffer]
                buffer.data = (np.frombuffer(buffer.data, np.float32) * 2).view(np.uint8)
        return flatbuffer.serialize(damaged)

    monkeypatch.setattr(stored_zeros, "store_sparse", broken)
    exported = export_tflite(model)
    assert len(exported.content) == len(exported.dense_content)
    assert any("bit-equal" in note for note in exported.notes)


@pytest.mark.parametrize("kind", ["CONV_3D", "CONV_3D_TRANSPOSE"])
def test_float16_filters_that_xnnpack_does_not_take_stay_dense(kind, monkeypatch):
    """LiteRT 2.3.0 computes garbage from DENSIFY -> DEQUANTIZE -> CONV_3D; the day it does not, `_READERS` can grow."""
    layer = layers.Conv3D(16, 3) if kind == "CONV_3D" else layers.Conv3DTranspose(16, 3)
    model = keras.Sequential([layers.Input((5, 5, 5, 8)), layer])
    layer.kernel.assign(layer.kernel * (np.random.default_rng(0).random(layer.kernel.shape) >= 0.9))
    exported = export_tflite(model, quantize="float16")
    assert {stored.storage for stored in exported.tensors} == {"dense"}
    readers = dict(sparse_storage._READERS)
    readers[1] = readers[0]
    monkeypatch.setattr(sparse_storage, "_READERS", readers)
    forced = store_sparse(exported.content)
    assert len(forced) < len(exported.content)
    assert not compute_same(exported.content, forced)


class Unsupported(keras.Model):
    def call(self, inputs):
        return tf.raw_ops.Betainc(a=tf.exp(inputs), b=tf.exp(inputs), x=tf.sigmoid(inputs))


def called(model, shape):
    model(np.zeros((1, *shape), np.float32))
    return model


def on(shape, layer):
    return keras.Sequential([layers.Input(shape), layer])


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: called(Unsupported(name="odd"), (4,)), {}, "'odd'.* TFLite operator for Betainc$"),
        (lambda: on((8, 8, 8, 1), layers.MaxPooling3D(2)), {}, "Received: there is no TFLite operator for MaxPool3D$"),
        (lambda: on((8, 8, 1), layers.UpSampling2D(2, interpolation="bicubic")), {}, "for ResizeBicubic$"),
        (
            lambda: on((3, 16), layers.Conv1D(4, 3, data_format="channels_first", name="odd")),
            {},
            "data_format='channels_last'.*: layer 'odd' computes channels first. Received: 'tf.Transpose' op x should",
        ),
        (
            lambda: on((None, None, 3), layers.Conv2D(4, 5)),
            {"input_shape": (3, 3, 3)},
            "caused by subtracting 5 from 3",
        ),
        (lambda: Unsupported(), {}, "built"),
        (small_net, {"quantize": "int4"}, "none, float16, int8.*int4"),
        (small_net, {"batch_size": 0}, "batch_size"),
        (small_net, {"quantize": "int8"}, "calibration"),
        (small_net, {"quantize": "int8", "calibration": []}, "at least one"),
        (small_net, {"quantize": "int8", "calibration": np.zeros((0, 8, 8, 3), np.float32)}, "at least one"),
        (small_net, {"quantize": "int8", "calibration": [np.zeros((2, 9, 8, 3), np.float32)]}, "8, 8, 3"),
    ],
)
def test_what_cannot_be_exported_is_explained(make, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        export_tflite(make(), **arguments)
    assert "Received: " in str(caught.value)


def test_an_error_in_the_calibration_data_comes_through():
    def batches():
        yield images((8, 8, 3))
        raise InputError("An image must be readable. Received: broken.png")

    with pytest.raises(InputError, match=r"broken\.png"):
        export_tflite(small_net(), quantize="int8", calibration=batches())


def test_the_converter_is_silent(capfd):
    export_tflite(small_net())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.slow
def test_rewriting_makes_xnnpack_run_sparse_and_changes_no_output(mobilenet):
    pruned, masks = mobilenet
    # At 32 pixels the last maps have one pixel each, and the converter turns their sums into something else.
    model = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None, classes=10)
    model.set_weights(pruned.get_weights())
    plain, rewritten = export_tflite(model), export_tflite(model, rewrite="exact")
    batch = images((64, 64, 3))
    np.testing.assert_allclose(
        run_float(rewritten.content, batch), run_float(plain.content, batch), rtol=1e-4, atol=1e-6
    )
    assert not XNNPack().judge(read_operators(plain.content)).eligible
    assert XNNPack().judge(read_operators(rewritten.content)).eligible
    assert "rotation" in {applied.rewrite for applied in rewritten.rewrites}
    assert plain.rewrites == () and plain.refused == ()
    assert all(check.ok for check in check_masks(rewritten.content, masks))


@pytest.mark.slow
def test_masks_of_turned_kernels_are_found_again(mobilenet):
    """Every kernel masked, spatial ones as well: rotation turns them, the stem's input channels with it."""
    model = keras.models.clone_model(mobilenet[0])
    model.set_weights(mobilenet[0].get_weights())
    rng = np.random.default_rng(3)
    masks = {}
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            kernel = layer.kernel.numpy()
            kept = rng.random(kernel.shape) >= 0.5
            layer.kernel.assign(kernel * kept)
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            masks[f"{layer.name}/kernel"] = kept.transpose((2, 0, 1, 3) if depthwise else (3, 0, 1, 2))
    exported = export_tflite(model, rewrite="exact")
    assert "rotation" in {applied.rewrite for applied in exported.rewrites}
    assert all(check.ok for check in check_masks(exported.content, masks))


@pytest.mark.slow
def test_a_rewrite_that_computes_something_else_is_dropped(monkeypatch, mobilenet):
    other = keras.models.clone_model(mobilenet[0])  # other weights
    wrong = Rewritten(export_tflite(other, storage="dense").content, (Applied("rotation", ("Conv1",), "Turned."),), ())
    monkeypatch.setattr(tflite, "rewrite_exact", lambda content, ballast_for: wrong)
    exported = export_tflite(mobilenet[0], rewrite="exact")
    assert exported.rewrites == ()
    assert any("Not rewritten" in note for note in exported.notes)
    assert exported.content == export_tflite(mobilenet[0]).content


def test_rewriting_has_choices(mobilenet):
    with pytest.raises(InputError, match=r"--rewrite must be one of exact, none\. Received: wild"):
        export_tflite(mobilenet[0], rewrite="wild")


def test_what_arm_would_compute_wrong_is_stored_dense():
    """The cluster ends in a 1x1 convolution that a pooling layer reads: XNNPACK leaves its output channels first."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, 2, activation="relu")(layers.ZeroPadding2D(1)(image))
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(layers.Conv2D(64, 1, name="wide")(x))
    model = keras.Model(image, layers.Reshape((10,))(layers.Conv2D(10, 1, name="head")(pooled)))
    for name in ("wide", "head"):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel.numpy() * (np.random.default_rng(0).random(kernel.shape) >= 0.9))
    exported = export_tflite(model)
    assert XNNPack().judge(read_operators(store_sparse(exported.content))).corrupted_by
    assert {tensor.storage for tensor in exported.tensors} == {"dense"}
    assert any("would compute wrong outputs" in note for note in exported.notes)
    # Rewriting takes the head out of the cluster, and the zeros can be stored sparse.
    mended = export_tflite(model, rewrite="exact")
    assert "sparse" in {tensor.storage for tensor in mended.tensors}
    np.testing.assert_allclose(
        run_float(mended.content, images((16, 16, 3))),
        run_float(exported.content, images((16, 16, 3))),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("as_dict", [True, False])
def test_several_outputs_are_in_the_order_of_the_model(as_dict):
    """Sizes 5, 2 and 3, whose names are in another order: each is found where Keras has it."""
    keras.utils.set_random_seed(0)
    source = keras.Input((4,))
    heads = {name: layers.Dense(size, name=name)(source) for name, size in (("b", 5), ("a", 2), ("c", 3))}
    model = keras.Model(source, heads if as_dict else list(heads.values()))
    inputs = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    expected = [np.asarray(output).reshape(6, -1) for output in keras.tree.flatten(model(inputs))]
    file = LiteRT(export_tflite(model).content)
    assert file.output_sizes == tuple(output.shape[1] for output in expected)
    np.testing.assert_allclose(file.run(inputs), np.concatenate(expected, axis=1), atol=1e-6)
