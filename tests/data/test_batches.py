import resource
import threading
import time

import numpy as np
import pytest

from reflow_tf.data.batches import ArrayBatches, CalibrationSet, EvaluationSet, as_batches
from reflow_tf.data.portions import Counted, count_inputs, cut, held, take_first
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import ImageSource
from reflow_tf.errors import InputError
from reflow_tf.repair.holdout import Part


class CountingSource(ImageSource):
    """Image i is 2x2 and full of i; remembers what was decoded."""

    def __init__(self, num_images, labels=None):
        self.num_images = num_images
        self.labels = labels
        self.decoded = []
        self.lock = threading.Lock()

    def __len__(self):
        return self.num_images

    def name_of(self, index):
        return f"image {index}"

    def size_of(self, index):
        return (2, 2)

    def image(self, index):
        with self.lock:
            self.decoded.append(index)
        return np.full((2, 2, 3), index, np.uint8)


def indices_in(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in batch]


def test_stream_is_re_iterable_in_order_and_near_equal():
    order = np.array([5, 3, 9, 0, 1, 7, 2, 4, 8, 6])
    images = CalibrationSet(CountingSource(10), order, Preprocessing(None), 4)
    assert len(images) == 10
    assert images.num_dropped == 0
    for _ in range(2):
        batches = list(images)
        assert [batch.shape for batch in batches] == [(3, 2, 2, 3), (3, 2, 2, 3), (4, 2, 2, 3)]
        assert {batch.dtype for batch in batches} == {np.dtype(np.float32)}
        assert indices_in(batches) == list(order)


def test_labels_follow_the_order_of_iteration():
    order = np.array([2, 0, 3])
    images = EvaluationSet(CountingSource(4, np.array([10, 11, 12, 13])), order, Preprocessing(None), 2)
    np.testing.assert_array_equal(images.labels, [12, 10, 13])
    assert EvaluationSet(CountingSource(4), order, Preprocessing(None), 2).labels is None


def test_only_two_batches_are_decoded_at_a_time():
    source = CountingSource(100)
    stream = iter(CalibrationSet(source, np.arange(100), Preprocessing(None), 10))
    for number in range(1, 8):
        next(stream)
        assert len(source.decoded) <= 10 * (number + 1)
    stream.close()
    decoded = len(source.decoded)
    assert decoded <= 80
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]
    assert len(source.decoded) == decoded


def test_no_third_batch_fills_while_the_next_one_is_unfinished():
    """The caller still holds a batch while the next is waited for: a third one begun then would be memory."""
    finished, early = [], []

    class SlowAtTheEnd(CountingSource):
        def image(self, index):
            if len([other for other in finished if other < index // 4 * 4]) < index // 4 * 4:
                early.append(index)
            if index % 4 == 3:
                time.sleep(0.03)
            image = super().image(index)
            finished.append(index)
            return image

    assert indices_in(CalibrationSet(SlowAtTheEnd(24), np.arange(24), Preprocessing(None), 4)) == list(range(24))
    assert early == []


def test_image_that_does_not_fit_is_named():
    images = CalibrationSet(CountingSource(4), np.arange(4), Preprocessing(None, channels=5), 2)
    with pytest.raises(InputError, match=r"network's 5 channels. Received: 3 channels, image 0"):
        list(images)


def test_array():
    array = np.arange(20, dtype=np.float64).reshape(10, 2)
    batches = as_batches(array, batch_size=4)
    assert len(batches) == 10
    for _ in range(2):
        found = list(batches)
        assert [len(batch) for batch in found] == [3, 3, 4]
        assert {batch.dtype for batch in found} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(np.concatenate(found), array)
    assert as_batches(batches) is batches


def test_set_is_returned_as_it_is():
    images = CalibrationSet(CountingSource(4), np.arange(4), Preprocessing(None), 2)
    assert as_batches(images) is images


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, bool])
def test_any_numeric_type(dtype):
    (batch,) = as_batches(np.ones((3, 2), dtype))
    assert batch.dtype == np.float32


def test_generator_is_kept():
    batches = as_batches((np.full((2, 3), number), np.zeros(2)) for number in range(3))
    for _ in range(2):
        assert [int(batch[0, 0]) for batch in batches] == [0, 1, 2]


def test_list_of_batches_keeps_its_sizes():
    assert [len(batch) for batch in as_batches([np.ones((5, 2)), np.ones((1, 2))], batch_size=3)] == [5, 1]


