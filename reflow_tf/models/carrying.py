"""A model on its way to workers: its address and its weights, and not what it is made of."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.models.loading import load_model
from reflow_tf.models.packing import pack_scaled


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a model is loaded from, wherever that is done; as for `load_model`.

    Attributes:
        scales: what each output of the model is multiplied by when it is packed, see `packing.pack_scaled`; None: it
            stays as it is loaded.
    """

    model: str
    weights: str | None = None
    image_size: int | None = None
    custom_objects: str | None = None
    scales: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        model: str,
        weights: str | None = None,
        image_size: int | None = None,
        custom_objects: str | None = None,
    ) -> "Address":
        """With paths that do not depend on the current folder."""
        absolute = None if weights is None else _make_absolute(weights)
        return cls(_make_absolute(model), absolute, image_size, custom_objects)

    def load(self) -> keras.Model:
        """The model; a worker loads it once, for as long as the files are the same."""
        return _load(self, *(_read_stamp(path) for path in (self.model, self.weights)))


@functools.lru_cache(maxsize=1)
def _load(address: Address, *_: object) -> keras.Model:
    given = dataclasses.asdict(address)
    scales = given.pop("scales")
    model = load_model(**given).model
    return model if scales is None else pack_scaled(model, scales)


class Carried:
    """A model that is there; pickled, its address and the weights that it has then.

    Args:
        model: built.
        address: None where it is not sent anywhere.
    """

    def __init__(self, model: keras.Model, address: Address | None = None):
        self.model, self._address = model, address

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._address is None:
            raise TypeError(
                f"The model {self.model.name} was not loaded from anywhere, so that nobody else can load it"
            )
        return _arrive, (self._address, [np.array(variable) for variable in self.model.variables])


def _arrive(address: Address, values: Sequence[np.ndarray]) -> Carried:
    """Loads the model and gives it the weights.

    Raises:
        InputError: what is at the address is another model.
    """
    model = address.load()
    shapes = [tuple(variable.shape) for variable in model.variables]
    if shapes != [value.shape for value in values]:
        raise InputError(f"--model must be the same file wherever it is read. Received: another at {address.model}")
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)
    return Carried(model, address)


def _make_absolute(text: str) -> str:
    path = os.path.abspath(os.path.expanduser(text))
    return path if os.path.exists(path) else text


def _read_stamp(path: str | None) -> tuple[int, int] | None:
    if path is None or not os.path.exists(path):
        return None
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size
