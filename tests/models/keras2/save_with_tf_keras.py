"""Saves a table of networks with tf_keras, that is Keras 2, and what they give; run in a process of its own.

    python save_with_tf_keras.py FOLDER

For each network NAME: NAME.h5, NAME.keras, and NAME.npz with `inputs` and `outputs`. Of some also NAME.old.keras, with
the weights laid out as Keras 2.12 laid them out, and the folder NAME.saved_model.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

OLD_LAYOUT = frozenset({"attention", "bidirectional", "shared_and_nested", "teachable_machine", "time_distributed"})
SAVED_MODELS = frozenset(
    {
        *("batch_normalization", "bidirectional", "normalization", "pruned", "pruned_inside"),
        *("shared_and_nested", "time_distributed"),
    }
)
IMAGE, SERIES = (16, 16, 4), (10, 6)


def stack(shape, *body):
    """A sequential model; the last of its layers gives the output."""
    return keras.Sequential([keras.Input(shape), *body])


def functional(shape, call, **options):
    inputs = keras.Input(shape, **options)
    return keras.Model(inputs, call(inputs))


def image_layers():
    """One network a kind of layer, on images."""
    yield "conv2d", [layers.Conv2D(6, 3, 2, "same", dilation_rate=1, groups=2, activation="relu")]
    yield "conv2d_dilated", [layers.Conv2D(6, 3, dilation_rate=2, activation="swish")]
    yield "depthwise_conv2d", [layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, activation="relu6")]
    yield "separable_conv2d", [layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2)]
    yield "conv2d_transpose", [layers.Conv2DTranspose(5, 3, 2, "same", output_padding=1), layers.Conv2DTranspose(3, 2)]
    yield "batch_normalization", [layers.BatchNormalization(), layers.BatchNormalization(scale=False, center=False)]
    yield "small_epsilon", [layers.BatchNormalization(epsilon=1e-7)]
    yield "layer_normalization", [layers.LayerNormalization(axis=[1, 3]), layers.LayerNormalization(epsilon=1e-6)]
    yield "group_normalization", [layers.GroupNormalization(2), layers.UnitNormalization()]
    yield "prelu", [layers.PReLU(shared_axes=[1, 2]), layers.PReLU()]
    yield "leaky_relu", [layers.LeakyReLU(0.2), layers.LeakyReLU()]
    yield "relu", [layers.ReLU(max_value=0.5, negative_slope=0.1, threshold=0.1), layers.ELU(0.7)]
    yield "thresholded_relu", [layers.ThresholdedReLU(0.3)]
    yield "softmax", [layers.Softmax(axis=2), layers.Activation("gelu"), layers.Activation("softplus")]
    yield "selu", [layers.Activation(name) for name in ("selu", "elu", "softsign", "mish", "exponential", "tanh")]
    yield "leaky_activation", [layers.Conv2D(5, 3, activation=tf.nn.leaky_relu)]
    yield "up_sampling2d", [layers.UpSampling2D((2, 3), interpolation="bilinear"), layers.UpSampling2D(2)]
    yield "zero_padding2d", [layers.ZeroPadding2D(((1, 2), (0, 1))), layers.Cropping2D(((0, 2), (1, 1)))]
    yield "pooling", [layers.MaxPooling2D(3, 2, "same"), layers.AveragePooling2D(3, 2, "same")]
    yield "global_pooling", [layers.GlobalAveragePooling2D(keepdims=True), layers.GlobalMaxPooling2D()]
    yield "rescaling", [layers.Rescaling(1 / 127.5, -1), layers.Rescaling([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0])]
    yield "normalization", [layers.Normalization(), layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[0.5] * 4)]
    yield "resizing", [layers.Resizing(7, 9), layers.Resizing(8, 5, "nearest"), layers.CenterCrop(4, 4)]
    yield (
        "augmentation",
        [layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1), layers.RandomContrast(0.1)],
    )
    yield (
        "noise",
        [layers.Dropout(0.5), layers.SpatialDropout2D(0.5), layers.GaussianNoise(0.1), layers.AlphaDropout(0.1)],
    )
    yield "reshaping", [layers.Permute((3, 1, 2)), layers.Reshape((4, -1)), layers.Flatten(), layers.RepeatVector(3)]
    yield "einsum_dense", [layers.EinsumDense("abcd,de->abce", (None, None, 5), bias_axes="e")]
    half = "mixed_float16"
    yield "mixed_precision", [layers.Conv2D(4, 3, dtype=half), layers.BatchNormalization(dtype=half), layers.Dense(2)]
    regular = keras.regularizers.L1L2(1e-4, 1e-3)
    yield (
        "options",
        [
            layers.Conv2D(
                *(4, 3),
                kernel_regularizer=regular,
                activity_regularizer="l2",
                kernel_constraint=keras.constraints.MaxNorm(2),
                kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=3),
                bias_initializer=keras.initializers.Constant(0.2),
            )
        ],
    )


def series_layers():
    """One network a kind of layer, on series."""
    yield "conv1d", [layers.Conv1D(5, 3, padding="causal", dilation_rate=2), layers.MaxPooling1D(2)]
    yield "separable_conv1d", [layers.SeparableConv1D(5, 3), layers.DepthwiseConv1D(3), layers.ZeroPadding1D(2)]
    yield "conv1d_transpose", [layers.Conv1DTranspose(5, 3, 2), layers.GlobalAveragePooling1D()]
    yield (
        "lstm",
        [layers.LSTM(5, return_sequences=True, implementation=1), layers.LSTM(3, go_backwards=True, unroll=True)],
    )
    yield "gru", [layers.GRU(5, return_sequences=True), layers.GRU(3, reset_after=False, dropout=0.1)]
    yield "simple_rnn", [layers.SimpleRNN(5, activation="relu"), layers.Dense(3, "softmax")]
    yield "rnn_of_cells", [layers.RNN(layers.GRUCell(4), return_sequences=True), layers.Dense(2)]
    yield (
        "bidirectional",
        [layers.Bidirectional(layers.LSTM(4, return_sequences=True)), layers.Bidirectional(layers.GRU(3), "sum")],
    )
    yield "masking", [layers.Masking(0.0), layers.LSTM(4), layers.Dense(3)]
    yield "time_distributed", [layers.TimeDistributed(layers.Dense(4, "relu")), layers.TimeDistributed(build_inner())]
    yield "batch_normalization_of_series", [layers.BatchNormalization(epsilon=1e-7), layers.Dense(2)]


def build_inner():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()], name="inner")


def merge(x):
    a, b = layers.Conv2D(4, 3, padding="same")(x), layers.Dense(4)(x)
    merged = [layers.Add()([a, b]), layers.Multiply()([a, b]), layers.Subtract()([a, b]), layers.Average()([a, b, x])]
    merged += [layers.Maximum()([a, b]), layers.Minimum()([a, b]), layers.Concatenate(axis=-1)([a, b])]
    flat = layers.Flatten()(layers.Concatenate()(merged))
    return layers.Dot(axes=1, normalize=True)([layers.Dense(5)(flat), layers.Dense(5)(flat)])


def attend(x):
    y = layers.MultiHeadAttention(2, 3, value_dim=4, dropout=0.1)(x, x)
    y = layers.MultiHeadAttention(2, 3)(y, value=x, key=x)
    y = layers.Attention(use_scale=True)([y, x])
    return layers.LayerNormalization()(layers.AdditiveAttention()([y, x]))


def use_functions(x):
    y = layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)
    y = tf.nn.relu6(y) - 0.5 + tf.concat([x, x], axis=-1)[:, :, :, 2:6]
    y = tf.sqrt(tf.abs(y)) / 2 + tf.square(x) ** 2 - tf.exp(-x) * [1.0, 2.0, 3.0, 4.0] + (1.0 - tf.sigmoid(x))
    y = tf.nn.leaky_relu(y, 0.1) + tf.nn.gelu(x) + tf.nn.silu(x) + tf.tanh(x) + keras.activations.hard_sigmoid(x)
    y = tf.maximum(y, tf.reduce_mean(y, [1, 2], keepdims=True)) + tf.expand_dims(tf.reduce_max(y, axis=-1), -1)
    y = tf.clip_by_value(tf.transpose(tf.pad(y, [[0, 0], [1, 1], [0, 0], [0, 0]]), [0, 2, 1, 3]), -3.0, 3.0)
    return tf.nn.softmax(tf.reshape(y, (-1, 16 * 18 * 4)))


def use_states(x):
    _, h, c = layers.LSTM(4, return_state=True)(x)
    return layers.LSTM(4)(x, initial_state=[h, c])


def share(x):
    """A model called twice, a layer called twice, a model inside a model inside a model, frozen parts."""
    inside = functional((16, 16, 4), lambda t: layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(t)))
    middle = functional((16, 16, 4), lambda t: inside(layers.Conv2D(4, 1)(t), training=False))
    middle.layers[1].trainable = False
    inside.layers[2].trainable = False
    dense = layers.Dense(4)
    y = layers.Add()([middle(x), dense(middle(dense(x)))])
    return functional((16, 16, 4), lambda t: layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1)(t)))(y)


def build_teachable_machine():
    """Teachable Machine's keras_model.h5: two sequential models, the first around a MobileNet."""
    mobile = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)
    cut = keras.Model(mobile.input, mobile.get_layer("out_relu").output)
    first = keras.Sequential([cut, layers.GlobalAveragePooling2D()])
    second = keras.Sequential(
        [keras.Input((1280,)), layers.Dense(10, "relu"), layers.Dense(3, "softmax", use_bias=False)]
    )
    return keras.Sequential([first, second])


