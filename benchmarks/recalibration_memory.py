"""Peak memory of a recalibration must not grow with the number of images: 8,000 against 1,000, each in its own process.

    python benchmarks/recalibration_memory.py

The images are PNG files on disk, read through the same folder source as `--data=FOLDER`. The bar is 5 %.
"""

import multiprocessing
import os
import pathlib
import resource
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from PIL import Image

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 3, "Processes for each number of images; the median counts.")


def write_images(folder: pathlib.Path, num_images: int) -> None:
    """Distinct 64x64 images in two classes."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
    for i in range(num_images):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")


def measure_peak(folder: str, num_images: int, queue) -> None:
    """Recalibrates on that many images; puts the process's peak resident memory in bytes."""
    import keras

    from reflow_tf.data.loading import load_evaluation
    from reflow_tf.data.preprocessing import Preprocessing
    from reflow_tf.repair.batchnorm import recalibrate

    model = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.5, weights=None, classes=2)
    images = load_evaluation(
        folder,
        preprocessing=Preprocessing((64, 64), scaling="tf", crop_fraction=1.0),
        num_classes=2,
        class_names_path=None,
        batch_size=125,
    )
    images.indices = images.indices[:num_images]
    recalibrate(model, images)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main(_):
    context = multiprocessing.get_context("spawn")
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(pathlib.Path(folder), 8000)
        for num_images in (1000, 8000):
            runs = []
            for _ in range(FLAGS.repeats):
                queue = context.Queue()
                process = context.Process(target=measure_peak, args=(folder, num_images, queue))
                process.start()
                runs.append(queue.get())
                process.join()
            peaks[num_images] = np.median(runs)
            print(
                f"{num_images} images: peak {peaks[num_images] / 2**20:.0f} MiB of {[r >> 20 for r in runs]}",
                flush=True,
            )
    print(f"8,000 against 1,000 images: {peaks[8000] / peaks[1000] - 1:+.1%}")


if __name__ == "__main__":
    app.run(main)
