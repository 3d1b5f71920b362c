import zipfile

import numpy as np
import pytest

from reflow_tf.data.npz import NpzSource
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import Labels, SourceRequest
from reflow_tf.errors import InputError

X = np.arange(6 * 4 * 5 * 3).reshape(6, 4, 5, 3).astype(np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


def open_npz(path, num_classes=3, size=(4, 5), channels=3, labels=Labels.CLASSES):
    assert NpzSource.accepts(str(path))
    return NpzSource.open(SourceRequest(str(path), Preprocessing(size, channels), num_classes, None, labels=labels))


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return save


def test_images_and_labels(save):
    source = open_npz(save(x=X, y=Y[:, None].astype(np.uint8)))
    np.testing.assert_array_equal(source.labels, Y)
    assert source.labels.dtype == np.int64
    np.testing.assert_array_equal(source.image(2), X[2])
    assert source.name_of(2).startswith("x[2] of ")
    assert source.size_of(0) == (4, 5)
    assert source.digest(0) != source.digest(1)


def test_labels_are_optional(save):
    assert open_npz(save(x=X)).labels is None


def test_images_are_scaled_and_not_resized(save):
    source = open_npz(save(x=X / 2))
    wanted = Preprocessing((4, 5), scaling="tf", crop_fraction=0.5)
    np.testing.assert_allclose(source.adapt(wanted)(source.image(1)), X[1] / 255 - 1, atol=1e-6)


def test_network_of_any_size(save):
    assert len(open_npz(save(x=X), size=None)) == 6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X, "y": Y}, r"must hold the inputs as 'x', and labels as 'y'. Received: \['images', 'y'\]"),
        ({"x": X[..., 0]}, r"images, height, width, channels\). Received: shape \(6, 4, 5\)"),
        ({"x": X[:0]}, "at least one image"),
        ({"x": X[:, :3]}, r"height 4, width 5 and 3 channels .* Received: shape \(6, 3, 5, 3\)"),
        ({"x": X[..., :1]}, r"3 channels .* Received: shape \(6, 4, 5, 1\)"),
        ({"x": X.astype(complex)}, "of integers or floats. Received: complex128"),
        ({"x": X, "y": Y[:5]}, r"each of the 6 images of x. Received: shape \(5,\)"),
        ({"x": X, "y": np.eye(6)}, r"Received: shape \(6, 6\)"),
        ({"x": X, "y": Y / 2}, "integer class indices. Received: float64"),
        ({"x": X, "y": Y + 1}, r"in 0\.\.2.*smallest 1, largest 3"),
        ({"x": X, "y": Y - 1}, "smallest -1"),
        ({"x": X, "y": Y * 0}, "at least two classes"),
        ({"x": np.array([X, None], object)}, "plain arrays"),
        ({"x": X, "y": np.array(["a", None], object)}, "plain arrays"),
    ],
)
def test_bad_arrays(save, arrays, message):
    with pytest.raises(InputError, match=message):
        open_npz(save(**arrays))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(save, value):
    images = np.tile(X, (60, 1, 1, 1)).astype(np.float32)
    images[300, 1, 2, 0] = value
    with pytest.raises(InputError, match=r"NaN or infinity in x\[300\]"):
        open_npz(save(x=images))


def head(text):
    """An array as NumPy stores it, without its values."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def of_shape(extent):
    return head(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({extent}, 4, 5, 3), }}\n")


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize(
    "content", [b"a text", of_shape(10**11), of_shape(10**30), of_shape(-1), head("(" * 4000), head("__import__('os')")]
)
def test_members_that_are_no_arrays(save, name, content):
    path = save(**{"x": X, "y": Y, name: 0})
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, stored in members.items():
            archive.writestr(member, content if member == f"{name}.npy" else stored)
    with pytest.raises(InputError, match=r"plain arrays .*Received: .*data\.npz"):
        open_npz(path)


@pytest.mark.parametrize(("place", "value"), [((6, 8), 1), ((8, 10), 99)], ids=["encrypted", "unknown compression"])
def test_archives_that_python_does_not_unpack(save, place, value):
    path = save(x=X)
    content = bytearray(path.read_bytes())
    for signature, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), place, strict=True):
        content[content.find(signature) + offset] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"plain arrays .*Received: .*data\.npz"):
        open_npz(path)


def test_one_array_called_an_archive(tmp_path):
    path = tmp_path / "data.npz"
    with path.open("wb") as file:
        np.save(file, X)
    with pytest.raises(InputError, match=r"one array without a name.*Received: .*data\.npz"):
        open_npz(path)


@pytest.mark.parametrize("shape", [(6, 0, 5, 3), (6, 4, 0, 3), (6, 0, 0, 3)])
@pytest.mark.parametrize("arrays", [{}, {"y": Y}], ids=["images", "labels too"])
def test_images_without_pixels(save, shape, arrays):
    with pytest.raises(InputError, match=r"at least one pixel. Received: shape \(6, "):
        open_npz(save(x=np.zeros(shape, np.uint8), **arrays), size=None)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_not_an_archive(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"readable archive"):
        open_npz(path)


def test_truncated_archive(save):
    path = save(x=X, y=Y)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"readable archive"):
        open_npz(path)


def test_damaged_member(save):
    path = save(x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF  # inside the pixels: only the checksum can tell
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"readable archive"):
        open_npz(path)


def test_labels_that_nobody_wants_are_not_looked_at(save):
    for labels in (Y, Y / 2, np.full(6, 99), np.zeros((2, 7))):
        assert open_npz(save(x=X, y=labels), labels=Labels.NONE).labels is None


def test_numbers_are_left_alone_where_classes_are_not_sure(save):
    assert open_npz(save(x=X, y=Y / 2), labels=Labels.PERHAPS).labels is None
    np.testing.assert_array_equal(open_npz(save(x=X, y=Y), labels=Labels.PERHAPS).labels, Y)
    with pytest.raises(InputError, match=r"in 0\.\.2"):
        open_npz(save(x=X, y=Y + 5), labels=Labels.PERHAPS)
    with pytest.raises(InputError, match="or --task=fidelity"):
        open_npz(save(x=X, y=np.zeros((6, 2), np.uint8)), labels=Labels.PERHAPS)
