import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from reflow_tf.data.loading import load_evaluation, load_sets
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import pixel_digest
from reflow_tf.errors import InputError

PREPROCESSING = Preprocessing((8, 8), crop_fraction=1.0)


def load(data, eval_data=None, **options):
    defaults = {
        "preprocessing": PREPROCESSING,
        "num_classes": 3,
        "class_names_path": None,
        "calibration_samples": 4,
        "batch_size": 4,
        "seed": 0,
    }
    return load_sets(str(data), None if eval_data is None else str(eval_data), **{**defaults, **options})


def files(images):
    return {images.source.name_of(int(index)) for index in images.indices}


def test_split_of_one_folder(class_folder):
    calibration, evaluation = load(class_folder)
    assert (len(calibration), len(evaluation), calibration.num_dropped) == (4, 8, 0)
    assert len(files(calibration) | files(evaluation)) == 12
    for image, label in zip(np.concatenate(list(evaluation)), evaluation.labels, strict=True):
        matches = [
            index
            for index in range(12)
            if np.array_equal(PREPROCESSING(evaluation.source.image(index)), image)
            and evaluation.source.labels[index] == label
        ]
        assert len(matches) == 1


def test_seed(class_folder):
    assert files(load(class_folder, seed=1)[0]) == files(load(class_folder, seed=1)[0])
    assert len({frozenset(files(load(class_folder, seed=seed)[0])) for seed in range(6)}) > 1


def test_calibration_takes_at_most_half(class_folder):
    calibration, evaluation = load(class_folder, calibration_samples=1000)
    assert (len(calibration), len(evaluation)) == (6, 6)


def test_copies_never_land_on_both_sides(class_folder):
    for number in range(4):
        shutil.copy(class_folder / "ant" / f"{number}.png", class_folder / "bee" / f"copy{number}.png")
    dropped = 0
    for seed in range(8):
        calibration, evaluation = load(class_folder, calibration_samples=8, seed=seed)
        sides = [{images.source.digest(int(i)) for i in images.indices} for images in (calibration, evaluation)]
        assert not sides[0] & sides[1]
        assert len(calibration) + len(evaluation) + calibration.num_dropped == 16
        dropped += calibration.num_dropped
    assert dropped > 0


def test_class_names(class_folder, class_names):
    _, evaluation = load(class_folder, num_classes=5, class_names_path=str(class_names))
    wanted = {"cow": 0, "bee": 2, "ant": 4}
    paths = [evaluation.source.paths[index] for index in evaluation.indices]
    np.testing.assert_array_equal(evaluation.labels, [wanted[path.parent.name] for path in paths])


def test_separate_evaluation_data(class_folder, tmp_path, save_image):
    for number in range(6):
        save_image(tmp_path / "plain" / f"{number}.png", 100 + number)
    calibration, evaluation = load(tmp_path / "plain", class_folder)
    assert (len(calibration), len(evaluation)) == (4, 12)
    assert calibration.source.labels is None
    np.testing.assert_array_equal(evaluation.labels, np.repeat([0, 1, 2], 4))
    assert len(load(tmp_path / "plain", class_folder, calibration_samples=99)[0]) == 6


def test_same_data_twice(class_folder):
    with pytest.raises(InputError, match=r"must be disjoint.*first shared image .*which equals"):
        load(class_folder, class_folder)


def test_one_shared_file(class_folder, tmp_path, save_image):
    save_image(tmp_path / "plain" / "new.png", 100)
    shutil.copy(class_folder / "bee" / "1.png", tmp_path / "plain" / "renamed.png")
    with pytest.raises(InputError, match=r"first shared image .*renamed\.png, which equals .*bee/1\.png"):
        load(tmp_path / "plain", class_folder)


def test_sources_of_different_kinds_compare_pixels(class_folder, tmp_path, pixels):
    small = tmp_path / "small"
    for number in range(4):
        (small / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 8, 8)).save(small / "ab"[number % 2] / f"{number}.png")
    path = tmp_path / "data.npz"
    np.savez(path, x=np.stack([pixels(seed, 8, 8) for seed in (7, 8, 2)]).astype(np.float32))
    with pytest.raises(InputError, match=r"first shared image x\[2\] of .*data\.npz, which equals .*a/2\.png"):
        load(path, small, num_classes=2)
    np.savez(path, x=np.stack([pixels(seed, 8, 8) for seed in (7, 8, 9)]))
    assert len(load(path, small, num_classes=2)[1]) == 4


