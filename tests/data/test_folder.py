import os
import shutil

import numpy as np
import pytest

from reflow_tf.data.folder import FolderSource
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import Labels, SourceRequest
from reflow_tf.errors import InputError


def open_folder(path, num_classes=3, names=None):
    assert FolderSource.accepts(str(path))
    return FolderSource.open(SourceRequest(str(path), Preprocessing((8, 8)), num_classes, names))


def test_classes_are_the_sorted_sub_folders(class_folder, pixels):
    source = open_folder(class_folder)
    assert len(source) == 12
    assert source.labels.dtype == np.int64
    np.testing.assert_array_equal(source.labels, np.repeat([0, 1, 2], 4))
    assert source.paths == sorted(source.paths)
    np.testing.assert_array_equal(source.image(5), pixels(11))
    assert source.name_of(5).endswith(os.path.join("bee", "1.png"))
    assert source.size_of(5) == (10, 12)
    assert source.held_out() is None


def test_class_names_give_the_order_of_the_outputs(class_folder):
    source = open_folder(class_folder, 5, ("cow", "emu", "bee", "dog", "ant"))
    np.testing.assert_array_equal(source.labels, np.repeat([4, 2, 0], 4))


def test_some_of_the_classes_need_class_names(class_folder):
    with pytest.raises(InputError, match=r"5 classes.*--class_names.*Received: 3 sub-folders"):
        open_folder(class_folder, 5)
    assert len(open_folder(class_folder, None)) == 12


def test_sub_folder_without_a_name(class_folder):
    with pytest.raises(InputError, match=r"Received: class 'bee'"):
        open_folder(class_folder, 2, ("ant", "cow"))


def test_plain_images(tmp_path, save_image):
    names = ["a.JPG", "b.jpeg", "c.PNG", "d.bmp", "e.WebP", "f.gif"]
    for seed, name in enumerate(reversed(names)):
        save_image(tmp_path / name, seed)
    save_image(tmp_path / ".hidden.png", 7)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty_sub_folder").mkdir()
    source = open_folder(tmp_path, 1000)
    assert source.labels is None
    assert [path.name for path in source.paths] == names
    assert all(source.image(index).shape == (10, 12, 3) for index in range(6))


def test_nested_hidden_and_linked(class_folder, save_image, tmp_path):
    save_image(class_folder / "ant" / "deeper" / "x.png", 50)
    save_image(class_folder / "ant" / ".thumbnails" / "x.png", 51)
    save_image(class_folder / ".cache" / "x.png", 52)
    os.symlink(class_folder / "ant", class_folder / "ant" / "loop")
    shutil.move(class_folder / "cow", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", class_folder / "cow")
    source = open_folder(class_folder)
    np.testing.assert_array_equal(np.bincount(source.labels), [5, 4, 4])


def test_digest_is_of_the_content(class_folder):
    shutil.copy(class_folder / "ant" / "0.png", class_folder / "bee" / "copy.png")
    source = open_folder(class_folder)
    digests = [source.digest(index) for index in range(len(source))]
    assert len(set(digests)) == 12
    copy = [path.name for path in source.paths].index("copy.png")
    assert digests[copy] == digests[0]


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match=r"Received: the empty folder"):
        open_folder(tmp_path)


def test_no_images(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match=r"must hold image files \(.jpg"):
        open_folder(tmp_path)


def test_both_kinds(class_folder, save_image):
    save_image(class_folder / "loose.png", 1)
    with pytest.raises(InputError, match=r"sub-folder 'ant' and the image 'loose.png'"):
        open_folder(class_folder)


def test_one_class(tmp_path, save_image):
    for number in range(3):
        save_image(tmp_path / "only" / f"{number}.png", number)
    for num_classes, names in ((1, None), (2, ("other", "only"))):
        with pytest.raises(InputError, match=r"at least two classes"):
            open_folder(tmp_path, num_classes, names)


def test_damaged_file_is_named(class_folder):
    path = class_folder / "bee" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"Received: .*bee/2\.png"):
        open_folder(class_folder).image(6)


def test_dangling_link_is_named(class_folder):
    path = class_folder / "bee" / "2.png"
    path.unlink()
    os.symlink("nowhere.png", path)
    source = open_folder(class_folder)
    for function in (source.image, source.digest, source.size_of):
        with pytest.raises(InputError, match=r"Received: .*bee/2\.png"):
            function(6)


def test_sub_folders_are_no_classes_where_nobody_asks_for_any(class_folder):
    request = SourceRequest(str(class_folder), Preprocessing((8, 8)), 99, None, labels=Labels.NONE)
    source = FolderSource.open(request)
    assert source.labels is None and len(source) == len(open_folder(class_folder))
    np.testing.assert_array_equal(source.targets, np.repeat([0, 1, 2], 4))  # a metric of the user's own may
    named = FolderSource.open(
        SourceRequest(str(class_folder), Preprocessing((8, 8)), 99, ("cow", "emu", "bee", "ant"), labels=Labels.NONE)
    )
    np.testing.assert_array_equal(named.targets, np.repeat([3, 2, 0], 4))


def test_pipes_are_no_images(tmp_path, save_image):
    save_image(tmp_path / "a.png", 1)
    os.mkfifo(tmp_path / "b.png")
    assert len(open_folder(tmp_path)) == 1
