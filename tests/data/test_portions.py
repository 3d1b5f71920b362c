"""Sets of images in another process: where they are is sent, and not what they hold."""

import pickle

import numpy as np
import pytest
from PIL import Image

from reflow_tf.data.loading import load_evaluation, load_sets
from reflow_tf.data.portions import Portion, Selectable, cut, read_shards
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import Labels, _open_place
from reflow_tf.errors import InputError
from reflow_tf.repair.holdout import Part, part_of


@pytest.fixture
def opened(images, tmp_path):
    np.savez(tmp_path / "data.npz", x=images(100, seed=0), y=np.arange(100) % 4)

    def opened(text=str(tmp_path / "data.npz"), size=None):
        given = {"num_classes": 10 if size else 4, "class_names_path": None, "calibration_samples": 50, "seed": 3}
        return load_sets(text, None, preprocessing=Preprocessing(size, 3), batch_size=7, **given)

    return opened


def send(images):
    _open_place.cache_clear()
    return pickle.loads(pickle.dumps(images))


@pytest.mark.parametrize("given", [{}, {"text": "fashion_mnist", "size": (8, 8)}])
def test_a_set_is_the_same_wherever_it_is_read(opened, given):
    for images in opened(**given):
        sent = send(images)
        assert type(sent) is type(images) and sent.parts == images.parts
        for one, other in zip(images.select(np.arange(9)), sent.select(np.arange(9)), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(images.labels if hasattr(images, "labels") else 0, getattr(sent, "labels", 0))


def test_what_is_sent_does_not_grow_with_images(opened):
    calibration, _ = opened()
    assert len(pickle.dumps(calibration)) < 3000 < calibration.source.image(0).nbytes * len(calibration)


@pytest.mark.parametrize("text", ["data.npz", "photos", "photos/", "./photos/../photos", "~/photos", "linked"])
def test_a_relative_path_is_sent_as_an_absolute_one(opened, images, tmp_path, monkeypatch, text):
    for place, one in enumerate(images(100, seed=1)):
        path = tmp_path / "photos" / "abcd"[place % 4] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(path)
    (tmp_path / "linked").symlink_to("photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    calibration, _ = opened(text, (8, 8) if text == "data.npz" else None)
    expected, content = np.concatenate(list(calibration)), pickle.dumps(calibration)
    monkeypatch.chdir("/")
    _open_place.cache_clear()
    np.testing.assert_array_equal(np.concatenate(list(pickle.loads(content))), expected)


def test_a_path_that_is_not_there_or_holds_others_is_refused(opened, images, tmp_path):
    calibration, _ = opened()
    np.savez(tmp_path / "data.npz", x=images(100, seed=1))
    with pytest.raises(InputError, match=r"must hold the same images .*, 100 of them. Received: 100 others at "):
        send(calibration)
    np.savez(tmp_path / "data.npz", x=images(99, seed=0))
    with pytest.raises(InputError, match="Received: 99 at "):
        send(calibration)
    (tmp_path / "data.npz").unlink()
    with pytest.raises(InputError, match=r"Received: .*data\.npz"):
        send(calibration)


@pytest.mark.parametrize("view", [lambda images: images, lambda images: part_of(images, held_out=False)])
def test_batches_and_shards_read_by_number_are_those_of_an_iteration(opened, view):
    images = view(opened()[0])
    assert isinstance(images, Selectable)
    batches = list(images)
    assert [len(part) for part in images.parts] == [len(batch) for batch in batches]
    assert sum(map(len, batches)) == len(images)
    for number, batch in enumerate(batches):
        np.testing.assert_array_equal(Portion(number).read(images), batch)
    shards = list(cut(images, 16))
    for numbers in ([0, 2], [1], [len(shards) - 1], range(len(shards)), []):
        for way in (images, batches):
            found = list(read_shards(way, 16, numbers))
            assert len(found) == len(numbers)
            for number, shard in zip(numbers, found, strict=True):
                np.testing.assert_array_equal(shard, shards[number])


def test_a_part_of_batches_that_only_come_one_after_another_is_such_a_one_too():
    assert type(part_of([np.zeros((4, 2))], held_out=True)) is Part


def test_shards_that_are_missing_are_told_of():
    with pytest.raises(InputError, match=r"the same each time that they are read\. Received: fewer"):
        list(read_shards([np.zeros((20, 2))], 16, [0, 2]))


@pytest.mark.parametrize("kind", ["an archive", "a folder"])
def test_who_outlives_what_was_opened_reads_what_is_there_now(images, tmp_path, kind):
    """Same place, same number, same first image: a scheduler's workers stay, and files do not."""

    def write(seed):
        pixels = images(40, seed=seed)
        pixels[0] = 7
        if kind == "an archive":
            np.savez(tmp_path / "data.npz", x=pixels)
            return str(tmp_path / "data.npz")
        (tmp_path / "photos").mkdir(exist_ok=True)
        for path in (tmp_path / "photos").iterdir():
            path.unlink()
        for place, one in enumerate(pixels):
            Image.fromarray(one).save(tmp_path / "photos" / f"{place:02d}_{seed if place else 0}.png")
        return str(tmp_path / "photos")

    def open_now(seed):
        preprocessing = Preprocessing((8, 8), 3)
        given = {"num_classes": None, "class_names_path": None, "batch_size": 7, "labels": Labels.NONE}
        return load_evaluation(write(seed), preprocessing=preprocessing, **given)

    _open_place.cache_clear()
    for seed in (0, 1):
        opened = open_now(seed)
        sent = pickle.loads(pickle.dumps(opened))
        np.testing.assert_array_equal(np.concatenate(list(sent)), np.concatenate(list(opened)))
    with pytest.raises(InputError, match="must hold the same images"):
        content = pickle.dumps(open_now(2))
        write(3)
        pickle.loads(content)
