import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def bad_models(classifier, settled, tmp_path_factory):
    """A folder of model files, all but one of them of no use."""
    import keras

    folder = tmp_path_factory.mktemp("bad models")
    layers = keras.layers
    good, _ = settled
    good.save(folder / "good.keras")
    content = (folder / "good.keras").read_bytes()
    (folder / "truncated.keras").write_bytes(content[: len(content) // 2])
    (folder / "text.keras").write_text("hello")
    (folder / "text.h5").write_text("hello")
    good.save_weights(folder / "only.weights.h5")
    for name, value in (("nan", np.nan), ("infinite", -np.inf), ("overflowing", 3e38)):
        model = classifier()
        kernel = model.get_layer("conv_1").kernel.numpy()
        kernel[0, 0, 0] = value
        model.get_layer("conv_1").kernel.assign(kernel)
        model.save(folder / f"{name}.keras")
    image = keras.Input((8, 8, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(image))
    keras.Model(image, layers.Dense(2)(layers.Lambda(lambda x: x * 2)(pooled))).save(folder / "lambda.keras")
    keras.Model(image, layers.Dense(1)(pooled)).save(folder / "one_output.keras")
    other = keras.Input((8, 8, 3))
    summed = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(layers.Add()([image, other])))
    keras.Model([image, other], layers.Dense(2)(summed)).save(folder / "two_inputs.keras")
    classifier(num_outputs=2).save(folder / "two_heads.keras")
    normed = layers.BatchNormalization()(layers.Dense(8)(layers.Flatten()(image)))
    keras.Model(image, layers.Dense(4)(normed)).save(folder / "dense_norm.keras")
    keras.Model(image, layers.Conv2D(4, 1)(layers.Conv2D(4, 1)(image))).save(folder / "segmentation.keras")
    classifier(widths=(6, 6)).save(folder / "six_channels.keras")
    steps = keras.Input(batch_shape=(1, 5, 3))
    keras.Model(steps, layers.Dense(4)(layers.LSTM(4, stateful=True)(steps))).save(folder / "stateful.keras")
    waves = keras.Input((8,), dtype="complex64")
    keras.Model(waves, layers.Dense(4)(keras.ops.real(waves))).save(folder / "complex.keras")
    keras.Model(image, keras.ops.mean(pooled)).save(folder / "of_batch.keras")
    quantized = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    quantized.quantize("int8")
    quantized.save(folder / "quantized.keras")
    return folder


@pytest.fixture(scope="session")
def bad_data(images, tmp_path_factory):
    """Folders and archives of images; `photos` is the good one."""
    folder = tmp_path_factory.mktemp("bad data")
    x, y = images(24, seed=5), np.arange(24) % 4
    for index, image in enumerate(images(24, seed=6, size=9)):
        path = folder / "photos" / "abcd"[index % 4] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    shutil.copytree(folder / "photos" / "a", folder / "one_class" / "a")
    shutil.copytree(folder / "photos", folder / "truncated")
    damaged = folder / "truncated" / "b" / "5.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("no image")
    (folder / "names.txt").write_text("a\nb\nc\n")
    np.savez(folder / "one_class.npz", x=x, y=0 * y)
    np.savez(folder / "labels.npz", x=x, y=y + 1)
    np.savez(folder / "negative.npz", x=x, y=y - 1)
    np.savez(folder / "size.npz", x=x[:, :6], y=y)
    np.savez(folder / "channels.npz", x=x[..., :1], y=y)
    np.savez(folder / "nan.npz", x=np.where(x == x.max(), np.nan, x), y=y)
    np.savez(folder / "no_images.npz", x=x[:0], y=y[:0])
    (folder / "text.npz").write_text("hello")
    return folder
