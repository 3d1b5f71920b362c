"""A NumPy archive of arrays, see `arrays`, held in memory as it was stored, so that uint8 costs a quarter of float32.

Pickled objects are never loaded.
"""

from pathlib import Path
from typing import Self

import numpy as np

from reflow_tf.data.arrays import ArraySource, is_read, name_inputs
from reflow_tf.data.sources import SourceRequest
from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why


class NpzSource(ArraySource):
    """The arrays of one archive."""

    @classmethod
    def accepts(cls, text: str) -> bool:
        path = Path(text).expanduser()
        return path.suffix.lower() == ".npz" and path.is_file()

    @classmethod
    def open(cls, request: SourceRequest) -> Self:
        """Loads the archive.

        Raises:
            InputError: it is no archive of plain arrays, or they do not fit, see `ArraySource.of`.
        """
        path = str(Path(request.text).expanduser())
        return cls.of(_read_arrays(path, request), request, path)


def _read_arrays(path: str, request: SourceRequest) -> dict[str, np.ndarray]:
    """Those that the archive holds and somebody looks at."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError("this is one array without a name, as np.save writes it")
        with archive:
            names = archive.files
            arrays = {name: archive[name] for name in names if is_read(name, request)}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # NumPy hands over the bytes of a member that is none of its own
                raise InputError(f"{name!r} is no array")
    except Exception as error:  # zipfile, zlib, tokenize and NumPy each raise their own, MemoryError among them
        raise InputError(
            f"an .npz must be a readable archive of plain arrays ({say_why(error)}). Received: {path}"
        ) from error
    if name_inputs(request) == ["x"] and "x" not in arrays:
        raise InputError(f"an .npz must hold the inputs as 'x', and labels as 'y'. Received: {names} in {path}")
    return arrays