def test_tf_data():
    import tensorflow as tf

    images = np.random.default_rng(0).random((7, 4, 4, 3)).astype(np.float32)
    for dataset in (
        tf.data.Dataset.from_tensor_slices(images),
        tf.data.Dataset.from_tensor_slices((images, np.arange(7))),
    ):
        batches = as_batches(dataset.batch(3))
        for _ in range(2):
            found = list(batches)
            assert [len(batch) for batch in found] == [3, 3, 1]
            np.testing.assert_array_equal(np.concatenate(found), images)
    assert isinstance(as_batches(tf.constant(images)), ArrayBatches)
    (half,) = as_batches(tf.cast(images, tf.bfloat16))
    np.testing.assert_allclose(half, images, atol=4e-3)
    with pytest.raises(InputError, match=r"take\(\)"):
        as_batches(dataset.batch(3).repeat())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 3)), "at least one sample"),
        (np.zeros(3), "batch axis and at least one more"),
        (np.array([["a", "b"]]), "numeric"),
        (np.array([[None]]), "numeric"),
        (np.full((2, 2), np.nan), "NaN or infinity in batch 0"),
        ([np.zeros((2, 2)), np.full((2, 2), np.inf)], "NaN or infinity in batch 1"),
        ([], "at least one batch. Received: list, none"),
        ((number for number in ()), "at least one batch"),
        ([{"image": np.zeros((2, 2))}], r"not a dict. Received: keys \['image'\] in batch 0"),
        ([np.zeros(4)], "batch 0 must have a batch axis"),
        ({"x": np.zeros((2, 2))}, "Received: dict"),
        ("images", "Received: str"),
        (7, "Received: int"),
        (None, "Received: NoneType"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(InputError, match=message):
        list(as_batches(data))


def test_bad_batch_size():
    with pytest.raises(InputError, match=r"batch_size must be at least 1. Received: 0"):
        as_batches(np.zeros((2, 2)), batch_size=0)


def test_the_first_inputs():
    def batches():
        yield np.zeros((3, 2))
        yield np.ones((3, 2))
        raise AssertionError("more was read than was needed")

    np.testing.assert_array_equal(take_first(batches(), 5), [[0, 0]] * 3 + [[1, 1]] * 2)
    assert len(take_first([np.zeros((3, 2))], 5)) == 3


@pytest.mark.parametrize("sizes", [[], [7], [1, 1, 5], [3, 4], [2, 9, 1, 1]])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_are_cut_anew_in_their_order(sizes, size):
    inputs = np.arange(2 * sum(sizes)).reshape(-1, 2)
    batches = np.split(inputs, np.cumsum(sizes)[:-1]) if sizes else []
    found = list(cut(batches, size))
    assert all(len(part) == size for part in found[:-1]) and all(0 < len(part) <= size for part in found)
    np.testing.assert_array_equal(np.concatenate([inputs[:0], *found]), inputs)


def test_inputs_of_several_shapes_are_refused():
    with pytest.raises(InputError, match=r"must all have one shape .* Received: \(2, 3\) and \(2, 4\)"):
        list(cut([np.zeros((1, 2, 3)), np.zeros((1, 2, 4))], 5))


@pytest.mark.parametrize("size", [1, 2])
def test_they_are_refused_also_where_a_cut_lies_between_them(size):
    with pytest.raises(InputError, match=r"must all have one shape .* Received: \(2, 3\) and \(2, 4\)"):
        list(cut([np.zeros((2, 2, 3)), np.zeros((2, 2, 4))], size))


def test_inputs_are_counted_without_reading_those_that_know():
    source = CountingSource(20)
    images = CalibrationSet(source, np.arange(20), Preprocessing(None), 4)
    held_out, others = Part(images, held_out=True), Part(images, held_out=False)
    assert [count_inputs(batches) for batches in (images, held_out, others)] == [20, 2, 18] and not source.decoded
    assert [sum(map(len, part)) for part in (held_out, others)] == [2, 18]
    assert count_inputs([np.zeros((3, 2)), np.zeros((1, 2))]) == 4


@pytest.mark.parametrize("most_bytes", [0, 10**6])
def test_all_inputs_are_held_in_memory_or_on_disk_and_nothing_is_left(most_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    inputs = np.random.default_rng(0).random((10, 3, 2), np.float32)
    with held([inputs[:3], inputs[3:]], most_bytes) as found:
        np.testing.assert_array_equal(found, inputs)
        assert isinstance(found, np.memmap) == any(tmp_path.iterdir()) == (most_bytes == 0)
    assert not any(tmp_path.iterdir())


class Shrinking:
    """Eight inputs fewer each time."""

    def __init__(self):
        self.left = 32

    def __iter__(self):
        self.left -= 8
        return iter([np.ones((self.left, 4), np.float32)])


@pytest.mark.parametrize("most_bytes", [0, 10**6])
def test_inputs_that_become_fewer_are_refused(most_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(InputError, match=r"the same each time .* Received: 24 inputs, then 16"),
        held(Shrinking(), most_bytes),
    ):
        pass
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_error_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        told = r"must fit on disk .*: 16,000 bytes in TMPDIR; .* Received: File too large at "
        with pytest.raises(InputError, match=told), held([np.ones((4, 1000), np.float32)], 0):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(tmp_path.iterdir())


def test_a_folder_for_files_that_is_not_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/nothing")
    told = r"TMPDIR; .* Received: No such file or directory at /proc/nothing"
    with pytest.raises(InputError, match=told), held([np.ones((4, 10), np.float32)], 0):
        pass


def test_an_error_of_the_source_is_not_the_disks(tmp_path, monkeypatch):
    def batches():
        yield np.ones((1, 10), np.float32)
        raise OSError("the camera is off")

    class Failing(Counted):
        def __len__(self):
            return 2

        def __iter__(self):
            return batches()

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match="the camera is off"), held(Failing(), 0):
        pass
