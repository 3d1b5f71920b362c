"""Small files under the names that the documentation gives to a reader's own: networks, photographs, arrays."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from PIL import Image

import reflow_tf
from reflow_tf.data.embedded import EmbeddedSource

NAMES = ("ant", "bee", "cat", "dog")
COLOURS = np.array([[200, 60, 60], [60, 190, 70], [70, 80, 200], [210, 200, 90]])
SIZE, NUM_IMAGES = 32, 256
STEPS, CHANNELS = 64, 6


def make(folder: pathlib.Path) -> None:
    """Writes my_model.keras, my_sparse_model.keras and my_series.keras, archives, photos/ and .tflite files."""
    keras.utils.set_random_seed(0)
    images, labels = _make_images()
    np.savez(folder / "my_data.npz", x=images, y=labels)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "photos" / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:03}.png")
    model = _train(_build_classifier(), _scale(images), labels)
    model.save(folder / "my_model.keras")
    sparse = reflow_tf.prune(model, reflow_tf.PruneConfig(sparsity=0.8, repair="none")).model
    sparse.save(folder / "my_sparse_model.keras")
    (folder / "sparse.tflite").write_bytes(reflow_tf.export_tflite(sparse, storage="dense").content)
    (folder / "any.tflite").write_bytes(reflow_tf.export_tflite(model, storage="dense").content)
    series = (images[:, : STEPS // 2, :2].reshape(len(images), STEPS // 2, -1).repeat(2, 1) / 255).astype(np.float32)
    np.savez(folder / "my_series.npz", x=series, y=labels)
    _train(_build_series_classifier(), series, labels).save(folder / "my_series.keras")


def make_few_images(folder: pathlib.Path, number: int) -> None:
    """Writes the first of the embedded evaluation images as class folders, to score embedded networks on in no time."""
    source = EmbeddedSource("evaluation")
    for index in range(number):
        place = folder / str(source.labels[index])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.images[index]).save(place / f"{index:04}.png")


def _make_images() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images of one colour a class and noise, so that a few steps of training tell them apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(NUM_IMAGES) % len(NAMES)
    noise = rng.integers(-40, 41, (NUM_IMAGES, SIZE, SIZE, 3))
    return (COLOURS[labels][:, None, None] + noise).astype(np.uint8), labels


def _scale(images: np.ndarray) -> np.ndarray:
    """What --preprocess=torch does."""
    return ((images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)


def _build_classifier() -> keras.Model:
    """Padded as Keras pads, so that only the rewritten file can run sparse."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Conv2D(16, 3, 2, padding="same", activation="relu", name="stem")(image)
    for block in (1, 2):
        x = layers.DepthwiseConv2D(3, block, padding="same", name=f"spatial_{block}")(x)
        x = layers.Conv2D(96, 1, use_bias=False, name=f"wide_{block}")(x)
        x = layers.ReLU(name=f"relu_{block}")(layers.BatchNormalization(momentum=0.9, name=f"norm_{block}")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(len(NAMES), activation="softmax", name="classes")(x), name="my_model")


def _build_series_classifier() -> keras.Model:
    series = keras.Input((STEPS, CHANNELS), name="series")
    x = layers.Conv1D(32, 5, use_bias=False, name="conv")(series)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.9, name="norm")(x))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(series, layers.Dense(len(NAMES), activation="softmax", name="classes")(x), name="my_series")


def _train(model: keras.Model, inputs: np.ndarray, labels: np.ndarray) -> keras.Model:
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(inputs, labels, batch_size=32, epochs=12, verbose=0)
    return model
