"""The fake mirrors what was seen of tensorflow-datasets 4.9.10: bytes and np.int64 from `as_numpy`, ValueErrors."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from reflow_tf.data.loading import load_evaluation, load_sets
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.errors import InputError

NAMES = ["ant", "bee", "cow"]


class FakeImage:
    pass


class DatasetNotFoundError(ValueError):
    pass


class FakeBuilder:
    def __init__(self, splits, features, supervised_keys):
        self.prepared = False
        self.splits = splits
        self.info = SimpleNamespace(supervised_keys=supervised_keys, features=features, splits=splits)

    def download_and_prepare(self):
        self.prepared = True

    def as_dataset(self, *, split, as_supervised, shuffle_files, decoders):
        assert self.prepared and as_supervised and not shuffle_files
        assert isinstance(decoders["image"], SkipDecoding)
        if split not in self.splits:
            raise ValueError(f"Unknown split {split!r}. Should be one of {list(self.splits)}.")
        return self.splits[split]


class SkipDecoding:
    pass


def png(seed, height=10):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_split(start, count, first_label=0):
    return [(png(start + number), np.int64((first_label + number) % 3)) for number in range(count)]


@pytest.fixture
def tfds(monkeypatch):
    """A module with one dataset, 'tiny' (train 12, test 6); tests change its `builders`."""
    label = SimpleNamespace(names=NAMES)
    splits = {"train": make_split(0, 12), "test": make_split(50, 6, first_label=1)}
    builders = {"tiny": FakeBuilder(splits, {"image": FakeImage(), "label": label}, ("image", "label"))}

    def builder(name):
        if name not in builders:
            raise DatasetNotFoundError(f"Dataset {name} not found.\nAvailable datasets:\n\t- mnist")
        return builders[name]

    module = SimpleNamespace(
        builders=builders,
        builder=builder,
        as_numpy=iter,
        features=SimpleNamespace(Image=FakeImage),
        decode=SimpleNamespace(SkipDecoding=SkipDecoding),
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


def evaluate(text, num_classes=3, class_names_path=None, size=(8, 8)):
    return load_evaluation(
        text,
        preprocessing=Preprocessing(size),
        num_classes=num_classes,
        class_names_path=class_names_path,
        batch_size=4,
    )


def test_default_split_is_held_out(tfds):
    images = evaluate("tfds:tiny")
    np.testing.assert_array_equal(images.labels, [1, 2, 0, 1, 2, 0])
    assert [batch.shape for batch in images] == [(3, 8, 8, 3)] * 2
    expected = np.asarray(Image.open(io.BytesIO(png(52))))
    np.testing.assert_array_equal(images.source.image(2), expected)
    assert images.source.size_of(2) == (10, 12)


def test_named_split_and_random_split(tfds):
    assert len(evaluate("tfds:tiny:train")) == 12
    calibration, evaluation = load_sets(
        "tfds:tiny:train",
        None,
        preprocessing=Preprocessing((8, 8)),
        num_classes=3,
        class_names_path=None,
        calibration_samples=5,
        batch_size=4,
        seed=0,
    )
    assert (len(calibration), len(evaluation)) == (5, 7)
    assert not set(calibration.indices) & set(evaluation.indices)


def test_config_version_and_slice_are_passed_on(tfds):
    tfds.builders["tiny/big:1.0.2"] = tfds.builders["tiny"]
    tfds.builders["tiny"].splits["train[:10%]"] = make_split(0, 3)
    assert len(evaluate("tfds:tiny/big:1.0.2:train[:10%]")) == 3
    assert len(evaluate("tfds:tiny/big:1.0.2")) == 6


def test_class_names_map_by_name(tfds, class_names):
    np.testing.assert_array_equal(evaluate("tfds:tiny", 5, str(class_names)).labels, [2, 0, 4, 2, 0, 4])


def test_class_that_has_no_name(tfds, tmp_path):
    path = tmp_path / "two.txt"
    path.write_text("ant\nbee\n")
    with pytest.raises(InputError, match=r"Received: class 'cow'"):
        evaluate("tfds:tiny", 2, str(path))


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install '.\[tfds\]'.*Received: tfds:mnist"):
        evaluate("tfds:mnist")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tfds:nothing", r"\(Dataset nothing not found\). Received: tfds:nothing$"),
        ("tfds:tiny:dev", "Unknown split 'dev'"),
        ("tfds:", "must look like"),
        ("tfds:a b", "must look like"),
    ],
)
def test_unknown(tfds, text, message):
    with pytest.raises(InputError, match=message):
        evaluate(text)


def test_labels_outside_the_model(tfds):
    with pytest.raises(InputError, match=r"in 0\.\.1.*largest 2"):
        evaluate("tfds:tiny", 2)


def test_unlabelled_test_split(tfds, class_names):
    """ImageNet's test split has the label -1 everywhere: it must not count from the end of the names."""
    tfds.builders["tiny"].splits["test"] = [(png(0), np.int64(-1)), (png(1), np.int64(-1))]
    with pytest.raises(InputError, match=r"smallest -1"):
        evaluate("tfds:tiny", 5, str(class_names))


def test_empty_split(tfds):
    tfds.builders["tiny"].splits["test"] = []
    with pytest.raises(InputError, match=r"which is empty"):
        evaluate("tfds:tiny")


def test_dataset_of_another_kind(tfds):
    text = SimpleNamespace()
    tfds.builders["words"] = FakeBuilder({"test": []}, {"text": text, "label": text}, ("text", "label"))
    tfds.builders["pairs"] = FakeBuilder({"test": []}, {}, None)
    for name in ("words", "pairs"):
        with pytest.raises(InputError, match=r"\(image, label\) pairs"):
            evaluate(f"tfds:{name}")


def test_no_usual_split(tfds):
    splits = tfds.builders["tiny"].splits
    splits["extra"] = splits.pop("test")
    del splits["train"]
    with pytest.raises(InputError, match=r"needs tfds:NAME:SPLIT.*\['extra'\]"):
        evaluate("tfds:tiny")
    assert len(evaluate("tfds:tiny:extra")) == 6


def test_labels_that_are_no_class(tfds):
    tfds.builders["tiny"].splits["test"] = [(png(0), np.float32(0.5))]
    with pytest.raises(InputError, match=r"one integer label"):
        evaluate("tfds:tiny")


def test_sizes_that_differ(tfds):
    tfds.builders["tiny"].splits["test"].append((png(9, height=11), np.int64(0)))
    with pytest.raises(InputError, match=r"--image_size.*Received: image 6 of tfds:tiny, which is 11x12"):
        evaluate("tfds:tiny", size=None)