def test_pixel_digest_is_of_values():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert pixel_digest(grey) == pixel_digest(np.repeat(grey, 3, -1)) == pixel_digest(grey.astype(np.float64))
    assert pixel_digest(grey) != pixel_digest(grey.reshape(4, 3, 1))
    assert pixel_digest(grey) != pixel_digest(grey + 1)


def test_embedded_has_official_splits():
    calibration, evaluation = load("fashion_mnist", num_classes=10, calibration_samples=50)
    assert (len(calibration), len(evaluation)) == (50, 5000)
    assert (calibration.source.part, evaluation.source.part) == ("calibration", "evaluation")
    assert next(iter(calibration)).shape == (3, 8, 8, 3)  # 50 images are 13 batches of 3 or 4
    again, _ = load("fashion_mnist", "fashion_mnist", num_classes=10, calibration_samples=50)
    np.testing.assert_array_equal(calibration.indices, again.indices)


def test_load_evaluation(class_folder):
    options = {"preprocessing": PREPROCESSING, "class_names_path": None, "batch_size": 5}
    evaluation = load_evaluation(str(class_folder), num_classes=3, **options)
    np.testing.assert_array_equal(evaluation.indices, np.arange(12))
    assert [len(batch) for batch in evaluation] == [4, 4, 4]
    embedded = load_evaluation("fashion_mnist", num_classes=10, **options)
    assert embedded.source.part == "evaluation"
    assert len(embedded.labels) == 5000


def test_npz_keeps_its_size_and_is_scaled(tmp_path, pixels):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.stack([pixels(seed, 8, 8) for seed in range(6)]), y=np.arange(6) % 3)
    calibration, evaluation = load(path, preprocessing=Preprocessing((8, 8), scaling="tf", crop_fraction=0.5))
    found = np.concatenate([*calibration, *evaluation])
    order = np.concatenate([calibration.indices, evaluation.indices])
    expected = np.stack([pixels(int(seed), 8, 8) for seed in order]) / 127.5 - 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_samples": 0}, "calibration_samples must be at least 1. Received: 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_numbers_out_of_range(class_folder, options, message):
    with pytest.raises(InputError, match=message):
        load(class_folder, **options)


def test_paths_that_are_no_data(tmp_path, class_folder):
    with pytest.raises(InputError, match=r"existing path. Received: .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"existing path. Received: .*nowhere"):
        load(class_folder, tmp_path / "nowhere")
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"folder of images or an .npz file. Received: .*table\.csv"):
        load(tmp_path / "table.csv")


def test_too_few_images(tmp_path, save_image):
    save_image(tmp_path / "plain" / "0.png", 0)
    with pytest.raises(InputError, match=r"at least two images. Received: only .*0\.png"):
        load(tmp_path / "plain")
    shutil.copy(tmp_path / "plain" / "0.png", tmp_path / "plain" / "1.png")
    with pytest.raises(InputError, match=r"leave images to calibrate on"):
        load(tmp_path / "plain")


def test_truncated_image_is_named_while_reading(class_folder):
    path = class_folder / "cow" / "3.png"
    path.write_bytes(path.read_bytes()[:70])
    calibration, evaluation = load(class_folder)
    with pytest.raises(InputError, match=r"Received: .*cow/3\.png"):
        list(calibration) + list(evaluation)


def test_network_of_any_size_needs_images_of_one_size(class_folder, save_image):
    anything = Preprocessing(None)
    calibration, _ = load(class_folder, preprocessing=anything)
    assert next(iter(calibration)).shape == (4, 10, 12, 3)
    save_image(class_folder / "bee" / "2.png", 1, 10, 13)
    with pytest.raises(InputError, match=r"--image_size.*Received: .*bee/2\.png, which is 10x13"):
        load(class_folder, preprocessing=anything)


def test_no_tensorflow_is_imported():
    """`data` stands on floor 1: it must not cost the seconds that TensorFlow takes to import."""
    code = (
        "import sys, reflow_tf.data.loading; sys.exit(bool({'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