def transfer():
    """What the guide to transfer learning builds: a frozen network in a functional one."""
    base = keras.applications.MobileNet((32, 32, 3), alpha=0.25, include_top=False, weights=None)
    base.trainable = False
    return functional((32, 32, 3), lambda x: layers.Dense(2)(layers.GlobalAveragePooling2D()(base(x, training=False))))


class PruneLowMagnitude(layers.Wrapper):
    """What TFMOT 0.8.1 puts around layers, as far as its files tell: the same names, variables and order of them.

    The package itself wants another absl than TensorFlow has. Files of its own are read the same: docs/own_models.md.
    """

    def __init__(self, layer):
        super().__init__(layer, name=f"prune_low_magnitude_{layer.name}")

    def build(self, input_shape):
        super().build(input_shape)
        is_pruned = isinstance(self.layer, layers.Dense | layers.Conv2D)
        is_pruned = is_pruned and not isinstance(self.layer, layers.DepthwiseConv2D)
        self.prunable_weights = [self.layer.kernel] if is_pruned else []
        self.masks = []
        for weight in self.prunable_weights:
            mask = self.add_weight("mask", weight.shape, trainable=False)
            self.add_weight("threshold", [], trainable=False)
            self.masks.append(mask)
        self.pruning_step = self.add_weight("pruning_step", [], dtype="int64", trainable=False)

    def call(self, inputs):
        """In training TFMOT masks the weights themselves; here those in the file are as they were, to see it done."""
        before = [tf.identity(weight) for weight in self.prunable_weights]
        for weight, mask in zip(self.prunable_weights, self.masks, strict=True):
            weight.assign(weight * mask)
        outputs = self.layer(inputs)
        for weight, value in zip(self.prunable_weights, before, strict=True):
            weight.assign(value)
        return outputs


