"""What a file will be once masks hold: how large, and what a target will make of it; told from the dense file.

Both depend on how many zeros lie where, and not on the values of the weights that stay: what the repairs will make of
these need not be known.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import bitmap_format, flatbuffer
from reflow_tf.export.bitmap_storage import store_bitmaps
from reflow_tf.export.operators import read_operators
from reflow_tf.export.placement import Place, find_places
from reflow_tf.export.rewriting import ballast
from reflow_tf.export.slimming import slim
from reflow_tf.export.sparse_format import encode
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.sparsity.masks import Masks
from reflow_tf.targets.operators import OperatorGraph, find_blocks

Noun = TypeVar("Noun")

# A file pads each buffer to 16 bytes: two buffers can shift by this much.
_PADDING_BYTES = 32


@dataclass(frozen=True)
class _Form:
    """A way to store zeros: what writes a file so, and the bytes of one tensor's numbers in it."""

    store: Callable[[bytes], bytes]
    measure: Callable[[np.ndarray, Place], int]


_FORMS = {
    "sparse": _Form(store_sparse, lambda dense, place: encode(dense).size_bytes + place.scale_size_bytes),
    "bitmap": _Form(
        store_bitmaps, lambda dense, _: bitmap_format.measure(dense.size, int(np.count_nonzero(dense)), dense.itemsize)
    ),
}


class Forecast:
    """The dense file of a model, with the model's kernels found in it.

    Args:
        content: the model as a .tflite file with dense weights, rewritten or not as the file in question will be.
        kernels: path -> kernel in canonical layout (output, *spatial, input).
        storage: how the file in question will store zeros: 'sparse' or 'bitmap'.
        ballast_for: devices for which it will get ballast, where that pays.

    Attributes:
        graph: the dense file as targets judge it.
        unfound: kernels that are not in the file as the model has them; the forecast takes them for dense.

    Raises:
        InputError: `content` is not a whole .tflite file.
    """

    def __init__(
        self,
        content: bytes,
        kernels: Mapping[str, np.ndarray],
        storage: str = "sparse",
        ballast_for: Collection[str] = (),
    ):
        self._storage = storage
        self._ballast_for = ballast_for
        if storage == "bitmap":
            content = slim(content)
        self.graph: OperatorGraph = read_operators(content)
        self._kernels = kernels
        self._places = find_places(content, kernels)
        self.unfound: tuple[str, ...] = tuple(path for path, places in self._places.items() if not places)
        self._size_bytes = len(content)
        places = [place for found in self._places.values() for place in found]
        self._probed = _probe(content, places, storage)

    def assign(self, nouns: Mapping[int, Noun]) -> dict[str, Noun]:
        """What is known of the file's values, by the paths of the kernels that they hold; others are left out."""
        return {
            path: nouns[index]
            for path, places in self._places.items()
            for index in (index for place in places for index in place.values)
            if index in nouns
        }

    def shrinks(self, path: str) -> bool:
        """Whether zeros in this kernel can make the file smaller."""
        return any(place.tensor in self._probed.sparse for place in self._places[path])

    def measure_size(self, masks: Masks) -> int:
        """Bytes of the file, a little too high rather than too low.

        Args:
            masks: path -> bool array in canonical layout, True = kept; kernels without one stay dense.
        """
        saved = 0.0
        for path, mask in masks.items():
            kept = mask & (self._kernels[path] != 0)
            for place in (place for place in self._places[path] if place.tensor in self._probed.sparse):
                # Sizes do not depend on the order of the axes, which differs between the layouts.
                numbers = _FORMS[self._storage].measure(kept.astype(place.dtype), place)
                saved += max(0, place.size_bytes - numbers - self._probed.tensor_bytes - _PADDING_BYTES)
        # Where nothing is saved, the file is not written anew.
        changed_bytes = self._probed.changed_bytes + self._probed.first_bytes - saved
        size_bytes = min(self._size_bytes, math.ceil(changed_bytes)) if saved else self._size_bytes
        return size_bytes + (ballast.bound_size(self.foresee(masks), self._ballast_for) if self._ballast_for else 0)

    def foresee(self, masks: Masks) -> OperatorGraph:
        """The file's graph with the zeros of these masks, stored sparse wherever any can be."""
        values = list(self.graph.values)
        for path, mask in masks.items():
            kept = mask & (self._kernels[path] != 0)
            num_zeros = mask.size - int(np.count_nonzero(kept))
            for place in self._places[path]:
                stored = self._storage if num_zeros > 0 and place.tensor in self._probed.sparse else "dense"
                for index in place.values:
                    blocks = find_blocks(kept) if values[index].has_blocks else ()
                    values[index] = replace(values[index], num_zeros=num_zeros, storage=stored, blocks=blocks)
        return replace(self.graph, values=tuple(values))


@dataclass(frozen=True)
class _Probed:
    """What sparse storage does to a file.

    Attributes:
        changed_bytes: of the file where it is written anew and all else stays.
        first_bytes: what the first tensor that is stored sparse costs besides, such as an operator code.
        tensor_bytes: what each costs, besides its numbers.
        sparse: tensors that can be stored so.
    """

    changed_bytes: int
    first_bytes: float
    tensor_bytes: float
    sparse: frozenset[int]


def _probe(content: bytes, places: list[Place], storage: str) -> _Probed:
    """Looks at the file where all kernels are empty, and where one is and the others are full."""
    written, changed_bytes, saved_bytes = _empty(content, places, storage, {place.tensor for place in places})
    values = read_operators(written).values
    sparse = frozenset(tensor for tensor in saved_bytes if values[tensor].storage == storage)
    added = len(written) - changed_bytes + sum(saved_bytes[tensor] for tensor in sparse)
    if len(sparse) < 2:
        return _Probed(changed_bytes, 0.0, added, sparse)
    largest = max((place for place in places if place.tensor in sparse), key=lambda place: place.size_bytes)
    written, *_ = _empty(content, places, storage, {largest.tensor})
    added_by_one = len(written) - changed_bytes + saved_bytes[largest.tensor]
    tensor_bytes = (added - added_by_one) / (len(sparse) - 1)
    return _Probed(changed_bytes, added_by_one - tensor_bytes, tensor_bytes, sparse)


def _empty(content: bytes, places: list[Place], storage: str, tensors: set[int]) -> tuple[bytes, int, dict[int, int]]:
    """The file with these kernels empty and the others full, stored sparse; its bytes stored dense; what each saves."""
    model, form = flatbuffer.parse(content), _FORMS[storage]
    saved_bytes = {}
    taken = set()
    for place in places:
        numbers = (np.zeros if place.tensor in tensors else np.ones)(place.shape, place.dtype)
        numbers.flat[0] = 1  # sparse storage needs a value
        buffer = schema.BufferT(data=np.frombuffer(numbers.tobytes(), np.uint8))
        if place.buffer in taken:  # equal kernels lie in one buffer, until masks tell them apart
            model.subgraphs[0].tensors[place.tensor].buffer = len(model.buffers)
            model.buffers.append(buffer)
        else:
            model.buffers[place.buffer] = buffer
        taken.add(place.buffer)
        saved_bytes[place.tensor] = place.size_bytes - form.measure(numbers, place)
    changed = flatbuffer.serialize(model, size_hint=len(content))
    return form.store(changed), len(changed), saved_bytes
