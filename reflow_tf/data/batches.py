"""Images as float32 batches that can be gone through again and again.

`CalibrationSet` and `EvaluationSet` decode from a source in threads (Pillow releases the interpreter lock). However
many images there are, memory holds the caller's batch, the one decoded ahead, and for a moment the start of a third.
`as_batches` gives the same shape to what a caller of the Python API already has.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from reflow_tf.crew import count_threads
from reflow_tf.data.as_stored import Preparation
from reflow_tf.data.portions import Counted
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.data.sources import ImageSource, Targets
from reflow_tf.data.split import even_batches
from reflow_tf.errors import InputError

Join = Callable[[Any], np.ndarray]

_NUM_THREADS = min(8, count_threads())
# 32 images of 224x224. Beyond it a network's activations leave the processor's caches: MobileNetV2 took 1.4 times as
# long for each image in batches of 128 (benchmarks/scoring_cost.py).
_LARGEST_BATCH_BYTES = 20_000_000


class ImageStream(Counted):
    """Some images, or other samples, of a source, in a fixed order, as batches.

    `iter` yields float32 (n, *sample_shape), with n near equal from batch to batch and at most `batch_size`;
    `len` is the number of images.

    Attributes:
        source: where the images come from.
        indices: int64, which of its images, in the order of iteration.
        preprocessing: applied to each image.
        batch_size: the largest batch; large images come in smaller ones.
    """

    def __init__(self, source: ImageSource, indices: np.ndarray, preprocessing: Preparation, batch_size: int):
        self.source = source
        self.indices = indices
        self.preprocessing = preprocessing
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def unit(self) -> str:
        """What one input is, for sentences: 'image' or 'sample'."""
        return self.preprocessing.unit

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of every input after the preprocessing; of an image (height, width, channels)."""
        if (fixed := self.preprocessing.fixed_shape) is not None:
            return fixed
        assert isinstance(self.preprocessing, Preprocessing)  # sources fix the shape of anything else
        return (*self.source.size_of(int(self.indices[0])), self.preprocessing.channels)

    @functools.cached_property
    def parts(self) -> tuple[range, ...]:
        """Which of the images each batch has, by their positions in the order of iteration."""
        return even_batches(len(self), self._most_at_a_time()) if len(self) else ()

    def select(self, positions: np.ndarray) -> Self:
        """Those at these positions in the order of iteration, (n,) int."""
        return type(self)(self.source, self.indices[positions], self.preprocessing, self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        if len(self) == 0:
            return
        shape = self.sample_shape
        first, *rest = self.parts
        pool = ThreadPoolExecutor(_NUM_THREADS)
        try:
            ahead = self._begin(first, shape, pool)
            for following in (*rest, None):
                batch = _finish(*ahead)
                # Only now: begun before the wait, a third batch would fill while the caller still holds the last one.
                if following is not None:
                    ahead = self._begin(following, shape, pool)
                yield batch
                del batch
        finally:  # also when the caller stops early: nothing goes on decoding
            pool.shutdown(wait=True, cancel_futures=True)

    def _most_at_a_time(self) -> int:
        sample_bytes = math.prod(self.sample_shape) * np.dtype(np.float32).itemsize
        return min(self.batch_size, max(1, _LARGEST_BATCH_BYTES // sample_bytes))

    def _begin(
        self, positions: range, shape: tuple[int, ...], pool: ThreadPoolExecutor
    ) -> tuple[np.ndarray, list[Future[None]]]:
        """Starts to fill one batch. Written in place: no image is held twice, none is left among decoding buffers."""
        batch = np.empty((len(positions), *shape), np.float32)
        indices = self.indices[positions.start : positions.stop]
        return batch, [pool.submit(self._load, int(index), batch[row]) for row, index in enumerate(indices)]

    def _load(self, index: int, row: np.ndarray) -> None:
        image = self.source.image(index)
        try:
            row[...] = self.preprocessing(image)
        except InputError as error:
            raise InputError(f"{error}, {self.source.name_of(index)}") from error


class CalibrationSet(ImageStream):
    """The images that statistics are estimated on.

    Attributes:
        num_dropped: images left out because the evaluation images hold the same content.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: np.ndarray,
        preprocessing: Preparation,
        batch_size: int,
        num_dropped: int = 0,
    ):
        super().__init__(source, indices, preprocessing, batch_size)
        self.num_dropped = num_dropped

    def select(self, positions: np.ndarray) -> Self:
        return type(self)(self.source, self.indices[positions], self.preprocessing, self.batch_size, self.num_dropped)


class EvaluationSet(ImageStream):
    """The images that the network is judged on; none of them calibrates."""

    @property
    def labels(self) -> np.ndarray | None:
        """int64 (N,) or (N, *positions), aligned with the order of iteration; None if the source has no labels."""
        return None if self.source.labels is None else self.source.labels[self.indices]

    @property
    def targets(self) -> Targets | None:
        """What the source has beside its inputs, (N, ...) or output -> that, aligned with the order of iteration.

        Raises:
            InputError: it is not of as many inputs.
        """
        found = self.source.targets
        arrays = {"y": found} if not isinstance(found, Mapping) else {f"y_{name}": y for name, y in found.items()}
        for name, array in arrays.items():
            if array is not None and array.shape[:1] != (len(self.source),):
                raise InputError(
                    f"{name} must be of as many {self.unit}s as x, {len(self.source)}. Received: shape {array.shape}"
                )
        if isinstance(found, Mapping):
            return {name: array[self.indices] for name, array in found.items()}
        return None if found is None else found[self.indices]


def _finish(batch: np.ndarray, rows: list["Future[None]"]) -> np.ndarray:
    for row in rows:
        row.result()
    return batch


class ArrayBatches(Counted):
    """Near-equal float32 batches of one array. `len` is the number of samples.

    Attributes:
        array: (N, ...), rank 2 or more, any numeric type.
        batch_size: the largest batch.
    """

    def __init__(self, array: np.ndarray, batch_size: int):
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1. Received: {batch_size}")
        self.array = array
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, batch in enumerate(even_batches(len(self), self.batch_size)):
            yield _as_float_batch(self.array[batch.start : batch.stop], number)


class StreamBatches:
    """The batches of an iterable that can be iterated again, such as a tf.data.Dataset; read anew each time.

    Attributes:
        batches: yields x or (x, y), x being (n, ...) of rank 2 or more, or what `join` takes; y is not looked at.
        join: makes x of a dict, tuple or list of arrays, of a model with several inputs; None: there are none.
    """

    def __init__(self, batches: Iterable[Any], join: Join | None = None):
        self.batches = batches
        self.join = join

    def __iter__(self) -> Iterator[np.ndarray]:
        number = -1
        for number, element in enumerate(self.batches):
            yield _as_float_batch(_inputs_of(element, number, self.join), number)
        if number < 0:
            raise InputError(f"data must yield at least one batch. Received: {type(self.batches).__name__}, none")


def as_batches(
    data: Any, *, batch_size: int = 64, join: Join | None = None
) -> ImageStream | ArrayBatches | StreamBatches:
    """Makes re-iterable float32 batches of what a caller has.

    Args:
        data: one of
            - an array (NumPy, or a tensor with `.numpy()`) of shape (N, ...), rank 2 or more, cut into near-equal
              batches of at most `batch_size`;
            - an iterable of batches x or (x, y), such as a *batched* tf.data.Dataset, a list of arrays or a PyTorch
              DataLoader; batches stay as they are and y is not looked at;
            - a one-shot generator of such batches: it is read to its end, and its batches are kept in memory;
            - a set from `reflow_tf.data`, returned as it is.
        batch_size: for arrays only.
        join: as for `StreamBatches`.

    Raises:
        InputError: if the data is none of these, is empty or infinite, is not numeric, has a batch of rank below 2, or
            holds NaN or infinite values. Batches of a stream are checked while they are read.
    """
    if isinstance(data, ImageStream | ArrayBatches | StreamBatches):
        return data
    if hasattr(data, "numpy"):
        data = data.numpy()
    if isinstance(data, np.ndarray):
        return ArrayBatches(_require_numeric(data, "data"), batch_size)
    if isinstance(data, str | bytes | dict) or not hasattr(data, "__iter__"):
        raise InputError(f"data must be an array or an iterable of batches. Received: {type(data).__name__}")
    if is_infinite(data):
        raise InputError("data must end; limit a repeated dataset with take(). Received: an infinite tf.data.Dataset")
    if iter(data) is data:
        return StreamBatches(list(StreamBatches(data, join)))
    return StreamBatches(data, join)


def is_infinite(data: Any) -> bool:
    """Whether it is a tf.data.Dataset that says that it never ends."""
    cardinality = getattr(data, "cardinality", None)
    return cardinality is not None and int(cardinality()) == -1  # tf.data.INFINITE_CARDINALITY


def _inputs_of(element: Any, number: int, join: Join | None) -> np.ndarray:
    if isinstance(element, tuple | list) and element:
        element = element[0]
    if isinstance(element, dict | tuple | list) and join is not None:
        return join(element)
    if isinstance(element, dict):
        raise InputError(f"a batch must be x or (x, y), not a dict. Received: keys {list(element)} in batch {number}")
    return as_numbers(element, f"batch {number}")


def as_numbers(values: Any, where: str, least_rank: int = 2) -> np.ndarray:
    """Values, or a tensor with `.numpy()`, as an array of numbers, (n, ...).

    Args:
        values: what a caller has.
        where: what it is, for messages.
        least_rank: of the array: 2, or 1 for one of several inputs.

    Raises:
        InputError: rows of different lengths; no numbers; no axis beside that of the samples; no samples.
    """
    try:
        array = np.asarray(values.numpy() if hasattr(values, "numpy") else values)
    except ValueError as error:
        raise InputError(f"{where} must be one array, all samples of one shape. Received: {error}") from error
    return _require_numeric(array, where, least_rank)


def _require_numeric(array: np.ndarray, where: str, least_rank: int = 2) -> np.ndarray:
    # bfloat16 and float8 (ml_dtypes) have kind 'V' and yet convert.
    if array.dtype.kind not in "biuf" and not (array.dtype.kind == "V" and array.dtype.names is None):
        raise InputError(f"{where} must be numeric. Received: {array.dtype}")
    if array.ndim < least_rank:
        more = " and at least one more" if least_rank > 1 else ""
        raise InputError(f"{where} must have a batch axis{more}. Received: shape {array.shape}")
    if not len(array):
        raise InputError(f"{where} must hold at least one sample. Received: shape {array.shape}")
    return array


def _as_float_batch(array: np.ndarray, number: int) -> np.ndarray:
    batch = array.astype(np.float32)
    if not np.isfinite(batch).all():
        raise InputError(f"data must be finite. Received: NaN or infinity in batch {number}")
    return batch
