import numpy as np
import pytest

from reflow_tf.data.classes import are_one_each, check_labels, index_of_class, read_class_names
from reflow_tf.errors import InputError


def test_names_in_the_order_of_the_lines(class_names):
    assert read_class_names(str(class_names), 5) == ("cow", "emu", "bee", "dog", "ant")
    assert read_class_names(str(class_names), None)[4] == "ant"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", "'a' is on lines 1 and 3"),
        (b"a\nb\nc\nd\n", "the model's 3 classes. Received: 4 lines"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_class_names(str(path), 3)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"Received: .*none\.txt"):
        read_class_names(str(tmp_path / "none.txt"), 3)


def test_unknown_class():
    assert index_of_class("b", ("a", "b"), "here") == 1
    with pytest.raises(InputError, match=r"here must be a line of --class_names. Received: class 'c'"):
        index_of_class("c", ("a", "b"), "here")


def test_labels():
    checked = check_labels(np.array([3, 0], np.uint8), 4, "y")
    assert checked.dtype == np.int64
    check_labels(np.array([3, 900]), None, "y")
    with pytest.raises(InputError, match=r"in 0\.\.3.* smallest 1, largest 4"):
        check_labels(np.array([1, 4]), 4, "y")
    maps = np.array([[[0, 1], [255, 2]]])
    np.testing.assert_array_equal(check_labels(maps, 4, "y"), [[[0, 1], [-1, 2]]])
    np.testing.assert_array_equal(check_labels(maps, 256, "y"), maps)
    with pytest.raises(InputError, match=r"smallest -1, largest 2"):
        check_labels(np.where(maps == 255, -1, maps), 4, "y")
    with pytest.raises(InputError, match=r"smallest 0, largest 255"):
        check_labels(maps[0], 4, "y")  # of rows of labels 255 is none
    for num_classes in (4, None):
        with pytest.raises(InputError, match=r"smallest -1, largest 2"):
            check_labels(np.array([-1, 2]), num_classes, "y")
    with pytest.raises(InputError, match=r"at least two classes. Received: only class 2"):
        check_labels(np.array([2, 2]), 4, "y")


@pytest.mark.parametrize("label_shape", [(0,), (0, 0), (3, 0), (1, 0, 1)])
@pytest.mark.parametrize("positions", [(), (None,), (None, None), (3, None)])
def test_no_label_at_all_is_not_one_for_each_prediction(label_shape, positions):
    assert not are_one_each(label_shape, positions)
