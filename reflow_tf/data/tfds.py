"""One split of a TensorFlow Datasets image dataset: `tfds:NAME[:SPLIT]`.

NAME may carry a config and a version (`name/config:1.2.3`), SPLIT may be a slice (`train[:10%]`). Without SPLIT it is
the first there is of 'validation', 'test' and 'train': images that the network has rather not been trained on.

TFDS streams, but a random split needs any image at any time. So the encoded images are copied once to a temporary file,
which the operating system removes with the process; only their offsets are kept in memory.
"""

import hashlib
import importlib
import io
import os
import re
import tempfile
from types import ModuleType
from typing import Any, Self

import numpy as np

from reflow_tf.data.classes import check_labels, index_of_class
from reflow_tf.data.decoding import decode_image, read_size
from reflow_tf.data.sources import ImageSource, Labels, SourceRequest
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why

PREFIX = "tfds:"
DEFAULT_SPLITS: tuple[str, ...] = ("validation", "test", "train")
_PATTERN = re.compile(r"tfds:(?P<name>[\w.@-]+(/[\w.@-]+)?(:\d+\.\d+\.\d+)?)(:(?P<split>.+))?")


class TfdsSource(ImageSource):
    """Encoded images in a temporary file. `digest` hashes the encoded bytes, which needs no decoding.

    Attributes:
        text: the flag's value, for error messages.
    """

    def __init__(self, text: str, labels: np.ndarray | None, spool: "_Spool", classes: np.ndarray | None = None):
        self.text = text
        self.labels, self.classes = labels, classes
        self._spool = spool

    @classmethod
    def accepts(cls, text: str) -> bool:
        return text.startswith(PREFIX)

    @classmethod
    def open(cls, request: SourceRequest) -> Self:
        """Prepares the dataset (TFDS may download it) and copies the split.

        Raises:
            InputError: if tensorflow-datasets is not installed; the dataset or the split is unknown or cannot be
                prepared; it has no (image, label) pairs; it is empty; or its labels are no outputs of the network.
        """
        match = _PATTERN.fullmatch(request.text)
        if match is None:
            raise InputError(f"data from TFDS must look like tfds:NAME or tfds:NAME:SPLIT. Received: {request.text}")
        tfds = _import_tfds(request.text)
        try:
            builder = tfds.builder(match["name"])
            builder.download_and_prepare()
            spool, labels = _copy_split(tfds, builder, match["split"], request)
        except InputError:
            raise
        except (OSError, ValueError, AssertionError, ImportError) as error:
            # ValueError: unknown name or split. AssertionError: files must be put in place by hand.
            # The messages run to hundreds of lines (all known names); the first one says what is wrong.
            reason = say_why(str(error).partition("\n")[0]) if str(error) else say_why(error)
            raise InputError(
                f"data must be a dataset and split that TFDS can prepare ({reason}). Received: {request.text}"
            ) from error
        if not labels:
            raise InputError(f"data must hold at least one image. Received: {request.text}, which is empty")
        if request.labels is Labels.NONE:
            return cls(request.text, None, spool, np.asarray(labels))
        return cls(request.text, _network_labels(builder, labels, request), spool)

    def __len__(self) -> int:
        return len(self._spool)

    def name_of(self, index: int) -> str:
        return f"image {index} of {self.text}"

    def image(self, index: int) -> np.ndarray:
        return decode_image(io.BytesIO(self._spool.read(index)), self.name_of(index))

    def digest(self, index: int) -> bytes:
        return hashlib.blake2b(self._spool.read(index)).digest()

    def size_of(self, index: int) -> tuple[int, int]:
        return read_size(io.BytesIO(self._spool.read(index)), self.name_of(index))


class _Spool:
    """Byte strings appended to an anonymous temporary file, read back by position from any thread."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the source
        self._ends = [0]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, content: bytes) -> None:
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def flush(self) -> None:
        self._file.flush()

    def read(self, index: int) -> bytes:
        start, end = self._ends[index], self._ends[index + 1]
        return os.pread(self._file.fileno(), end - start, start)


def _import_tfds(text: str) -> ModuleType:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise InputError(
            f"data from TFDS needs tensorflow-datasets: pip install '.[tfds]' ({say_why(error)}). Received: {text}"
        ) from error


def _copy_split(tfds: ModuleType, builder: Any, split: str | None, request: SourceRequest) -> tuple[_Spool, list[int]]:
    """Copies the encoded images of one split; returns them with the dataset's own label of each."""
    keys = builder.info.supervised_keys
    if keys is None or not isinstance(builder.info.features[keys[0]], tfds.features.Image):
        raise InputError(f"a TFDS dataset must have (image, label) pairs. Received: {request.text}")
    split = split or next((name for name in DEFAULT_SPLITS if name in builder.info.splits), None)
    if split is None:
        raise InputError(
            f"a TFDS dataset without any of the splits {', '.join(DEFAULT_SPLITS)} needs tfds:NAME:SPLIT. "
            f"Received: {request.text}, with the splits {sorted(builder.info.splits)}"
        )
    dataset = builder.as_dataset(
        split=split, as_supervised=True, shuffle_files=False, decoders={keys[0]: tfds.decode.SkipDecoding()}
    )
    spool, labels = _Spool(), []
    for encoded, label in tfds.as_numpy(dataset):
        spool.append(encoded)
        labels.append(label)
    spool.flush()
    return spool, labels


def _network_labels(builder: Any, labels: list[int], request: SourceRequest) -> np.ndarray:
    """The network's output of each image: by name with `--class_names`, otherwise the dataset's own numbers."""
    own = np.asarray(labels)
    if own.ndim != 1 or not np.issubdtype(own.dtype, np.integer):
        raise InputError(f"a TFDS dataset must have one integer label an image. Received: {request.text}")
    names = getattr(builder.info.features[builder.info.supervised_keys[1]], "names", None)
    if request.class_names is not None and names is not None and own.min() >= 0:
        used = {int(label): index_of_class(names[label], request.class_names, request.text) for label in np.unique(own)}
        own = np.array([used[int(label)] for label in own])
    return check_labels(own, request.num_classes, request.text)