def prune(x):
    wrap = PruneLowMagnitude
    y = shortcut = wrap(layers.Conv2D(8, 3, padding="same"))(x)
    y = wrap(layers.ReLU())(wrap(layers.BatchNormalization())(y))
    y = wrap(layers.Conv2D(8, 3, padding="same"))(wrap(layers.DepthwiseConv2D(3, padding="same"))(y))
    y = wrap(layers.GlobalAveragePooling2D())(wrap(layers.Add())([y, shortcut]))
    return wrap(layers.Dense(3, "softmax"))(y)


def prune_inside(x):
    wrap = PruneLowMagnitude
    inner = [wrap(layers.Conv2D(4, 3, padding="same")), layers.BatchNormalization()]
    inside = keras.Sequential([keras.Input(IMAGE), layers.Conv2D(4, 3, padding="same"), *inner])
    return wrap(layers.Dense(3))(layers.GlobalAveragePooling2D()(inside(x)))


def applications():
    nets, size = keras.applications, (32, 32, 3)
    options = {"input_shape": size, "weights": None, "classes": 5}
    yield "mobilenet", lambda: nets.MobileNet(alpha=0.25, **options)
    yield "mobilenet_v2", lambda: nets.MobileNetV2(alpha=0.35, **options)
    yield "mobilenet_v3_small", lambda: nets.MobileNetV3Small(alpha=0.75, minimalistic=False, **options)
    yield "efficientnet_b0", lambda: nets.EfficientNetB0(**options)


def networks():
    for name, body in image_layers():
        yield name, lambda body=body: stack(IMAGE, *body)
    for name, body in series_layers():
        yield name, lambda body=body: stack(SERIES, *body)
    yield (
        "embedding",
        lambda: keras.Sequential([layers.Embedding(20, 4, input_length=7), layers.LSTM(3), layers.Dense(2)]),
    )
    yield (
        "embedding_masked",
        lambda: functional((7,), lambda x: layers.GRU(3)(layers.Embedding(20, 4, mask_zero=True)(x)), dtype="int32"),
    )
    yield "merging", lambda: functional(IMAGE, merge)
    yield "attention", lambda: functional(SERIES, attend)
    yield "tensorflow_functions", lambda: functional(IMAGE, use_functions)
    yield "initial_state", lambda: functional(SERIES, use_states)
    yield "shared_and_nested", lambda: functional(IMAGE, share)
    yield "first_layer_has_the_shape", lambda: keras.Sequential([layers.Dense(4, input_shape=(6,)), layers.Dense(2)])
    yield (
        "slash_in_names",
        lambda: stack((6,), layers.Dense(4, name="block/dense"), layers.Dense(2, name="block_dense")),
    )
    yield "many_layers", lambda: stack((6,), *(layers.Dense(6, "tanh", name=f"{'n' * 1500}_{i}") for i in range(45)))
    yield "teachable_machine", build_teachable_machine
    yield "transfer_learning", transfer
    yield "pruned", lambda: functional(IMAGE, prune)
    yield "pruned_inside", lambda: functional(IMAGE, prune_inside)
    yield from applications()


def randomise(model, random):
    """Weights as after training: no two alike, moments and scales positive."""
    for weight in model.weights:
        name = weight.name.rsplit("/", 1)[-1].split(":")[0].rstrip("_0123456789")
        if name == "count":
            continue
        if name == "mask":
            values = random.integers(0, 2, weight.shape)
        elif name in ("moving_variance", "variance", "gamma"):
            values = random.uniform(0.5, 1.5, weight.shape)
        else:
            fan_in = max(1, int(np.prod(weight.shape[:-1])))
            values = random.normal(0, 1 / np.sqrt(fan_in) if len(weight.shape) > 1 else 0.3, weight.shape)
        weight.assign(values.astype(weight.dtype.as_numpy_dtype))
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
        if isinstance(layer, layers.BatchNormalization) and layer.epsilon < 1e-6:
            layer.moving_variance.assign(np.full(layer.moving_variance.shape, 1e-4, np.float32))


def save_in_old_layout(model, path):
    """Up to Keras 2.12, attributes were gone through from A to Z, and a layer met again used up a number."""
    from tf_keras.src.saving import saving_lib

    def walk(trackable):
        for name in sorted(dir(trackable)):
            if not name.startswith("__") and name not in saving_lib.ATTR_SKIPLIST - {"_layer_checkpoint_dependencies"}:
                try:
                    child = getattr(trackable, name)
                except Exception:
                    continue
                yield name, child

    def save_container(container, weights_store, assets_store, inner_path, visited_trackables):
        used = {}
        for trackable in container.values() if isinstance(container, dict) else container:
            if saving_lib._is_keras_trackable(trackable):
                name = keras.src.utils.generic_utils.to_snake_case(type(trackable).__name__)
                used[name] = used.get(name, -1) + 1
                name = f"{name}_{used[name]}" if used[name] else name
                saving_lib._save_state(
                    trackable, weights_store, assets_store, f"{inner_path}/{name}", visited_trackables
                )

    saved = saving_lib._walk_trackable, saving_lib._save_container_state
    saving_lib._walk_trackable, saving_lib._save_container_state = walk, save_container
    try:
        model.save(path)
    finally:
        saving_lib._walk_trackable, saving_lib._save_container_state = saved


def main(folder):
    for number, (name, build) in enumerate(networks()):
        keras.utils.set_random_seed(number)
        keras.backend.clear_session()
        random = np.random.default_rng(number)
        model = build()
        (shape,) = [tensor.shape[1:] for tensor in model.inputs] if model.inputs else [(7,)]
        inputs = random.normal(0, 1, (3, *shape)).astype("float32")
        if name.startswith("embedding"):
            inputs = random.integers(0, 20, (3, *shape)).astype("float32")
        if name == "masking":
            inputs[:, 6:] = 0
        model(inputs)
        randomise(model, random)
        np.savez(folder / f"{name}.npz", inputs=inputs, outputs=model(inputs, training=False).numpy())
        model.save(folder / f"{name}.h5")
        model.save(folder / f"{name}.keras")
        if name in OLD_LAYOUT:
            save_in_old_layout(model, folder / f"{name}.old.keras")
        if name in SAVED_MODELS:
            model.save(folder / f"{name}.saved_model", save_format="tf")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
